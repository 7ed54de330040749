"""Inner rules: how a task's parameters move, with or without learned parameters of the rule's own.

Every rule is an optax transformation, and any optax transformation is a rule if all that it needs are
gradients, parameters, and the loss as `value`, `grad` and `value_fn`. What is *learned* about a rule (step
sizes, preconditioners) lies in the state of its transformation, marked as `Learned`, wherever `optax.chain`,
`optax.masked` or `optax.partition` put it. `as_rule` finds it there, so that it becomes part of the
meta-parameters, which inner steps read and do not carry along.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metajax.inner.per_step import take_row
from metajax.inner.single_step import examine

Params = Any
RuleParams = Any


class Learned(NamedTuple):
    """Marks what a rule learns within the state of an optax transformation."""

    value: RuleParams


class LearnedState(NamedTuple):
    """State of a transformation with learned parameters.

    Attributes:
      learned: Parameters of the rule; `Learned(())` in the fast state of a task, which does not keep them.
      state: What changes from step to step.
    """

    learned: Learned
    state: optax.OptState


def learned_transformation(
    init: Callable[[Params], RuleParams],
    update: Callable[..., tuple[Params, optax.OptState]],
    start: Callable[[Params], optax.OptState] = lambda params: optax.EmptyState(),
) -> optax.GradientTransformationExtraArgs:
    """Makes an optax transformation with parameters of its own, which a learner learns as `meta.rule`.

    It may be part of `optax.chain`, `optax.masked` and `optax.partition`, beside others of its kind too.
    Outside of metajax, as an outer optimizer say, it keeps the parameters that it starts with. Adam whose
    step size is learned, for example:

        adam = optax.scale_by_adam(eps_root=1e-8)

        def update(log_rate, grads, state, params, **extra):
            updates, state = adam.update(grads, state, params)
            return jax.tree.map(lambda u: -jnp.exp(log_rate) * u, updates), state

        rule = metajax.rules.learned_transformation(lambda params: jnp.log(0.01), update, adam.init)

    Args:
      init: params -> the rule's parameters that training starts from, a tree of floating-point arrays.
      update: (the rule's parameters, grads, state, params, **extra) -> (updates, state), where `extra` are
        `value`, `grad` and `value_fn` if any part of the whole rule asks for them.
      start: params -> the state of a new task. It does not know the rule's parameters.
    """

    def init_fn(params):
        return LearnedState(Learned(init(params)), start(params))

    def update_fn(updates, state, params=None, **extra):
        updates, inner = update(state.learned.value, updates, state.state, params, **extra)
        return updates, state._replace(state=inner)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


class Rule(NamedTuple):
    """An optax transformation as inner steps need it: what it learns is apart from its state.

    Attributes:
      init: params -> the learned parameters: () if there are none, those of the only part that learns, or a
        tuple if several do.
      start: params -> the state without them.
      update: (learned parameters, grads, state, params, **extra) -> (updates, state).
    """

    init: Callable[[Params], RuleParams]
    start: Callable[[Params], optax.OptState]
    update: Callable[..., tuple[Params, optax.OptState]]


def as_rule(transform: optax.GradientTransformation) -> Rule:
    """Takes what an optax transformation learns, if anything, out of its state.

    Raises:
      TypeError: for anything else, and for a transformation whose `update` requires other arguments than
        inner steps have.
    """
    if not isinstance(transform, optax.GradientTransformation):
        raise TypeError(f"{transform!r} is no optax transformation; pass optax.sgd(0.1), say.")
    rule = _taken_apart(transform)
    examine(rule)
    return rule


@functools.lru_cache(maxsize=32)  # the same rule each time, which is examined once
def _taken_apart(transform: optax.GradientTransformation) -> Rule:
    transform = optax.with_extra_args_support(transform)

    def init(params):
        values = [part.value for part in _learned_parts(transform.init(params))]
        return values[0] if len(values) == 1 else tuple(values)

    def start(params):
        state = transform.init(params)
        return _with_values(state, [()] * len(_learned_parts(state)))

    def update(learned, grads, state, params, **extra):
        count = len(_learned_parts(state))
        values = [learned] if count == 1 else learned
        updates, state = transform.update(grads, _with_values(state, values), params, **extra)
        return updates, _with_values(state, [()] * count)

    return Rule(init, start, update)


def _is_learned(node: Any) -> bool:
    return isinstance(node, Learned)


def _learned_parts(state: optax.OptState) -> list[Learned]:
    return [node for node in jax.tree.leaves(state, is_leaf=_is_learned) if _is_learned(node)]


def _with_values(state: optax.OptState, values: Sequence[RuleParams]) -> optax.OptState:
    """The same state, with these as what its parts learn, in their order."""
    left = iter(values)
    return jax.tree.map(
        lambda node: Learned(next(left)) if _is_learned(node) else node, state, is_leaf=_is_learned
    )


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
) -> optax.GradientTransformationExtraArgs:
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

    if steps is None:
        return learned_transformation(
            init, lambda rates, grads, state, params, **extra: (descend(rates, grads), state)
        )

    def start(params):
        del params
        return LearnedRatesState(jnp.zeros((), jnp.int32))

    def update(rates, grads, state, params, **extra):
        del params, extra
        return descend(take_row(rates, state.count), grads), LearnedRatesState(state.count + 1)

    return learned_transformation(init, update, start)
