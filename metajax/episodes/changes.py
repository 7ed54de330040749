"""Augmentation of whole tasks: mixed classes, randomly projected inputs, wrong labels.

Pass them to a `GroupSampler` as `changes=`; options are bound with `functools.partial`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from metajax import trees
from metajax.types import Array, Episode, Key, Tree

# (key, episode, ways) -> episode; the key is consumed. Both batches of the episode are sorted by label, with
# the same number of examples per label.
TaskFn = Callable[[Key, Episode, int], Episode]


def mix_classes(key: Key, episode: Episode, ways: int, *, alpha: float = 0.5) -> Episode:
    """Replaces each class by a blend of its inputs with the inputs of another class of the task.

    Support and query inputs of a class are blended with the same other class by the same share. The share of
    the class itself is at least one half, so that the N classes stay different.

    Args:
      key: Random key, consumed.
      episode: Task whose inputs are trees of floats, [N K, ...] and [N Q, ...], sorted by label.
      ways: Number of classes N.
      alpha: Parameter of the distribution Beta(alpha, alpha) of shares.

    Returns:
      The episode with blended inputs.

    Raises:
      ValueError: If an input is not a float, since categories have no blend.

    Example:
      >>> from metajax.toys import toy_episode
      >>> episode = toy_episode(jax.random.key(0), ways=3)
      >>> mix_classes(jax.random.key(1), episode, 3).support.inputs.shape
      (6, 2)

    Reference: mixup of tasks: Yao et al., 2021 (https://arxiv.org/abs/2007.13027), section 4; blended classes
    as new classes: Ni et al., 2021 (https://arxiv.org/abs/2010.07092), section 3.
    """
    _require_floats("mix_classes", episode)
    share_key, partner_key = jax.random.split(key)
    shares = jax.random.beta(share_key, alpha, alpha, (ways,), jnp.float32)
    shares = jnp.maximum(shares, 1 - shares)
    # One rotation of the classes by 1 to N - 1 places: no class is its own partner, and each is one partner.
    partners = (
        jnp.arange(ways) + jax.random.randint(partner_key, (), 1, max(ways, 2), jnp.int32)
    ) % ways

    def mixed(inputs: Array) -> Array:
        by_class = inputs.reshape(ways, -1, *inputs.shape[1:])
        share = shares.astype(inputs.dtype).reshape(-1, *[1] * (by_class.ndim - 1))
        return (share * by_class + (1 - share) * by_class[partners]).reshape(inputs.shape)

    return _map_inputs(lambda inputs: jax.tree.map(mixed, inputs), episode)


def project(key: Key, episode: Episode, ways: int) -> Episode:
    """Multiplies all inputs of a task by one random matrix, so that few classes make any number of tasks.

    Since no projection recurs, a learner can only learn how to learn. The matrix treats an image as one
    vector and mixes its pixels, so it suits networks without a notion of neighborhood, such as an MLP.

    Args:
      key: Random key, consumed.
      episode: Task whose inputs are trees of floats, [N K, ...] and [N Q, ...], with P numbers per example
        over all leaves.
      ways: Number of classes N; ignored.

    Returns:
      The episode with inputs of the same shapes, multiplied by a matrix [P, P] of normal numbers with
      standard deviation P^-1/2, which keeps their expected size.

    Raises:
      ValueError: If an input is not a float.

    Example:
      >>> from metajax.toys import toy_episode
      >>> episode = toy_episode(jax.random.key(0), ways=3)
      >>> project(jax.random.key(1), episode, 3).support.inputs.shape
      (6, 2)

    Reference: Kirsch et al., 2022 (https://arxiv.org/abs/2212.04458), section 4.1. The labels that they
    permute are permuted in every episode already.
    """
    del ways
    _require_floats("project", episode)
    flat, as_tree = ravel_pytree(trees.take(episode.support.inputs, 0))
    matrix = jax.random.normal(key, (flat.size, flat.size), flat.dtype) / flat.size**0.5

    def projected(inputs: Tree) -> Tree:
        vectors = jax.vmap(lambda example: ravel_pytree(example)[0])(inputs)
        return jax.vmap(as_tree)(vectors @ matrix)

    return _map_inputs(projected, episode)


def label_noise(key: Key, episode: Episode, ways: int, *, rate: float = 0.2) -> Episode:
    """Replaces support labels by other labels of the task, at random; queries keep theirs.

    Args:
      key: Random key, consumed.
      episode: Task whose support targets are labels, [N K] int; inputs are any tree.
      ways: Number of classes N.
      rate: Probability that a support label is replaced.

    Returns:
      The episode with some wrong support labels.

    Raises:
      ValueError: If the targets are not labels.

    Example:
      >>> from metajax.toys import toy_episode
      >>> episode = toy_episode(jax.random.key(0), ways=3)
      >>> noisy = label_noise(jax.random.key(1), episode, 3, rate=1.0)
      >>> bool((noisy.support.targets == episode.support.targets).any())
      False
    """
    flip_key, label_key = jax.random.split(key)
    targets = episode.support.targets
    dtypes = [str(leaf.dtype) for leaf in jax.tree.leaves(targets)]
    if not jax.tree_util.all_leaves([targets]) or "int" not in dtypes[0]:
        raise ValueError(
            f"label_noise needs an array of labels, and the targets are of {', '.join(dtypes)}; use another "
            "change."
        )
    wrong = jax.random.bernoulli(flip_key, jnp.float32(rate), targets.shape)
    steps = jax.random.randint(label_key, targets.shape, 1, max(ways, 2), jnp.int32)
    others = ((targets + steps) % ways).astype(targets.dtype)
    support = episode.support._replace(targets=jnp.where(wrong, others, targets))
    return episode._replace(support=support)


def _map_inputs(change: Callable[[Tree], Tree], episode: Episode) -> Episode:
    """Applies a function to the inputs of the support and the query set."""
    return Episode(*(batch._replace(inputs=change(batch.inputs)) for batch in episode))


def _require_floats(name: str, episode: Episode) -> None:
    """Raises ValueError if an input is not a float, such as a category."""
    inputs = episode.support.inputs
    for path, leaf in zip(trees.paths(inputs), jax.tree.leaves(inputs), strict=True):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(
                f"{name} needs inputs of floats, and {path or 'the input'} is {leaf.dtype}; embed it in the "
                f"sampler's view, or leave {name} out."
            )
