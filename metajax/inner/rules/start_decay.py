"""Decay to the start: inner steps that also move back to the initial parameters, by a learned share."""

import math
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from metajax.deprecation import renamed_arguments, renamed_attributes
from metajax.inner.rules.base import learned_transformation
from metajax.types import Params

Tree = Any


class DecayToStart(NamedTuple):
    """Learned parameters of `decay_to_start`, two trees with one array per leaf of the adapted parameters.

    Attributes:
      rates: Step sizes, scalars or arrays like the leaves.
      logits: Logits of the decays, which keep the decays between 0 and 1.
    """

    rates: Tree
    logits: Tree

    @property
    def decays(self) -> Tree:
        """Shares of the way back to the start that one step takes, in (0, 1)."""
        return jax.tree.map(jax.nn.sigmoid, self.logits)


@renamed_arguments(rate="learning_rate")
def decay_to_start(
    learning_rate: float, decay: float, *, per: Literal["leaf", "parameter"] = "leaf"
) -> optax.GradientTransformationExtraArgs:
    """Makes a rule that forgets: gradient descent whose steps also move a learned share back to the start.

    It is meant for streams, where `adapt` is called again and again and the task may change unannounced. What
    was learned fades unless it is learned again, with a memory of about 1 / decay steps; if nothing changes,
    training can make the decay vanish. The start is the task's, `meta.params`, which training moves to where
    forgetting should lead.

    Args:
      learning_rate: Step size that training starts from; it may turn negative.
      decay: Decay that training starts from, strictly between 0 and 1. It is learned as its logit, `decay =
        sigmoid(logit)`, so that no step passes the start or moves away from it; a first decay near 0 or 1
        changes slowly in training.
      per: Sharing of rates and decays: "leaf" learns one of each per leaf of the tree, "parameter" one per
        parameter.

    Returns:
      A rule with `params <- params - rate * grads - decay * (params - start)`. Its learned parameters are a
      `DecayToStart`; its state is `start`, the parameters that it was initialized with.

    Raises:
      ValueError: If `decay` is not between 0 and 1, or `per` is unknown.

    Example:
      >>> rule = decay_to_start(0.1, 0.25)
      >>> state = rule.init(jnp.zeros(2))
      >>> updates, _ = rule.update(jnp.zeros(2), state, jnp.ones(2))
      >>> updates.tolist()
      [-0.25, -0.25]

    References:
      decay to the start: Li et al., 2018 (https://arxiv.org/abs/1802.01483), section 3, L2-SP; separate from
      the gradient here, as weight decay is in Loshchilov and Hutter, 2019 (https://arxiv.org/abs/1711.05101).
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
    """Computes the updates of one step; the start stays as it is."""
    del extra
    if params is None:
        raise ValueError("params is None; pass the current ones, which decay to their start.")
    chex.assert_trees_all_equal_shapes(grads, params, start)
    updates = jax.tree.map(
        lambda grad, p, start, learning_rate, decay: -learning_rate * grad - decay * (p - start),
        *(grads, params, start, learned.rates, learned.decays),
    )
    return updates, start


__getattr__ = renamed_attributes(
    __name__,
    {"Forgetting": f"{__name__}.DecayToStart", "forgetting": f"{__name__}.decay_to_start"},
)
