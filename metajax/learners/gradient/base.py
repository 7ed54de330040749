"""The learner that adapts by gradient steps; MAML and its family are special cases of it.

The inner loop minimizes the support loss: theta_{i+1} = rule(theta_i, grad L_support(theta_i)). The pieces of
a learner are the leaves that adapt, the inner rule, and the adjoint that differentiates through the steps.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

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
    """Meta-parameters of a gradient learner.

    Attributes:
      params: Initial parameters of the model.
      rule: Learned parameters of the inner rule; () if it has none.
    """

    params: Params
    rule: Params


class GradientFast(NamedTuple):
    """Fast state of a gradient learner.

    Attributes:
      params: Adapted parameters; None in place of leaves that do not adapt.
      opt_state: State of the inner rule.
      step: Number of inner steps taken so far, an int scalar.
    """

    params: Params
    opt_state: optax.OptState
    step: Array


class _Operands(NamedTuple):
    """Operands of the inner steps, which no step changes.

    Attributes:
      constant: Operands of the loss in every step: a `_Constant`, or the results hoisted out of the steps.
      rows: Leaves [S, ...], of which step i uses row i.
      batch: Examples from which minibatches are taken; None without minibatches.
      minibatches: Indices [steps, M] of the examples of each step of this call, or None.
      first: Number of this call's first step.
      rule: Learned parameters of the rule.
    """

    constant: Params
    rows: Params
    batch: Batch | None
    minibatches: Array | None
    first: Array
    rule: Params


class _State(NamedTuple):
    """State of the inner loop in addition to the parameters.

    Attributes:
      opt_state: State of the inner rule.
      step: Number of inner steps taken so far.
    """

    opt_state: optax.OptState
    step: Array


class _Step(NamedTuple):
    """Operands of the loss in one step.

    Attributes:
      rows: Rows of the step; None without per-step leaves.
      batch: Minibatch of the step; None without minibatches.
    """

    rows: Params
    batch: Batch | None


class _Constant(NamedTuple):
    """Operands of the loss in every step.

    Attributes:
      fixed: Leaves that do not adapt.
      batch: Support set; None if steps have minibatches.
    """

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

    Learners that differ only in `steps` share their meta-parameters: train with one number, test with
    another. Adapting piece by piece takes the steps on one piece after another, which differs from adapting
    to the whole. A batch without any weight moves nothing.

    Args:
      model: Network.
      loss: Inner loss.
      rule: Inner rule, an optax transformation. Its learned parameters become `meta.rule`: `learned_rates`,
        for example, alone or inside `optax.chain`, `optax.masked` or `optax.partition`.
      steps: Number of inner steps per call of `adapt`, continuing from the fast state; 0 adapts nothing.
      adapts: Predicate of the leaves that adapt, by path; None for all except the model's running averages.
        All other leaves keep their meta-learned values, and the parts of the loss that depend on them alone
        are computed once per task.
      begin: Function from the meta-learned values of the adapting leaves to their values at the start of a
        task.
      per_step: Leaves that are learned separately for each inner step; they must not adapt.
      minibatch: Number of support examples per step, drawn without replacement, in one shuffled pass over the
        batch after another; each call of `adapt` starts a new pass. None uses all examples in every step.
      adjoint: Method to differentiate through the steps; `metajax.ADJOINTS` lists them. The default is exact
        for every loss and needs the most memory. Before using a mixed adjoint, see `check_mixed`.

    Returns:
      A learner with meta-parameters `GradientMeta` and fast state `GradientFast`. The gradient with respect
      to the meta-parameters flows through every inner step, second-order terms included, unless the rule or
      the adjoint stops it.

    Raises:
      ValueError: If `steps` is negative or `minibatch` below 1.

    Example:
      >>> task = metajax.toys.toy_episode(jax.random.key(0))
      >>> is_head = metajax.trees.under("head")
      >>> learner = gradient_learner(
      ...     metajax.toys.toy_model(3), metajax.cross_entropy, rule=optax.sgd(0.1), steps=2, adapts=is_head)
      >>> meta = jax.eval_shape(learner.init, jax.random.key(1), task.support.inputs)
      >>> answer = lambda meta: metajax.objectives.query_outputs(learner, meta, jax.random.key(2), task)
      >>> jax.eval_shape(answer, meta).shape
      (12, 3)

    Reference: Finn et al., 2017 (https://arxiv.org/abs/1703.03400), eq. 1.
    """
    if steps < 0:
        raise ValueError(f"steps is {steps}; use 0 or more.")
    if minibatch is not None and minibatch < 1:
        raise ValueError(f"minibatch is {minibatch}; use 1 or more, or None for all examples.")
    inner_rule, adapts = as_rule(rule), moving(model, adapts)

    def parts(meta: GradientMeta) -> tuple[Params, Params, Params]:
        """Splits parameters into starting values of adapting leaves, per-step leaves, and fixed leaves."""
        adapted, fixed = trees.split(meta.params, adapts)
        rows, fixed = split_rows(fixed, per_step) if per_step else (None, fixed)
        return begin(adapted), rows, fixed

    def init(key: Key, inputs: Tree) -> GradientMeta:
        params = trees.require_floats(model.init(key, inputs))
        adapted, fixed = trees.split(params, adapts)
        if per_step:
            params = trees.merge(adapted, stack_rows(fixed, per_step))
        return GradientMeta(params, inner_rule.init(adapted))

    def start(meta: GradientMeta, key: Key, like: Batch | None = None) -> GradientFast:
        del key, like
        adapted, *_ = parts(meta)
        trees.require_floats(adapted)
        return GradientFast(adapted, inner_rule.start(adapted), jnp.zeros((), jnp.int32))

    def read(operands: _Operands, step: Array) -> tuple[_Step, Params]:
        """Selects the operands of one step: its rows and its minibatch."""
        batch = None
        if operands.minibatches is not None and operands.batch is not None:
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
            assert shown is not None, (
                "either every step has a minibatch, or all have the whole batch"
            )
            whole = _whole(params, step.rows, constant.fixed)
            return loss(model.apply(whole, shown.inputs), shown)

        step_loss: InnerLoss = inner_loss
        first, constant = read(operands, fast.step)
        changing = fast.params, first
        # Partial evaluation: results that depend on no adapting leaf and no step are computed once, before
        # the loop. It also turns traced values that the loss closes over into operands, as mixed gradients,
        # a custom derivative, require.
        if jax.tree.leaves(fixed) or (
            adjoint.gradient == "mixed" and reads_outside(inner_loss, changing, constant)
        ):
            constant, step_loss = hoist(inner_loss, changing, constant)
            operands = operands._replace(constant=constant)

        def loss_of(params: Params, step_and_constant: tuple[_Step, Params]) -> Array:
            step, constant = step_and_constant
            return step_loss((params, step), constant)

        def update(
            operands: _Operands, grads: Params, params: Params, state: _State
        ) -> tuple[Params, _State]:
            params, opt_state = take_step(
                inner_rule,
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
        # Queries use the row of the last step taken: the parameters were trained with it last.
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

    Mixed mode relies on symmetric second derivatives, which a custom derivative may break.

    Args:
      model: Network.
      loss: Inner loss.
      params: Parameters of the model.
      batch: Support set of one task.
      key: Random key of the direction in which derivatives are compared; consumed.
      adapts: Predicate of the leaves that adapt, by path; None for all except running averages.
      tolerance: Largest `mixed_mode_error` to accept; rounding alone stays well below 0.01 in float32.

    Raises:
      ValueError: If the error exceeds the tolerance or is NaN, or mixed mode does not work at all.

    Example:
      >>> model, task = metajax.toys.toy_model(3), metajax.toys.toy_episode(jax.random.key(0))
      >>> params = model.init(jax.random.key(1), task.support.inputs)
      >>> check_mixed(model, metajax.cross_entropy, params, task.support, key=jax.random.key(2))
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
            "gradient) is not the derivative of any function, so second derivatives are not symmetric. "
            f"{remedy}"
        )


def check_known(loss: Callable[[Params], Array], params: Params, batch: Batch) -> None:
    """Evaluates the loss eagerly once, so that it can refuse labels whose values are known.

    Inner steps are compiled, and labels are abstract there.

    Args:
      loss: Function of the parameters that computes the support loss of `batch`.
      params: Parameters; only their shapes are used.
      batch: Support set.
    """
    if not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(batch.targets)):
        jax.eval_shape(loss, params)


def moving(model: Model, adapts: trees.PathPredicate | None) -> trees.PathPredicate:
    """Returns the predicate of the leaves that adapt.

    Args:
      model: Network, which names its running averages.
      adapts: Predicate that the user chose, or None.

    Returns:
      `adapts`; if None, a predicate of all leaves except the running averages.
    """
    return trees.but(model.parts.averages) if adapts is None else adapts


def _whole(adapted: Params, row: Params, fixed: Params) -> Params:
    """Merges adapted, per-step and fixed leaves into the parameters of the model."""
    return trees.merge(adapted, fixed if row is None else trees.merge(row, fixed))


def support_loss(model: Model, loss: LossFn) -> InnerLoss:
    """Makes the inner loss as a function of the adapting leaves.

    Args:
      model: Network.
      loss: Loss of the outputs.

    Returns:
      A function (adapting leaves, (fixed leaves, batch)) -> scalar.
    """

    def of_adapted(adapted, fixed_and_batch):
        fixed, batch = fixed_and_batch
        return loss(model.apply(trees.merge(adapted, fixed), batch.inputs), batch)

    return of_adapted
