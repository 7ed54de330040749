"""Inner rules: how a task's parameters move, with or without learned parameters of the rule's own.

Any optax transformation is a rule, if all that it needs are gradients, parameters, and the loss as `value`,
`grad` and `value_fn`. What is *learned* about a rule (step sizes, preconditioners) is part of the
meta-parameters, so a `Rule` makes them and binds them to a transformation.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metajax.inner.stepper import NoTransformationError, examine
from metajax.inner.stepwise import take_row

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

    @property
    def update(self) -> Any:
        """Refuses to be part of an optax transformation, which would look for its `update`."""
        raise NoTransformationError(
            "A Rule has parameters to learn and is no part of optax.chain; bind it first: "
            "Rule(rule.init, lambda learned: optax.chain(optax.clip(1.0), rule.bind(learned)))."
        )


def as_rule(rule: Rule | optax.GradientTransformation) -> Rule:
    """Takes an optax transformation for a rule that has nothing to learn.

    Raises:
      TypeError: for what is neither, for an optax transformation with a `Rule` inside, and for one whose
        `update` requires other arguments than inner steps have.
    """
    if not isinstance(rule, Rule | optax.GradientTransformation):
        raise TypeError(
            f"{rule!r} is neither a Rule nor an optax transformation; pass optax.sgd(0.1), say."
        )
    rule = rule if isinstance(rule, Rule) else _with_nothing_to_learn(rule)
    examine(rule)
    return rule


@functools.lru_cache(maxsize=32)  # the same rule each time, which is examined once
def _with_nothing_to_learn(transform: optax.GradientTransformation) -> Rule:
    return Rule(init=lambda params: (), bind=lambda rule_params: transform)


def stop_gradient() -> optax.GradientTransformation:
    """Passes inner gradients on as constants, which makes whatever follows first order.

    `optax.chain(stop_gradient(), optax.sgd(0.1))` is the rule of first-order MAML: the outer gradient sees
    the parameters that inner steps arrive at, and nothing of how they got there.
    """
    return optax.stateless(lambda updates, params: jax.lax.stop_gradient(updates))


class LearnedRatesState(NamedTuple):
    """How many steps were taken, a scalar."""

    count: jax.Array


def learned_rates(
    initial: float, *, per: Literal["parameter", "leaf"] = "parameter", steps: int | None = None
) -> Rule:
    """Gradient descent whose step sizes are learned, the rule of Meta-SGD and of MAML++.

    Args:
      initial: the step size that training starts from.
      per: a step size a parameter, as in Meta-SGD, or one a leaf of the tree. They may turn negative.
      steps: for how many inner steps to learn step sizes of their own, as in MAML++; all later steps share
        those of the last. None learns the same for all.

    Returns:
      A rule with `params <- params - rates * grads`.

    Reference: Li et al., 2017 (https://arxiv.org/abs/1707.09835), eq. 3; Antoniou et al., 2019
    (https://arxiv.org/abs/1810.09502), section 4, "learning per-layer per-step learning rates".
    """
    shapes = {"parameter": jnp.shape, "leaf": lambda leaf: ()}
    if per not in shapes:
        raise ValueError(f"per is {per!r}; use one of {', '.join(map(repr, shapes))}.")
    if steps is not None and steps < 1:
        raise ValueError(
            f"steps is {steps}; use 1 or more, or None for the same step sizes in all."
        )
    rows = () if steps is None else (steps,)

    def init(params):
        return jax.tree.map(lambda p: jnp.full((*rows, *shapes[per](p)), initial, p.dtype), params)

    def descend(rates, grads):
        return jax.tree.map(lambda rate, grad: -rate * grad, rates, grads)

    def bind(rates):
        if steps is None:
            return optax.stateless(lambda grads, params: descend(rates, grads))

        def start(params):
            del params
            return LearnedRatesState(jnp.zeros((), jnp.int32))

        def update(grads, state, params=None):
            del params
            return descend(take_row(rates, state.count), grads), LearnedRatesState(state.count + 1)

        return optax.GradientTransformation(start, update)

    return Rule(init=init, bind=bind)
