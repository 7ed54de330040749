"""Learners that adapt by gradient descent: MAML and its family, as compositions of the same few parts."""

from typing import NamedTuple

import jax
import optax

from metajax import trees
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


def gradient_learner(
    model: Model,
    loss: LossFn,
    *,
    rule: Rule | optax.GradientTransformation,
    steps: int,
    adapts: trees.PathPredicate = trees.everything,
) -> Learner:
    """Adapts by `steps` steps of an inner rule on the support loss.

    Learners that differ in `steps` alone share their meta-parameters: train with one, test with another.

    Args:
      model: the network.
      loss: the inner loss.
      rule: how the adapted leaves move, an optax transformation or a `Rule` with learned parameters.
      steps: inner steps each call of `adapt` takes, from wherever the fast state was; 0 adapts nothing.
      adapts: which leaves of the parameters move, by path; the others stay as meta-learned.

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
        transform = rule.bind(meta.rule)

        def support_loss(adapted):
            return loss(model.apply(trees.merge(adapted, fixed), batch.inputs), batch)

        def step(fast, _):
            grads = jax.grad(support_loss)(fast.params)
            updates, opt_state = transform.update(grads, fast.opt_state, fast.params)
            return GradientFast(optax.apply_updates(fast.params, updates), opt_state), None

        return jax.lax.scan(step, fast, length=steps)[0]

    def predict(meta: GradientMeta, fast: GradientFast, inputs: Array) -> Array:
        _, fixed = trees.split(meta.params, adapts)
        return model.apply(trees.merge(fast.params, fixed), inputs)

    return Learner(init, start, adapt, predict)


def maml(
    model: Model, loss: LossFn, *, rule: Rule | optax.GradientTransformation, steps: int = 1
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

    Reference: Finn et al., 2017 (https://arxiv.org/abs/1703.03400), eq. 1 and algorithm 2.
    """
    return gradient_learner(model, loss, rule=rule, steps=steps)


def anil(
    model: Model,
    loss: LossFn,
    *,
    rule: Rule | optax.GradientTransformation,
    steps: int = 1,
    head: str = "head",
) -> Learner:
    """Almost no inner loop: only the last layer adapts, the body is shared as it is.

    Args:
      model: the network.
      loss: the inner loss.
      rule: the inner rule of the head.
      steps: inner steps.
      head: the name of the last layer, a component of its parameters' paths.

    Reference: Raghu et al., 2020 (https://arxiv.org/abs/1909.09157), section 4.
    """
    return gradient_learner(model, loss, rule=rule, steps=steps, adapts=trees.under(head))


def meta_sgd(model: Model, loss: LossFn, *, rate: float, steps: int = 1) -> Learner:
    """MAML whose step sizes, one a parameter, are meta-learned beside the start.

    Args:
      model: the network.
      loss: the inner loss.
      rate: where all step sizes start.
      steps: inner steps; the paper takes one.

    Reference: Li et al., 2017 (https://arxiv.org/abs/1707.09835), eq. 3 and algorithm 1.
    """
    return gradient_learner(model, loss, rule=learned_rates(rate), steps=steps)
