"""Forgetting: steps that also lead back to where a task started, as far as training finds useful."""

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metajax.inner.rules.base import learned_transformation
from metajax.types import Params

Tree = Any


class DecayToStart(NamedTuple):
    """What there is to learn about forgetting, both shaped like the adapted params.

    Attributes:
      rates: step sizes.
      logits: of the decays, which this keeps between 0 and 1.
    """

    rates: Tree
    logits: Tree

    @property
    def decays(self) -> Tree:
        """The share of the way back to the start that one step takes."""
        return jax.tree.map(jax.nn.sigmoid, self.logits)


def decay_to_start(
    learning_rate: float, decay: float, *, per: Literal["leaf", "parameter"] = "leaf"
) -> optax.GradientTransformationExtraArgs:
    """Gradient descent that forgets: each step goes a learned share of the way back to the start.

    For streams, where `adapt` is called again and again and what is to be learned may change unannounced.
    What was learned then fades unless it is learned again, with a memory of about 1 / decay steps; where
    nothing changes, training can make the decay vanish. The start is that of the task, `meta.params`, which
    training moves to where forgetting should lead.

    Args:
      learning_rate: the step size that training starts from; it may turn negative.
      decay: the share that training starts from, between 0 and 1 and neither: it is learned as its logit,
        `decay = sigmoid(logit)`, so that no step passes the start or moves away from it, and at 0 and 1 the
        logit would be infinite. A first decay near 0 or 1 changes slowly in training.
      per: a rate and a decay a leaf of the tree, or one a parameter.

    Returns:
      A rule with `params <- params - learning_rate * grads - decay * (params - start)`, which learns a
      `Forgetting`, and whose state is `start`, the parameters it was initialised with.

    Raises:
      ValueError: where `decay` is not between 0 and 1, or `per` is neither of its values.

    References:
      the pull to the start: Li et al., 2018 (https://arxiv.org/abs/1802.01483), section 3, L2-SP; taken here
      apart from the gradient, as weight decay is in Loshchilov and Hutter, 2019
      (https://arxiv.org/abs/1711.05101).
      learned decays within a task: Baik et al., 2020 (https://arxiv.org/abs/2011.00209), section 3.
    """
    shapes = {"leaf": lambda leaf: (), "parameter": jnp.shape}
    if per not in shapes:
        raise ValueError(f"per is {per!r}; use one of {', '.join(map(repr, shapes))}.")
    if not 0 < decay < 1:
        raise ValueError(
            f"decay is {decay}; use a number between 0 and 1, such as 1e-3 for hardly any forgetting."
        )

    def init(params: Params) -> DecayToStart:
        def filled(value):
            return jax.tree.map(lambda p: jnp.full(shapes[per](p), value, p.dtype), params)

        return DecayToStart(filled(learning_rate), filled(math.log(decay) - math.log1p(-decay)))

    # The start is a copy, since a buffer that is both params and start could not be donated.
    return learned_transformation(init, _update, lambda params: jax.tree.map(jnp.copy, params))


def _update(
    learned: DecayToStart, grads: Params, start: Params, params: Params | None, **extra: Any
) -> tuple[Params, Params]:
    del extra
    if params is None:
        raise ValueError("params is None; pass the current ones, which forgetting pulls back.")
    updates = jax.tree.map(
        lambda grad, p, start, learning_rate, decay: -learning_rate * grad - decay * (p - start),
        *(grads, params, start, learned.rates, learned.decays),
    )
    return updates, start
