"""Learners that adapt near a meta-learned start, differentiated where adaptation ends: implicit MAML."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metajax import trees
from metajax.inner.hoist import hoist, reads_outside
from metajax.inner.implicit_argmin import argmin
from metajax.inner.linear_solvers import DEFAULT_SOLVER, LinearSolver
from metajax.inner.rules.base import as_rule
from metajax.inner.scalars import Positive, as_positive
from metajax.learners.gradient.base import (
    GradientFast,
    GradientMeta,
    check_known,
    gradient_learner,
    moving,
    support_loss,
)
from metajax.learners.states import skipping_empty
from metajax.types import Array, Batch, Key, Learner, LossFn, Model, Params, Tree


class ImplicitMeta(NamedTuple):
    """What implicit MAML learns across tasks.

    Attributes:
      params: initial parameters, to which tasks are pulled.
      rule: those of the inner rule, which get no gradient.
      regularization: the logarithm of a learned strength, a scalar; () where it is fixed.
    """

    params: Params
    rule: Params
    regularization: Any


class _Operands(NamedTuple):
    """What the minimum of a task depends on, and the rule that finds it."""

    loss: Params
    anchor: Params
    regularization: Array | float
    rule: Params


def imaml(
    model: Model,
    loss: LossFn,
    *,
    rule: optax.GradientTransformation,
    steps: int = 16,
    regularization: float | Positive = 2.0,
    solver: LinearSolver = DEFAULT_SOLVER,
    adapts: trees.PathPredicate | None = None,
    tolerance: float | None = None,
) -> Learner[ImplicitMeta, GradientFast]:
    """Implicit MAML: a task minimises its support loss near the start, from which only the end is remembered.

    Adapting minimises loss(params) + strength / 2 * |params - start|^2, eq. 4. The derivative of where that
    ends with respect to the start is (I + H / strength)^-1, eq. 6, with H the Hessian of the support loss
    there. It is exact at a minimum, where the strength is larger than minus the smallest eigenvalue of H and
    the solver solves its system; short of either, it is off in proportion. Memory is that of one inner
    step, however many there are.

    Calling `adapt` again continues from where the fast state was, and is pulled to the same start. The
    minimum is that of the last batch alone, and so is the gradient.

    Args:
      model: the network.
      loss: the inner loss; a model and a loss that `check_mixed` refuses are differentiated wrongly.
      rule: the inner solver: an optax transformation, line searches included; `inner.implicit.hessian_free()`
        takes Newton's steps. Its step size is that of the loss and the proximal term together. What a rule
        learns has no influence on a minimum: its gradient is zero.
      steps: inner steps each call of `adapt` takes. 0 adapts nothing and still is differentiated as a
        minimum, which the start is not: no true gradient, as for any number that does not converge.
      regularization: Strength of the pull to the start, above minus the smallest eigenvalue of H; or
        `metajax.learned(2.0)`, whose gradient is implicit too.
      solver: of the linear system (I + H / strength) u = v of the backward pass, eq. 7; damping counts
        relative to this 1. Networks want some, as away from a minimum their Hessians may be
        indefinite: the authors' system, at strength 2 and up to an overall factor, has a damping of 11.
        `identity()` is first order: the gradient at the adapted parameters, as it is.
      adapts: Predicate of the leaves that move, by path; all but the model's running averages if None. The
        others stay as meta-learned, and their gradient is implicit as well.
      tolerance: warns (RuntimeWarning) of a relative residual of that system that is larger, or NaN.

    Returns:
      A learner with `ImplicitMeta` and `GradientFast`.

    Reference: Rajeswaran et al., 2019 (https://arxiv.org/abs/1909.04630), algorithms 1 and 2; on Omniglot 16
    steps, strength 2 and five steps of conjugate gradients.
    """
    regularization = as_positive(regularization, name="strength")
    unrolled = gradient_learner(model, loss, rule=rule, steps=steps, adapts=adapts)
    rule, adapts = as_rule(rule), moving(model, adapts)

    def init(key: Key, inputs: Tree) -> ImplicitMeta:
        meta = unrolled.init(key, inputs)
        parameter = regularization.init(trees.float_dtype(meta.params))
        return ImplicitMeta(meta.params, meta.rule, parameter)

    def start(meta: ImplicitMeta, key: Key, like: Batch | None = None) -> GradientFast:
        return unrolled.start(_without_strength(meta), key, like)

    def adapt(meta: ImplicitMeta, fast: GradientFast, key: Key, batch: Batch) -> GradientFast:
        del key
        anchor, fixed = trees.split(meta.params, adapts)

        batch_loss = support_loss(model, loss)
        check_known(lambda params: batch_loss(params, (fixed, batch)), fast.params, batch)
        loss_of, loss_operands = batch_loss, (fixed, batch)
        if jax.tree.leaves(fixed) or reads_outside(loss_of, fast.params, loss_operands):
            loss_operands, loss_of = hoist(loss_of, fast.params, loss_operands)

        # Over the strength, it has the same minimum, and the Hessian of eq. 6.
        def objective(params, operands):
            return loss_of(params, operands.loss) / operands.regularization + _distance(
                params, operands
            )

        def solve(operands, fast: GradientFast):
            def value_fn(params):
                pull = operands.regularization * _distance(params, operands)
                return loss_of(params, operands.loss) + pull

            update = functools.partial(rule.update, operands.rule)
            params, *others = _minimise(value_fn, update, fast, steps=steps)
            return params, others

        operands = _Operands(
            loss_operands, anchor, regularization.value(meta.regularization), meta.rule
        )
        options = {"solver": solver, "tolerance": tolerance, "has_aux": True}
        params, others = argmin(objective, solve, fast, operands, **options)
        return GradientFast(params, *others)

    def predict(meta: ImplicitMeta, fast: GradientFast, inputs: Tree) -> Tree:
        return unrolled.predict(_without_strength(meta), fast, inputs)

    return Learner(init, start, skipping_empty(adapt, predict, loss), predict, unrolled.adapted)


def _minimise(
    value_fn: Callable[[Params], Array],
    update: Callable[..., tuple[Params, optax.OptState]],
    fast: GradientFast,
    *,
    steps: int,
) -> GradientFast:
    def step(_, fast):
        value, grads = jax.value_and_grad(value_fn)(fast.params)
        updates, opt_state = update(
            grads, fast.opt_state, fast.params, value=value, grad=grads, value_fn=value_fn
        )
        params = optax.apply_updates(fast.params, updates)
        return fast._replace(params=params, opt_state=opt_state, step=fast.step + 1)

    return jax.lax.fori_loop(0, steps, step, fast)


def _distance(params: Params, operands: _Operands) -> Array:
    """Half the squared distance from the start."""
    differences = jax.tree.map(jnp.subtract, params, operands.anchor)
    return 0.5 * optax.tree.norm(differences, squared=True)


def _without_strength(meta: ImplicitMeta) -> GradientMeta:
    return GradientMeta(params=meta.params, rule=meta.rule)
