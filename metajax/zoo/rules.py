"""Inner optimizers by name: the choices of `--inner_optimizer`."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import optax

from metajax.names import find

# Makers (learning rate, eps_root) -> optimizer; eps_root is for those that take a square root.
RULES: Mapping[str, Callable[[float, float], optax.GradientTransformation]] = MappingProxyType(
    {
        "sgd": lambda rate, root: optax.sgd(rate),
        "momentum": lambda rate, root: optax.sgd(rate, momentum=0.9),
        "adam": lambda rate, root: optax.adam(rate, eps_root=root),
        "adam0": lambda rate, root: optax.adam(rate, b1=0.0, eps_root=root),
        "sign": lambda rate, root: optax.sign_sgd(rate),
    }
)


def make_rule(
    name: str, learning_rate: float, *, differentiated: bool = True
) -> optax.GradientTransformation:
    """Makes the inner optimizer registered as `name`.

    Args:
      name: A key of `RULES`.
      learning_rate: Inner step size.
      differentiated: Whether a meta-gradient passes through the steps. Adam then adds 1e-8 under its root,
        which makes the derivative finite at zero; tiny gradients take smaller steps.

    Returns:
      The optimizer.

    Raises:
      ValueError: If there is no such rule.

    Example:
      >>> make_rule("sgd", 0.4).update(jnp.ones(2), ())[0].tolist()
      [-0.4000000059604645, -0.4000000059604645]
    """
    return find("inner optimizer", name, RULES)(learning_rate, 1e-8 if differentiated else 0.0)
