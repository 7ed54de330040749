"""The learner that adapts by gradient descent, of whose parts MAML and its family are compositions."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from metajax import trees
from metajax.inner.adjoints import ADJOINTS, Adjoint, unroll
from metajax.inner.hoist import hoist, reads_outside
from metajax.inner.mixed import InnerLoss, mixed_mode_error
from metajax.inner.per_step import (
    PerStep,
    draw_minibatches,
    split_rows,
    stack_rows,
    take_minibatch,
    take_row,
)
from metajax.inner.rules.base import as_rule
from metajax.inner.single_step import take_step
from metajax.learners.states import skipping_empty
from metajax.types import Array, Batch, Key, Learner, LossFn, Model, Params, Tree


class GradientMeta(NamedTuple):
    """What a gradient learner learns across tasks: initial parameters, and those of the inner rule."""

    params: Params
    rule: Params


class GradientFast(NamedTuple):
    """What one task leaves behind.

    Attributes:
      params: the adapted leaves, None elsewhere.
      opt_state: the inner optimizer's state.
      step: inner steps taken so far, a scalar.
    """

    params: Params
    opt_state: optax.OptState
    step: Array


class _Operands(NamedTuple):
    """What inner steps read and do not change.

    Attributes:
      constant: what the loss reads in every step.
      rows: leaves [S, ...], of which step i reads row i.
      batch: what minibatches are taken from, if they are.
      minibatches: [steps, M] the examples of each step of this call.
      first: the number of this call's first step.
      rule: the rule's parameters.
    """

    constant: Params
    rows: Params
    batch: Batch | None
    minibatches: Array | None
    first: Array
    rule: Params


class _State(NamedTuple):
    """What changes from step to step beside the parameters."""

    opt_state: optax.OptState
    step: Array


class _Step(NamedTuple):
    """What the loss reads in one step alone: the step's rows, and its minibatch if there are any."""

    rows: Params
    batch: Batch | None


class _Constant(NamedTuple):
    """What the loss reads in every step; no batch where steps have minibatches."""

    fixed: Params
    batch: Batch | None


def gradient_learner(
    model: Model,
    loss: LossFn,
    *,
    rule: optax.GradientTransformation,
    steps: int,
    adapts: trees.PathPredicate | None = None,
    begin: Callable[[Params], Params] = lambda params: params,
    per_step: PerStep | None = None,
    minibatch: int | None = None,
    adjoint: Adjoint = ADJOINTS["reverse"],
) -> Learner[GradientMeta, GradientFast]:
    """Adapts by `steps` steps of an inner rule on the support loss.

    Learners that differ in `steps` alone share their meta-parameters: train with one, test with another.
    Adapting in pieces takes the steps on one piece after another, which is not adapting to the whole. Where
    no example has weight, nothing moves.

    Args:
      model: the network.
      loss: the inner loss.
      rule: Optax transformation by which the adapted leaves move. What it learns, as `learned_rates` do alone
        or within `optax.chain`, `optax.masked` and `optax.partition`, is `meta.rule`.
      steps: inner steps each call of `adapt` takes, from wherever the fast state was; 0 adapts nothing.
      adapts: Predicate of the leaves that move, by path; all but the model's running averages if None. The
        others stay as meta-learned, and what the loss computes from them alone is computed once a task.
      begin: the meta-learned adapted leaves -> those that a task starts from.
      per_step: which of the other leaves are learned for each step by itself.
      minibatch: how many support examples a step sees, drawn without replacement, pass after pass over
        the batch; each call of `adapt` begins a new pass. None shows all in every step.
      adjoint: how to differentiate through the steps; `inner.adjoints.ADJOINTS` names some. The default is
        exact for every loss and keeps the most in memory; before a mixed one, see `check_mixed`.

    Returns:
      A learner with `GradientMeta` and `GradientFast`. The gradient with respect to `meta` flows through
      every inner step, second-order terms included, unless the rule or the adjoint stops it.
    """
    if steps < 0:
        raise ValueError(f"steps is {steps}; use 0 or more.")
    if minibatch is not None and minibatch < 1:
        raise ValueError(f"minibatch is {minibatch}; use 1 or more, or None for all examples.")
    rule, adapts = as_rule(rule), moving(model, adapts)

    def parts(meta: GradientMeta) -> tuple[Params, Params, Params]:
        adapted, fixed = trees.split(meta.params, adapts)
        rows, fixed = split_rows(fixed, per_step) if per_step else (None, fixed)
        return begin(adapted), rows, fixed

    def init(key: Key, inputs: Tree) -> GradientMeta:
        params = trees.require_floats(model.init(key, inputs))
        adapted, fixed = trees.split(params, adapts)
        if per_step:
            params = trees.merge(adapted, stack_rows(fixed, per_step))
        return GradientMeta(params, rule.init(adapted))

    def start(meta: GradientMeta, key: Key, like: Batch | None = None) -> GradientFast:
        del key, like
        adapted, *_ = parts(meta)
        trees.require_floats(adapted)
        return GradientFast(adapted, rule.start(adapted), jnp.zeros((), jnp.int32))

    def read(operands: _Operands, step: Array) -> tuple[_Step, Params]:
        batch = None
        if operands.minibatches is not None:
            chosen = operands.minibatches[step - operands.first]
            batch = take_minibatch(operands.batch, chosen)
        return _Step(take_row(operands.rows, step), batch), operands.constant

    def adapt(meta: GradientMeta, fast: GradientFast, key: Key, batch: Batch) -> GradientFast:
        _, rows, fixed = parts(meta)
        if steps:
            row = take_row(rows, fast.step)
            check_known(
                lambda params: loss(model.apply(_whole(params, row, fixed), batch.inputs), batch),
                fast.params,
                batch,
            )
        operands = _Operands(_Constant(fixed, batch), rows, None, None, fast.step, meta.rule)
        examples = trees.count(batch.inputs)
        if steps and minibatch is not None and minibatch < examples:
            minibatches = draw_minibatches(key, batch.weights, examples, minibatch, steps)
            operands = operands._replace(
                constant=_Constant(fixed, None), batch=batch, minibatches=minibatches
            )

        def inner_loss(params_and_step: tuple[Params, _Step], constant: _Constant) -> Array:
            params, step = params_and_step
            shown = constant.batch if step.batch is None else step.batch
            whole = _whole(params, step.rows, constant.fixed)
            return loss(model.apply(whole, shown.inputs), shown)

        first, constant = read(operands, fast.step)
        changing = fast.params, first
        if jax.tree.leaves(fixed) or (
            adjoint.gradient == "mixed" and reads_outside(inner_loss, changing, constant)
        ):
            constant, inner_loss = hoist(inner_loss, changing, constant)
            operands = operands._replace(constant=constant)

        def loss_of(params: Params, step_and_constant: tuple[_Step, Params]) -> Array:
            step, constant = step_and_constant
            return inner_loss((params, step), constant)

        def update(
            operands: _Operands, grads: Params, params: Params, state: _State
        ) -> tuple[Params, _State]:
            params, opt_state = take_step(
                rule,
                operands.rule,
                grads,
                state.opt_state,
                params,
                lambda params: loss_of(params, read(operands, state.step)),
                first_order=adjoint.gradient == "stopped",
            )
            return params, _State(opt_state, state.step + 1)

        params, state = unroll(
            loss_of,
            update,
            fast.params,
            _State(fast.opt_state, fast.step),
            operands,
            steps=steps,
            adjoint=adjoint,
            read=lambda operands, state: read(operands, state.step),
        )
        return GradientFast(params, *state)

    def predict(meta: GradientMeta, fast: GradientFast, inputs: Tree) -> Tree:
        _, rows, fixed = parts(meta)
        # Queries are answered by the row of the last step taken, as it is the one trained last.
        row = take_row(rows, fast.step - 1)
        return model.apply(_whole(fast.params, row, fixed), inputs)

    adapt_or_skip = skipping_empty(adapt, predict, loss)
    return Learner(init, start, adapt_or_skip, predict, lambda fast: fast.params)


def check_mixed(
    model: Model,
    loss: LossFn,
    params: Params,
    batch: Batch,
    *,
    key: Key,
    adapts: trees.PathPredicate | None = None,
    tolerance: float = 1e-2,
) -> None:
    """Refuses a model and a loss that adjoints with mixed gradients would differentiate wrongly.

    Args:
      model: the network.
      loss: the inner loss.
      params: the model's parameters.
      batch: a support set of one task.
      key: draws the direction in which derivatives are compared.
      adapts: Predicate of the leaves that the learner moves; all but running averages if None.
      tolerance: the largest `mixed_mode_error` to let pass; rounding alone stays well under 0.01 in float32.

    Raises:
      ValueError: with the error measured, or where mixed mode does not work at all.
    """
    adapted, fixed = trees.split(params, moving(model, adapts))
    remedy = "Use the adjoint 'reverse', or 'remat' for less memory."
    try:
        error = mixed_mode_error(support_loss(model, loss), adapted, (fixed, batch), key=key)
    except TypeError as refusal:
        raise ValueError(
            f"Mixed mode cannot differentiate this model and loss ({refusal}). {remedy}"
        ) from refusal
    # Written so that a NaN does not pass.
    if not error <= tolerance:
        raise ValueError(
            f"Mixed mode differs from reverse mode by {error:.2g}, and {tolerance:.2g} is allowed: a custom "
            "derivative in the model or the loss (a straight-through estimator, a clipped or reversed "
            f"gradient) is that of no function, so that second derivatives are not symmetric. {remedy}"
        )


def check_known(loss: Callable[[Params], Array], params: Params, batch: Batch) -> None:
    """Lets a loss refuse labels whose values are known, which inner steps, being compiled, do not show it."""
    if not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(batch.targets)):
        jax.eval_shape(loss, params)


def moving(model: Model, adapts: trees.PathPredicate | None) -> trees.PathPredicate:
    """The leaves that inner steps move: those asked for, or if None all but the model's running averages."""
    return trees.but(model.parts.averages) if adapts is None else adapts


def _whole(adapted: Params, row: Params, fixed: Params) -> Params:
    return trees.merge(adapted, fixed if row is None else trees.merge(row, fixed))


def support_loss(model: Model, loss: LossFn) -> InnerLoss:
    """The inner loss of the leaves that adapt: (adapted, (fixed leaves, batch)) -> scalar."""

    def of_adapted(adapted, fixed_and_batch):
        fixed, batch = fixed_and_batch
        return loss(model.apply(trees.merge(adapted, fixed), batch.inputs), batch)

    return of_adapted
