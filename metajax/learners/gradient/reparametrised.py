"""Learners that adapt few numbers or warped weights: a context, low-rank factors, weights under a warp."""

import jax
import jax.numpy as jnp
import optax

from metajax import trees
from metajax.inner.adjoints import ADJOINTS, Adjoint
from metajax.inner.reparametrise import VECTORS, low_rank, warped, with_context
from metajax.learners.gradient.base import GradientFast, GradientMeta, gradient_learner
from metajax.types import Learner, LossFn, Model


def cavia(
    model: Model,
    loss: LossFn,
    *,
    rule: optax.GradientTransformation,
    steps: int = 1,
    context_size: int = 100,
    modulates: trees.PathPredicate = VECTORS,
    adjoint: Adjoint = ADJOINTS["reverse"],
) -> Learner[GradientMeta, GradientFast]:
    """Adapts a context vector that modulates a shared network: fast context adaptation (CAVIA).

    The context phi starts at zero in each task and shifts the selected leaves: theta_task = theta + phi W.

    Args:
      model: Network.
      loss: Inner loss.
      rule: Inner rule of the context; the paper uses gradient descent with a step size of 1.
      steps: Number of inner steps.
      context_size: Length of the context vector.
      modulates: Predicate of the leaves that the context shifts, by path; scales and biases by default, which
        is FiLM in a network with norms.
      adjoint: Method to differentiate through the steps; `metajax.ADJOINTS` lists them.

    Returns:
      A learner with meta-parameters `GradientMeta`, whose `params` have entries `model`, `context` and
      `modulation`, and fast state `GradientFast`, whose `params` hold the context.

    Example:
      >>> task = metajax.toys.toy_episode(jax.random.key(0))
      >>> model, loss = metajax.toys.toy_model(3), metajax.cross_entropy
      >>> learner = cavia(model, loss, rule=optax.sgd(1.0), context_size=5)
      >>> meta = jax.eval_shape(learner.init, jax.random.key(1), task.support.inputs)
      >>> jax.eval_shape(learner.start, meta, jax.random.key(2)).params["context"].shape
      (5,)

    Reference: Zintgraf et al., 2019 (https://arxiv.org/abs/1810.03642), eq. 3 and 4.
    """
    return gradient_learner(
        with_context(model, context_size, modulates=modulates),
        loss,
        rule=rule,
        steps=steps,
        adapts=trees.below("context"),
        # Zero, not learned: a shift that is common to all tasks can be learned in the shared leaves.
        begin=lambda context: jax.tree.map(jnp.zeros_like, context),
        adjoint=adjoint,
    )


def lora(
    model: Model,
    loss: LossFn,
    *,
    rule: optax.GradientTransformation,
    steps: int = 1,
    rank: int = 4,
    kernels: trees.PathPredicate = trees.everything,
    adjoint: Adjoint = ADJOINTS["reverse"],
) -> Learner[GradientMeta, GradientFast]:
    """Adapts two thin factors per kernel, kernel + down @ up, from a meta-learned initialization.

    Args:
      model: Network.
      loss: Inner loss.
      rule: Inner rule of the factors.
      steps: Number of inner steps; the first moves only `up`, because `up` starts at zero.
      rank: Largest rank of the change of a kernel.
      kernels: Predicate of the kernels that get factors, by path; leaves of fewer than two axes get none.
      adjoint: Method to differentiate through the steps; `metajax.ADJOINTS` lists them.

    Returns:
      A learner with meta-parameters `GradientMeta`, whose `params` have entries `model` and `factors`, and
      fast state `GradientFast`, whose `params` hold the factors.

    Example:
      >>> task = metajax.toys.toy_episode(jax.random.key(0))
      >>> learner = lora(metajax.toys.toy_model(3), metajax.cross_entropy, rule=optax.sgd(0.1), rank=2)
      >>> meta = jax.eval_shape(learner.init, jax.random.key(1), task.support.inputs)
      >>> jax.eval_shape(learner.start, meta, jax.random.key(2)).params["factors"]["up"]["body"].shape
      (2, 8)

    Reference: Hu et al., 2022 (https://arxiv.org/abs/2106.09685), eq. 3.
    """
    return gradient_learner(
        low_rank(model, rank, kernels=kernels),
        loss,
        rule=rule,
        steps=steps,
        adapts=trees.below("factors"),
        adjoint=adjoint,
    )


def warpgrad(
    model: Model,
    loss: LossFn,
    *,
    rule: optax.GradientTransformation,
    steps: int = 1,
    kernels: trees.PathPredicate = trees.everything,
    adjoint: Adjoint = ADJOINTS["reverse"],
) -> Learner[GradientMeta, GradientFast]:
    """Adapts a network through meta-learned warp layers, which precondition its gradients.

    Each kernel K acts as K W with a linear warp W that does not adapt. A step on K then changes K W by
    -learning_rate * G W^T W, where G is the gradient with respect to K W. Warps start at the identity, where
    this is MAML. Trained by `query_objective`, it is the Warp-MAML of the paper.

    Args:
      model: Network.
      loss: Inner loss.
      rule: Inner rule of all leaves of the network except its running averages.
      steps: Number of inner steps.
      kernels: Predicate of the kernels that have a warp, by path; leaves of fewer than two axes have none.
      adjoint: Method to differentiate through the steps; `metajax.ADJOINTS` lists them.

    Returns:
      A learner with meta-parameters `GradientMeta`, whose `params` have entries `model` and `warp`, and fast
      state `GradientFast`.

    Example:
      >>> task = metajax.toys.toy_episode(jax.random.key(0))
      >>> learner = warpgrad(metajax.toys.toy_model(3), metajax.cross_entropy, rule=optax.sgd(0.1))
      >>> meta = learner.init(jax.random.key(1), task.support.inputs)
      >>> meta.params["warp"]["body"].shape
      (8, 8)

    Reference: Flennerhag et al., 2020 (https://arxiv.org/abs/1909.00025), eq. 6 and 11.
    """
    network = warped(model, kernels=kernels)
    return gradient_learner(
        network,
        loss,
        rule=rule,
        steps=steps,
        adapts=trees.but(trees.below("warp"), network.parts.averages),
        adjoint=adjoint,
    )
