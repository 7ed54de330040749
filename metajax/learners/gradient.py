"""Learners that adapt by gradient descent: MAML and its family, as compositions of the same few parts."""

from typing import NamedTuple

import jax
import optax

from metajax import trees
from metajax.inner.adjoints import ADJOINTS, Adjoint, InnerLoss, mixed_mode_error, unroll
from metajax.inner.hoist import hoist
from metajax.inner.rules import Rule, as_rule, learned_rates
from metajax.types import Array, Batch, Key, Learner, LossFn, Model, Params


class GradientMeta(NamedTuple):
    """What a gradient learner learns across tasks: initial parameters, and those of the inner rule."""

    params: Params
    rule: Params


class GradientFast(NamedTuple):
    """What one task leaves behind: the adapted leaves (None elsewhere) and the inner optimizer's state."""

    params: Params
    opt_state: optax.OptState


class _Operands(NamedTuple):
    """What inner steps read and do not change."""

    loss: Params
    rule: Params


def gradient_learner(
    model: Model,
    loss: LossFn,
    *,
    rule: Rule | optax.GradientTransformation,
    steps: int,
    adapts: trees.PathPredicate = trees.everything,
    adjoint: Adjoint = ADJOINTS["reverse"],
) -> Learner:
    """Adapts by `steps` steps of an inner rule on the support loss.

    Learners that differ in `steps` alone share their meta-parameters: train with one, test with another.

    Args:
      model: the network.
      loss: the inner loss.
      rule: how the adapted leaves move, an optax transformation or a `Rule` with learned parameters.
      steps: inner steps each call of `adapt` takes, from wherever the fast state was; 0 adapts nothing.
      adapts: which leaves of the parameters move, by path; the others stay as meta-learned,
        and what the loss computes from them alone is computed once a task.
      adjoint: how to differentiate through the steps; `inner.adjoints.ADJOINTS` names some. The default is
        exact for every loss and keeps the most in memory; before a mixed one, see `check_mixed`.

    Returns:
      A learner with `GradientMeta` and `GradientFast`. The gradient with respect to `meta` flows through
      every inner step, second-order terms included, unless the rule stops it.
    """
    if steps < 0:
        raise ValueError(f"steps is {steps}; use 0 or more.")
    rule = as_rule(rule)

    def init(key: Key, inputs: Array) -> GradientMeta:
        params = model.init(key, inputs)
        return GradientMeta(params, rule.init(trees.split(params, adapts)[0]))

    def start(meta: GradientMeta, key: Key) -> GradientFast:
        del key
        adapted, _ = trees.split(meta.params, adapts)
        return GradientFast(adapted, rule.bind(meta.rule).init(adapted))

    def adapt(meta: GradientMeta, fast: GradientFast, key: Key, batch: Batch) -> GradientFast:
        del key
        _, fixed = trees.split(meta.params, adapts)

        def update(operands, grads, fast):
            transform = rule.bind(operands.rule)
            updates, opt_state = transform.update(grads, fast.opt_state, fast.params)
            return GradientFast(optax.apply_updates(fast.params, updates), opt_state)

        inner_loss, loss_operands = _support_loss(model, loss), (fixed, batch)
        if jax.tree.leaves(fixed):
            loss_operands, inner_loss = hoist(inner_loss, fast.params, loss_operands)
        return unroll(
            adjoint,
            lambda params, operands: inner_loss(params, operands.loss),
            update,
            fast,
            _Operands(loss_operands, meta.rule),
            steps=steps,
        )

    def predict(meta: GradientMeta, fast: GradientFast, inputs: Array) -> Array:
        _, fixed = trees.split(meta.params, adapts)
        return model.apply(trees.merge(fast.params, fixed), inputs)

    return Learner(init, start, adapt, predict)


def check_mixed(
    model: Model,
    loss: LossFn,
    params: Params,
    batch: Batch,
    *,
    key: Key,
    adapts: trees.PathPredicate = trees.everything,
    tolerance: float = 1e-2,
) -> None:
    """Refuses a model and a loss that adjoints with mixed gradients would differentiate wrongly.

    Args:
      model: the network.
      loss: the inner loss.
      params: the model's parameters.
      batch: a support set of one task.
      key: draws the direction in which derivatives are compared.
      adapts: which leaves the learner moves.
      tolerance: the largest `mixed_mode_error` to let pass; rounding alone stays well under 0.01 in float32.

    Raises:
      ValueError: with the error measured, or where mixed mode does not work at all.
    """
    adapted, fixed = trees.split(params, adapts)
    remedy = "Use the adjoint 'reverse', or 'remat' for less memory."
    try:
        error = mixed_mode_error(_support_loss(model, loss), adapted, (fixed, batch), key=key)
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


def _support_loss(model: Model, loss: LossFn) -> InnerLoss:
    def support_loss(adapted, fixed_and_batch):
        fixed, batch = fixed_and_batch
        return loss(model.apply(trees.merge(adapted, fixed), batch.inputs), batch)

    return support_loss


def maml(
    model: Model,
    loss: LossFn,
    *,
    rule: Rule | optax.GradientTransformation,
    steps: int = 1,
    adjoint: Adjoint = ADJOINTS["reverse"],
) -> Learner:
    """Model-agnostic meta-learning: every parameter adapts, from a meta-learned start.

    First-order MAML is a rule, not a switch: `rule=optax.chain(stop_gradient(), optax.sgd(0.1))`.

    Args:
      model: the network.
      loss: the inner loss.
      rule: the inner rule; in the paper `optax.sgd`, of a step size for a *summed* loss (see
        `cross_entropy`). With `optax.adam` set `eps_root > 0`: the derivative of its square root is
        infinite at zero.
      steps: inner steps.
      adjoint: how to differentiate through them.

    Reference: Finn et al., 2017 (https://arxiv.org/abs/1703.03400), eq. 1 and algorithm 2.
    """
    return gradient_learner(model, loss, rule=rule, steps=steps, adjoint=adjoint)


def anil(
    model: Model,
    loss: LossFn,
    *,
    rule: Rule | optax.GradientTransformation,
    steps: int = 1,
    head: str = "head",
    adjoint: Adjoint = ADJOINTS["reverse"],
) -> Learner:
    """Almost no inner loop: only the last layer adapts, the body is shared as it is.

    Args:
      model: the network.
      loss: the inner loss.
      rule: the inner rule of the head.
      steps: inner steps.
      head: the name of the last layer, a component of its parameters' paths.
      adjoint: how to differentiate through the steps.

    Reference: Raghu et al., 2020 (https://arxiv.org/abs/1909.09157), section 4.
    """
    return gradient_learner(
        model, loss, rule=rule, steps=steps, adapts=trees.under(head), adjoint=adjoint
    )


def meta_sgd(
    model: Model,
    loss: LossFn,
    *,
    rate: float,
    steps: int = 1,
    adjoint: Adjoint = ADJOINTS["reverse"],
) -> Learner:
    """MAML whose step sizes, one a parameter, are meta-learned beside the start.

    Args:
      model: the network.
      loss: the inner loss.
      rate: where all step sizes start.
      steps: inner steps; the paper takes one.
      adjoint: how to differentiate through them.

    Reference: Li et al., 2017 (https://arxiv.org/abs/1707.09835), eq. 3 and algorithm 1.
    """
    return gradient_learner(model, loss, rule=learned_rates(rate), steps=steps, adjoint=adjoint)
