"""The inner loop: adjoints, implicit derivatives, learned scalars; inner rules are in `metajax.rules`."""

from metajax.deprecation import renamed_attributes
from metajax.inner.adjoints import ADJOINTS, Adjoint, unroll
from metajax.inner.implicit_argmin import argmin
from metajax.inner.linear_solvers import conjugate_gradient, identity_solver, neumann
from metajax.inner.mixed import mixed_gradient, mixed_mode_error
from metajax.inner.per_step import PerStep
from metajax.inner.rules.newton import hessian_free
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

# `inner.implicit`, the old name of three modules, is this room too: see `metajax.renamed`.
__getattr__ = renamed_attributes(__name__, {"identity": "metajax.inner.identity_solver"})
