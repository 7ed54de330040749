"""Inner rules: updates of a task's parameters, with or without learned parameters of the rule.

Every rule is an optax transformation, and any optax transformation is a rule if it needs only gradients,
parameters, and the loss as `value`, `grad` and `value_fn`. The *learned* parameters of a rule (step sizes,
preconditioners) lie in the state of its transformation, marked as `Learned`, wherever `optax.chain`,
`optax.masked` or `optax.partition` put it. `as_rule` finds them there, so that they become part of the
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
    """Marks the learned parameters of a rule within the state of an optax transformation.

    Attributes:
      value: Learned parameters, a tree of arrays.
    """

    value: RuleParams


class LearnedState(NamedTuple):
    """State of a transformation with learned parameters.

    Attributes:
      learned: Parameters of the rule; `Learned(())` in the fast state of a task, which does not keep them.
      state: State that changes from step to step.
    """

    learned: Learned
    state: optax.OptState


def learned_transformation(
    init: Callable[[Params], RuleParams],
    update: Callable[..., tuple[Params, optax.OptState]],
    start: Callable[[Params], optax.OptState] = lambda params: optax.EmptyState(),
) -> optax.GradientTransformationExtraArgs:
    """Makes an optax transformation with learned parameters, which a learner keeps as `meta.rule`.

    It may be part of `optax.chain`, `optax.masked` and `optax.partition`, also next to others of its kind.
    Outside of metajax, for example as an outer optimizer, it keeps its initial parameters.

    Args:
      init: Function params -> initial parameters of the rule, a tree of floating-point arrays.
      update: Function (rule parameters, grads, state, params, **extra) -> (updates, state), where `extra` has
        `value`, `grad` and `value_fn` if any part of the whole rule requires them.
      start: Function params -> state of a new task. It does not see the rule's parameters.

    Returns:
      An optax transformation.

    Example:
      Gradient descent with one learned step size.

      >>> def update(log_rate, grads, state, params, **extra):
      ...     return jax.tree.map(lambda g: -jnp.exp(log_rate) * g, grads), state
      >>> rule = learned_transformation(lambda params: jnp.log(0.5), update)
      >>> updates, _ = rule.update(jnp.ones(2), rule.init(jnp.zeros(2)))
      >>> updates.tolist()
      [-0.5, -0.5]
    """

    def init_fn(params):
        return LearnedState(Learned(init(params)), start(params))

    def update_fn(updates, state, params=None, **extra):
        updates, inner = update(state.learned.value, updates, state.state, params, **extra)
        return updates, state._replace(state=inner)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


class Rule(NamedTuple):
    """An optax transformation whose learned parameters are separate from its state.

    Attributes:
      init: Function params -> learned parameters: () if there are none, the parameters of the part that
        learns if there is one, or a tuple if there are several.
      start: Function params -> state without the learned parameters.
      update: Function (learned parameters, grads, state, params, **extra) -> (updates, state).
    """

    init: Callable[[Params], RuleParams]
    start: Callable[[Params], optax.OptState]
    update: Callable[..., tuple[Params, optax.OptState]]


def as_rule(transform: optax.GradientTransformation) -> Rule:
    """Separates the learned parameters of an optax transformation, if any, from its state.

    Args:
      transform: Optax transformation.

    Returns:
      The rule; the same one for the same transformation.

    Raises:
      TypeError: If `transform` is not an optax transformation, or its `update` requires arguments that inner
        steps do not have.
    """
    if not isinstance(transform, optax.GradientTransformation):
        raise TypeError(
            f"{transform!r} is no optax transformation; pass one, such as optax.sgd(0.1)."
        )
    rule = _separate(transform)
    examine(rule)
    return rule


@functools.lru_cache(maxsize=32)  # one rule per transformation, so that `examine` runs once for it
def _separate(transform: optax.GradientTransformation) -> Rule:
    """Makes the rule of a transformation."""
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
    """Checks whether a node of a state marks learned parameters."""
    return isinstance(node, Learned)


def _learned_parts(state: optax.OptState) -> list[Learned]:
    """Lists the learned parameters in a state."""
    return [node for node in jax.tree.leaves(state, is_leaf=_is_learned) if _is_learned(node)]


def _with_values(state: optax.OptState, values: Sequence[RuleParams]) -> optax.OptState:
    """Replaces the learned parameters in a state, in their order."""
    left = iter(values)
    return jax.tree.map(
        lambda node: Learned(next(left)) if _is_learned(node) else node, state, is_leaf=_is_learned
    )


def stop_gradient() -> optax.GradientTransformation:
    """Stops the derivative of inner gradients, which makes the transformations after it first order.

    Chained before `optax.sgd`, it is the rule of first-order MAML: the outer gradient sees the adapted
    parameters and not how inner gradients depend on the initial ones.

    Returns:
      An optax transformation that leaves the values of gradients unchanged.

    Example:
      >>> rule = optax.chain(stop_gradient(), optax.sgd(0.1))
      >>> def outer(x):
      ...     updates, _ = rule.update(3 * x, rule.init(x), x)
      ...     return x + updates
      >>> float(jax.grad(outer)(1.0))
      1.0

    Reference: Finn et al., 2017 (https://arxiv.org/abs/1703.03400), section 5.2.
    """
    return optax.stateless(lambda updates, params: jax.lax.stop_gradient(updates))


class LearnedRatesState(NamedTuple):
    """State of per-step learned step sizes.

    Attributes:
      count: Number of steps taken, an int scalar.
    """

    # Named as in optax's own states; the tuple's method is not needed.
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]


def learned_rates(
    initial: float, *, per: Literal["parameter", "leaf"] = "parameter", steps: int | None = None
) -> optax.GradientTransformationExtraArgs:
    """Makes the rule of Meta-SGD and MAML++: gradient descent with learned step sizes.

    Args:
      initial: Step size that training starts from; learned ones may turn negative.
      per: Sharing of step sizes: "parameter" learns one per parameter, as in Meta-SGD, "leaf" one per leaf
        of the tree, as in MAML++.
      steps: Number of inner steps S with their own step sizes, as in MAML++; later steps share the last ones.
        None learns the same step sizes for all steps.

    Returns:
      A rule with `params <- params - rates * grads`.

    Raises:
      ValueError: If `per` is unknown, or `steps` is below 1.

    Example:
      >>> rule = learned_rates(0.1, per="leaf", steps=5)
      >>> rule.init({"kernel": jnp.ones((2, 3))}).learned.value["kernel"].shape
      (5,)

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
