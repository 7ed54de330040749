"""The inner loop: adjoints, implicit derivatives, scalars; its rules are in `metajax.rules`."""

from metajax.inner.adjoints import ADJOINTS, Adjoint, unroll
from metajax.inner.implicit import (
    argmin,
    conjugate_gradient,
    hessian_free,
    identity_solver,
    neumann,
)
from metajax.inner.mixed import mixed_gradient, mixed_mode_error
from metajax.inner.per_step import PerStep
from metajax.inner.scalars import fixed, learned

__all__ = [
    "ADJOINTS",
    "Adjoint",
    "PerStep",
    "argmin",
    "conjugate_gradient",
    "fixed",
    "hessian_free",
    "identity_solver",
    "learned",
    "mixed_gradient",
    "mixed_mode_error",
    "neumann",
    "unroll",
]
