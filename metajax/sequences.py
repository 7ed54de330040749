"""Learning online: every example of a task is answered before its label is read."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from metajax import trees
from metajax.objectives import MetricFn
from metajax.types import Array, Batch, Episode, Key, Learner, LossFn, Meta, Metrics, Objective


def sequence_objective(
    learner: Learner,
    loss: LossFn,
    *,
    presentations: int,
    metrics: Mapping[str, MetricFn] | None = None,
    encode: Callable[[Meta, Array], Array] | None = None,
) -> Objective:
    """Presents the support set one example after another, in an order drawn by the key; queries stay unused.

    Each example is first answered, and then adapted to with its label. The outer loss is the mean over all
    answers, that to the first example of a class among them, which can only be guessed.

    Args:
      learner: whose fast state keeps its shape from the first example on, as that of `reading` and of
        gradient learners does.
      loss: of one answer [1, ...].
      presentations: K, how often each class comes: the episode's shots.
      metrics: named functions of one answer and its batch of one. `name_at_k` is the mean over those examples
        that are the k-th of their class, for k from 1 to `presentations`; and `name` is `name_at_2`.
      encode: (meta, inputs [n, ...]) -> features [n, ...] of each input by itself, for a learner that takes
        features where others take inputs. All are encoded together then, before the first is presented, and
        not each by itself when it is answered and again when its label is read.

    Returns:
      `(meta, key, episode) -> (loss, metrics)`. The key is consumed.

    Reference: Santoro et al., 2016 (https://arxiv.org/abs/1605.06065), section 2, figure 1.
    """
    if presentations < 2:
        raise ValueError(f"presentations is {presentations}; use 2 or more.")
    named = {**(metrics or {}), "loss": loss}

    def objective(meta: Meta, key: Key, episode: Episode) -> tuple[Array, Metrics]:
        start_key, order_key, adapt_key = jax.random.split(key, 3)
        support = episode.support
        if support.weights is not None:
            raise ValueError("The support set has weights; draw tasks of one size for a sequence.")
        count = support.targets.shape[0]
        order = jax.random.permutation(order_key, count)
        inputs, targets = trees.take(support.inputs, order), support.targets[order]
        if encode is not None:
            inputs = encode(meta, inputs)

        def step(fast, presented):
            x, y, key = presented
            batch = Batch(jax.tree.map(lambda leaf: leaf[None], x), y[None])
            outputs = learner.predict(meta, fast, batch.inputs)
            values = {name: metric(outputs, batch) for name, metric in named.items()}
            return learner.adapt(meta, fast, key, batch), values

        keys = jax.random.split(adapt_key, count)
        fast = learner.start(meta, start_key, Batch(inputs, targets))
        _, values = jax.lax.scan(step, fast, (inputs, targets, keys))
        same = (targets[:, None] == targets) & jnp.tri(count, k=-1, dtype=bool)
        earlier = jnp.sum(same, axis=1)
        found = {"loss": jnp.mean(values.pop("loss"))}
        for name, of_each in values.items():
            for k in range(presentations):
                here = earlier == k
                found[f"{name}_at_{k + 1}"] = jnp.sum(of_each * here) / jnp.sum(here)
            found[name] = found[f"{name}_at_2"]
        return found["loss"], found

    return objective
