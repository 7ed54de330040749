"""Augmentation of whole tasks: classes mixed into new ones, projected inputs, labels that are wrong."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from metajax import trees
from metajax.types import Array, Episode, Key, Tree

# (key, episode, ways) -> episode. The episode's batches are sorted by label, with as many examples of each.
TaskFn = Callable[[Key, Episode, int], Episode]


def mix_classes(key: Key, episode: Episode, ways: int, *, alpha: float = 0.5) -> Episode:
    """Makes each class a new one: a blend of its inputs with those of another class of the task.

    Support and query inputs of a class are blended with the same class by the same share, at least a half, so
    that the N classes stay different ones. The share is of a Beta distribution.

    Args:
      key: Random key, consumed.
      episode: Task whose inputs are trees of floats, [N K, ...] and [N Q, ...].
      ways: N.
      alpha: Parameter of the distribution Beta(alpha, alpha) of shares.

    Raises:
      ValueError: An input is no float, and categories have no blend.

    Reference: mixup of tasks: Yao et al., 2021 (https://arxiv.org/abs/2007.13027), section 4; blended classes
    as new ones, Ni et al., 2021 (https://arxiv.org/abs/2010.07092), section 3.
    """
    _require_floats("mix_classes", episode)
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

    return _map_inputs(lambda inputs: jax.tree.map(mixed, inputs), episode)


def project(key: Key, episode: Episode, ways: int) -> Episode:
    """Multiplies all inputs of a task by one random matrix: few classes make any number of tasks.

    What is learned of such tasks can only be how to learn. An image is one vector to it and its pixels lose
    their places, so that it suits networks that know none, such as an MLP.

    Args:
      key: Random key, consumed.
      episode: Task whose inputs are trees of floats, [N K, ...] and [N Q, ...], P numbers an example over all
        leaves.
      ways: N.

    Returns:
      The episode with inputs of the same shapes, times a matrix [P, P] of deviation P^-1/2, which keeps their
      size.

    Raises:
      ValueError: An input is no float.

    Reference: Kirsch et al., 2022 (https://arxiv.org/abs/2212.04458), section 4.1; labels are permuted in
    each episode as it is.
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
    """Gives each support example another label of the task, by chance; queries keep theirs.

    Args:
      key: Random key, consumed.
      episode: Task whose targets are labels, int [N K] of the support set; inputs are any tree.
      ways: N.
      rate: Probability that a label is wrong.

    Raises:
      ValueError: Targets are no labels.
    """
    flip_key, label_key = jax.random.split(key)
    targets = episode.support.targets
    dtypes = [str(leaf.dtype) for leaf in jax.tree.leaves(targets)]
    if not jax.tree_util.all_leaves([targets]) or "int" not in dtypes[0]:
        raise ValueError(
            f"label_noise needs an array of labels, and the targets are of {', '.join(dtypes)}; leave it out."
        )
    wrong = jax.random.bernoulli(flip_key, jnp.float32(rate), targets.shape)
    steps = jax.random.randint(label_key, targets.shape, 1, max(ways, 2), jnp.int32)
    others = ((targets + steps) % ways).astype(targets.dtype)
    support = episode.support._replace(targets=jnp.where(wrong, others, targets))
    return episode._replace(support=support)


def _map_inputs(change: Callable[[Tree], Tree], episode: Episode) -> Episode:
    return Episode(*(batch._replace(inputs=change(batch.inputs)) for batch in episode))


def _require_floats(name: str, episode: Episode) -> None:
    """Raises ValueError where an input is no float, as categories are."""
    inputs = episode.support.inputs
    for path, leaf in zip(trees.paths(inputs), jax.tree.leaves(inputs), strict=True):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(
                f"{name} needs inputs of floats, and {path or 'the input'} is {leaf.dtype}; embed it in the "
                f"sampler's view, or leave {name} out."
            )
