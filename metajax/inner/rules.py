"""Inner rules: how a task's parameters move, with or without learned parameters of the rule's own.

Any optax transformation is a rule. What is *learned* about a rule (step sizes, preconditioners) is part of
the meta-parameters, so a `Rule` makes them and binds them to a transformation.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

Params = Any
RuleParams = Any


class Rule(NamedTuple):
    """An optax transformation with parameters that training may learn.

    Attributes:
      init: adapted params -> the rule's own parameters.
      bind: the rule's parameters -> the transformation to take inner steps with.
    """

    init: Callable[[Params], RuleParams]
    bind: Callable[[RuleParams], optax.GradientTransformation]


def as_rule(rule: Rule | optax.GradientTransformation) -> Rule:
    """Takes an optax transformation for a rule that has nothing to learn."""
    if isinstance(rule, Rule):
        return rule
    if not isinstance(rule, optax.GradientTransformation):
        raise TypeError(
            f"{rule!r} is neither a Rule nor an optax transformation; pass optax.sgd(0.1), say."
        )
    return Rule(init=lambda params: (), bind=lambda rule_params: rule)


def stop_gradient() -> optax.GradientTransformation:
    """Passes inner gradients on as constants, which makes whatever follows first order.

    `optax.chain(stop_gradient(), optax.sgd(0.1))` is the rule of first-order MAML: the outer gradient sees
    the parameters that inner steps arrive at, and nothing of how they got there.
    """
    return optax.stateless(lambda updates, params: jax.lax.stop_gradient(updates))


def learned_rates(initial: float, *, per: Literal["parameter", "leaf"] = "parameter") -> Rule:
    """Gradient descent whose step sizes are learned, the rule of Meta-SGD.

    Args:
      initial: the step size that training starts from.
      per: a step size a parameter, as in the paper, or one a leaf of the tree. They may turn negative.

    Returns:
      A rule with `params <- params - rates * grads`.

    Reference: Li et al., 2017 (https://arxiv.org/abs/1707.09835), eq. 3.
    """
    shapes = {"parameter": jnp.shape, "leaf": lambda leaf: ()}
    if per not in shapes:
        raise ValueError(f"per is {per!r}; use one of {', '.join(map(repr, shapes))}.")

    def init(params):
        return jax.tree.map(lambda p: jnp.full(shapes[per](p), initial, p.dtype), params)

    def bind(rates):
        return optax.stateless(
            lambda grads, params: jax.tree.map(lambda rate, grad: -rate * grad, rates, grads)
        )

    return Rule(init=init, bind=bind)
