"""Implicit MAML: adaptation is a proximal problem, differentiated at its minimum by one linear system."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metajax import trees
from metajax.deprecation import renamed_arguments
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
    """Meta-parameters of implicit MAML.

    Attributes:
      params: Initial parameters, toward which every task is regularized.
      rule: Learned parameters of the inner rule, whose gradient is zero.
      strength: Logarithm of a learned regularization, a scalar; () if it is fixed.
    """

    params: Params
    rule: Params
    strength: Any


class _Operands(NamedTuple):
    """Operands of the proximal problem of a task.

    Attributes:
      loss: Operands of the support loss: fixed leaves and batch, or the results hoisted out of the steps.
      anchor: Meta-learned initial values of the adapting leaves.
      regularization: Factor lambda of the proximal term.
      rule: Learned parameters of the inner rule.
    """

    loss: Params
    anchor: Params
    regularization: Array | float
    rule: Params


@renamed_arguments(strength="regularization")
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
    """Adapts by minimizing the support loss plus a proximal term, with implicit meta-gradients: iMAML.

    With lambda for `regularization` and theta for the initialization, a task minimizes
    loss(phi) + lambda / 2 |phi - theta|^2, eq. 4. By the implicit function theorem d phi / d theta is
    (I + H / lambda)^-1, eq. 6, where H is the Hessian of the support loss at the minimum. This is exact at a
    minimum if lambda exceeds minus the smallest eigenvalue of H and the linear solver converges; otherwise
    the error is in proportion to the distance from either. Memory does not grow with the number of steps.

    Calling `adapt` again continues from the fast state, with the same theta. The minimum, and so the
    gradient, belongs to the last batch alone.

    Args:
      model: Network.
      loss: Inner loss. A model and a loss that `check_mixed` refuses are differentiated wrongly.
      rule: Inner optimizer: an optax transformation, line searches included; `metajax.inner.hessian_free()`
        takes Newton steps. Its step size applies to the loss and the proximal term together. A minimum does
        not depend on learned parameters of the rule, so their gradient is zero.
      steps: Number of inner steps per call of `adapt`. The gradient is a true gradient only if they converge;
        0 adapts nothing, and the initialization is treated as the minimum.
      regularization: Factor lambda of the proximal term, above 0, or `metajax.learned(2.0)`, whose gradient
        is implicit too.
      solver: Solver of the linear system (I + H / lambda) u = v of the backward pass, eq. 7. Its damping is
        added to this I. Networks need some damping, because their Hessian may be indefinite away from a
        minimum: the authors' code, at lambda = 2 and up to an overall factor, has a damping of 11.
        `metajax.inner.identity_solver()` is first order: u = v, the gradient at the adapted parameters.
      adapts: Predicate of the leaves that adapt, by path; None for all except the model's running averages.
        The other leaves keep their meta-learned values; their gradient is implicit as well.
      tolerance: Largest relative residual of the linear system without a RuntimeWarning; a residual of NaN
        warns too. None never warns.

    Returns:
      A learner with meta-parameters `ImplicitMeta` and fast state `GradientFast`.

    Raises:
      ValueError: If `regularization` is not above 0 or `steps` is negative.
      TypeError: If `rule` is not an optax transformation.

    Example:
      >>> task = metajax.toys.toy_episode(jax.random.key(0))
      >>> learner = imaml(metajax.toys.toy_model(3), metajax.cross_entropy, rule=optax.sgd(0.1), steps=16)
      >>> meta = jax.eval_shape(learner.init, jax.random.key(1), task.support.inputs)
      >>> answer = lambda meta: metajax.objectives.query_outputs(learner, meta, jax.random.key(2), task)
      >>> jax.eval_shape(answer, meta).shape
      (12, 3)

    Reference: Rajeswaran et al., 2019 (https://arxiv.org/abs/1909.04630), algorithms 1 and 2. On Omniglot the
    paper uses 16 steps, lambda = 2 and 5 steps of conjugate gradients.
    """
    strength = as_positive(regularization, name="regularization")
    unrolled = gradient_learner(model, loss, rule=rule, steps=steps, adapts=adapts)
    inner_rule, adapts = as_rule(rule), moving(model, adapts)

    def init(key: Key, inputs: Tree) -> ImplicitMeta:
        meta = unrolled.init(key, inputs)
        parameter = strength.init(trees.float_dtype(meta.params))
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

        def objective(params, operands):
            # Eq. 4 divided by lambda has the same minimum, and its Hessian is the matrix I + H / lambda of
            # eq. 6. The solver's damping is added to this matrix, so it is relative to the I.
            return loss_of(params, operands.loss) / operands.regularization + _distance(
                params, operands
            )

        def solve(operands, fast: GradientFast):
            # The steps descend on eq. 4 itself, undivided.
            def value_fn(params):
                pull = operands.regularization * _distance(params, operands)
                return loss_of(params, operands.loss) + pull

            update = functools.partial(inner_rule.update, operands.rule)
            params, *others = _minimize(value_fn, update, fast, steps=steps)
            return params, others

        operands = _Operands(loss_operands, anchor, strength.value(meta.strength), meta.rule)
        options = {"solver": solver, "tolerance": tolerance, "has_aux": True}
        params, others = argmin(objective, solve, fast, operands, **options)
        return GradientFast(params, *others)

    def predict(meta: ImplicitMeta, fast: GradientFast, inputs: Tree) -> Tree:
        return unrolled.predict(_without_strength(meta), fast, inputs)

    return Learner(init, start, skipping_empty(adapt, predict, loss), predict, unrolled.adapted)


def _minimize(
    value_fn: Callable[[Params], Array],
    update: Callable[..., tuple[Params, optax.OptState]],
    fast: GradientFast,
    *,
    steps: int,
) -> GradientFast:
    """Takes inner steps without recording them for the backward pass."""

    def step(_, fast):
        value, grads = jax.value_and_grad(value_fn)(fast.params)
        updates, opt_state = update(
            grads, fast.opt_state, fast.params, value=value, grad=grads, value_fn=value_fn
        )
        params = optax.apply_updates(fast.params, updates)
        return fast._replace(params=params, opt_state=opt_state, step=fast.step + 1)

    return jax.lax.fori_loop(0, steps, step, fast)


def _distance(params: Params, operands: _Operands) -> Array:
    """Computes half the squared distance from the initialization, |phi - theta|^2 / 2."""
    differences = jax.tree.map(jnp.subtract, params, operands.anchor)
    return 0.5 * optax.tree.norm(differences, squared=True)


def _without_strength(meta: ImplicitMeta) -> GradientMeta:
    """Drops the regularization, for the functions of the unrolled learner."""
    return GradientMeta(params=meta.params, rule=meta.rule)
