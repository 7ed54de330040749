"""Learners that adapt few numbers, or warped ones: a context, low-rank factors, weights below a warp."""

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
    """Fast context adaptation: a task is a vector, zero at first, that modulates a network all tasks share.

    Args:
      model: the network.
      loss: the inner loss.
      rule: the inner rule of the context; the paper takes gradient steps of size 1.
      steps: inner steps.
      context_size: numbers in the context.
      modulates: the leaves that the context shifts: scales and biases, which is FiLM in a network with norms.
      adjoint: how to differentiate through the steps.

    Reference: Zintgraf et al., 2019 (https://arxiv.org/abs/1810.03642), eq. 3 and 4.
    """
    return gradient_learner(
        with_context(model, context_size, modulates=modulates),
        loss,
        rule=rule,
        steps=steps,
        adapts=trees.below("context"),
        # Not learned: whatever it could say at the start of all tasks, the shared leaves say.
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
    """Low-rank adaptation: only two thin factors a kernel adapt, from a meta-learned start.

    Args:
      model: the network.
      loss: the inner loss.
      rule: the inner rule of the factors.
      steps: inner steps; the first moves `up` alone, while it is zero.
      rank: the rank of what is added to a kernel, at most.
      kernels: the kernels that get factors, by path.
      adjoint: how to differentiate through the steps.

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
    """Warped gradient descent: layers that never adapt lie between those that do, and bend their gradients.

    The warps are linear and start at the identity, where this is MAML. Trained by `query_objective` it is the
    paper's Warp-MAML.

    Args:
      model: the network.
      loss: the inner loss.
      rule: the inner rule of the network's own leaves but for its running averages.
      steps: inner steps.
      kernels: the kernels that a warp follows, by path.
      adjoint: how to differentiate through the steps.

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
