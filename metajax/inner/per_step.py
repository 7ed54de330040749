"""What differs from one inner step to the next: parameters of each step by itself, and minibatches."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metajax import trees
from metajax.types import Array, Batch

Tree = Any


class PerStep(NamedTuple):
    """Leaves that are learned for each inner step by itself.

    Attributes:
      leaves: which, by path; among those that do not adapt.
      rows: for how many steps, S; all later steps share the last row.
      required: whether it is an error if there is no such leaf.

    Reference: Antoniou et al., 2019 (https://arxiv.org/abs/1810.09502), section 4, "per-step batch
    normalization weights and biases".
    """

    leaves: trees.PathPredicate
    rows: int
    required: bool = True


def split_rows(tree: Tree, per_step: PerStep) -> tuple[Tree, Tree]:
    """Splits a tree into the leaves of each step and the rest, as `trees.split` does."""
    return trees.split(tree, per_step.leaves, required=per_step.required)


def stack_rows(tree: Tree, per_step: PerStep) -> Tree:
    """Gives the leaves of each step their rows, [...] -> [S, ...], all alike at first."""
    if per_step.rows < 1:
        raise ValueError(f"rows is {per_step.rows}; use 1 or more, one for each inner step.")
    chosen, rest = split_rows(tree, per_step)
    rows = jax.tree.map(lambda leaf: jnp.repeat(leaf[None], per_step.rows, axis=0), chosen)
    return trees.merge(rows, rest)


def take_row(rows: Tree, step: Array) -> Tree:
    """Takes row `step` of all leaves [S, ...], the first or last one where there is none."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[jnp.clip(step, 0, leaf.shape[0] - 1)], rows)


def draw_minibatches(
    key: Array, weights: Array | None, examples: int, size: int, steps: int
) -> Array:
    """Draws minibatches without replacement, in one shuffled pass over the examples after another.

    Where fewer than M examples have weight, a minibatch is all of them, and then some again:
    `take_minibatch` gives those no weight.

    Args:
      key: consumed.
      weights: [B] as of a `Batch`; examples of weight zero are never drawn, unless all are.
      examples: B.
      size: M, examples a minibatch; a pass may end within one.
      steps: how many minibatches.

    Returns:
      [steps, M] int, places among the examples.
    """
    padding = (
        jnp.zeros(examples, jnp.float32) if weights is None else (weights == 0).astype(jnp.float32)
    )
    count = _count(weights, examples)

    def draw(position: Array) -> Array:
        # Padding sorts behind everything, and the pass ends before it.
        pass_key = jax.random.fold_in(key, position // count)
        shuffled = jax.random.uniform(pass_key, (examples,), jnp.float32)
        return jnp.argsort(shuffled + 2 * padding)[position % count]

    positions = jnp.arange(steps)[:, None] * jnp.minimum(size, count) + jnp.arange(size)
    return jax.vmap(jax.vmap(draw))(positions)


def take_minibatch(batch: Batch, places: Array) -> Batch:
    """Takes the examples [M] at these places, drawn by `draw_minibatches`."""
    taken = jax.tree.map(lambda leaf: jnp.asarray(leaf)[places], batch)
    if batch.weights is None:
        return taken
    first = jnp.arange(len(places)) < _count(batch.weights, len(batch.weights))
    return taken._replace(weights=taken.weights * first)


def _count(weights: Array | None, examples: int) -> Array | int:
    """How many examples have weight, at least one."""
    return examples if weights is None else jnp.maximum(jnp.sum(weights != 0), 1)
