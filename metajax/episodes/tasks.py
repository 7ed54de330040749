"""Augmentation of whole tasks: classes mixed into new ones, projected inputs, labels that are wrong."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from metajax.types import Array, Episode, Key

# (key, episode, ways) -> episode. The episode's batches are sorted by label, with as many examples of each.
TaskFn = Callable[[Key, Episode, int], Episode]


def mix_classes(key: Key, episode: Episode, ways: int, *, alpha: float = 0.5) -> Episode:
    """Makes each class a new one: a blend of its images with those of another class of the task.

    Support and query images of a class are blended with the same class by the same share, at least a half, so
    that the N classes stay different ones. The share is of a Beta distribution.

    Args:
      key: consumed.
      episode: inputs [N K, ...] and [N Q, ...].
      ways: N.
      alpha: of the distribution Beta(alpha, alpha) of shares.

    Reference: mixup of tasks: Yao et al., 2021 (https://arxiv.org/abs/2007.13027), section 4; blended classes
    as new ones, Ni et al., 2021 (https://arxiv.org/abs/2010.07092), section 3.
    """
    share_key, partner_key = jax.random.split(key)
    shares = jax.random.beta(share_key, alpha, alpha, (ways,), jnp.float32)
    shares = jnp.maximum(shares, 1 - shares)
    partners = (
        jnp.arange(ways) + jax.random.randint(partner_key, (), 1, max(ways, 2), jnp.int32)
    ) % ways

    def mixed(inputs: Array) -> Array:
        by_class = inputs.reshape(ways, -1, *inputs.shape[1:])
        share = shares.astype(inputs.dtype).reshape(-1, *[1] * (by_class.ndim - 1))
        return (share * by_class + (1 - share) * by_class[partners]).reshape(inputs.shape)

    return Episode(*(batch._replace(inputs=mixed(batch.inputs)) for batch in episode))


def project(key: Key, episode: Episode, ways: int) -> Episode:
    """Multiplies all inputs of a task by one random matrix: few classes make any number of tasks.

    What is learned of such tasks can only be how to learn. An image is one vector to it and its pixels lose
    their places, so that it suits networks that know none, such as an MLP.

    Args:
      key: consumed.
      episode: inputs [N K, ...] and [N Q, ...] of P numbers each.
      ways: N.

    Returns:
      The episode with inputs of the same shape, times a matrix [P, P] of deviation P^-1/2, which keeps their
      size.

    Reference: Kirsch et al., 2022 (https://arxiv.org/abs/2212.04458), section 4.1; labels are permuted in
    each episode as it is.
    """
    del ways
    inputs = episode.support.inputs
    size = inputs[0].size
    matrix = jax.random.normal(key, (size, size), inputs.dtype) / size**0.5

    def projected(inputs: Array) -> Array:
        return (inputs.reshape(len(inputs), -1) @ matrix).reshape(inputs.shape)

    return Episode(*(batch._replace(inputs=projected(batch.inputs)) for batch in episode))


def label_noise(key: Key, episode: Episode, ways: int, *, rate: float = 0.2) -> Episode:
    """Gives each support example another label of the task, by chance; queries keep theirs.

    Args:
      key: consumed.
      episode: targets [N K] of the support set.
      ways: N.
      rate: the probability that a label is wrong.
    """
    flip_key, label_key = jax.random.split(key)
    targets = episode.support.targets
    wrong = jax.random.bernoulli(flip_key, jnp.float32(rate), targets.shape)
    steps = jax.random.randint(label_key, targets.shape, 1, max(ways, 2), jnp.int32)
    others = ((targets + steps) % ways).astype(targets.dtype)
    support = episode.support._replace(targets=jnp.where(wrong, others, targets))
    return episode._replace(support=support)
