"""Inner rules: optax transformations, some with learned parameters."""

from metajax.inner.rules.base import learned_rates, learned_transformation, stop_gradient
from metajax.inner.rules.lstm import lstm_rule
from metajax.inner.rules.matrices import curvature_rule
from metajax.inner.rules.networks import learned_rule
from metajax.inner.rules.newton import hessian_free
from metajax.inner.rules.start_decay import decay_to_start

__all__ = [
    "curvature_rule",
    "decay_to_start",
    "hessian_free",
    "learned_rates",
    "learned_rule",
    "learned_transformation",
    "lstm_rule",
    "stop_gradient",
]
