"""Values that differ from one inner step to the next: learned per-step parameters, and minibatches."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metajax import trees
from metajax.types import Array, Batch

Tree = Any


class PerStep(NamedTuple):
    """Leaves of the parameters that are learned separately for each inner step.

    Attributes:
      leaves: Predicate of their paths; only leaves that do not adapt are considered.
      rows: Number of steps S with their own values, an int of 1 or more; later steps share the last row.
      required: Whether it is an error if no leaf is selected.

    Example:
      >>> norms = PerStep(metajax.trees.in_norms, rows=5)
      >>> norms.leaves("norm0/scale")
      True

    Reference: Antoniou et al., 2019 (https://arxiv.org/abs/1810.09502), section 4, "per-step batch
    normalization weights and biases".
    """

    leaves: trees.PathPredicate
    rows: int
    required: bool = True


def split_rows(tree: Tree, per_step: PerStep) -> tuple[Tree, Tree]:
    """Splits a tree into the per-step leaves and the rest.

    Args:
      tree: Tree of parameters that do not adapt.
      per_step: Selection of the per-step leaves.

    Returns:
      Two trees like `tree`, with None for each leaf of the other, as `trees.split` returns them.
    """
    return trees.split(tree, per_step.leaves, required=per_step.required)


def stack_rows(tree: Tree, per_step: PerStep) -> Tree:
    """Repeats each per-step leaf [...] to rows [S, ...], all equal at first.

    Args:
      tree: Tree of parameters that do not adapt.
      per_step: Selection of the per-step leaves, and their number of rows.

    Returns:
      The tree, with per-step leaves of one more axis.

    Raises:
      ValueError: If `per_step.rows` is below 1, or no leaf is selected though one is required.
    """
    if per_step.rows < 1:
        raise ValueError(f"rows is {per_step.rows}; use 1 or more, one for each inner step.")
    chosen, rest = split_rows(tree, per_step)
    rows = jax.tree.map(lambda leaf: jnp.repeat(leaf[None], per_step.rows, axis=0), chosen)
    return trees.merge(rows, rest)


def take_row(rows: Tree, step: Array) -> Tree:
    """Takes the row of one step from all leaves.

    Args:
      rows: Tree of arrays [S, ...].
      step: Index of the step, an int scalar; beyond either end it is the first or the last row.

    Returns:
      A tree of arrays [...].
    """
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[jnp.clip(step, 0, leaf.shape[0] - 1)], rows)


def draw_minibatches(
    key: Array, weights: Array | None, examples: int, size: int, steps: int
) -> Array:
    """Draws minibatches without replacement, in one shuffled pass over the examples after another.

    If fewer than `size` examples have weight, a minibatch has all of them and then some again;
    `take_minibatch` gives the repeated ones weight zero.

    Args:
      key: Random key; consumed.
      weights: Weights [B] of the batch, or None; examples of weight zero are never drawn, unless all are.
      examples: Number of examples B.
      size: Examples M per minibatch; a pass may end within a minibatch.
      steps: Number of minibatches S.

    Returns:
      Indices of examples, int [S, M].
    """
    padding = (
        jnp.zeros(examples, jnp.float32) if weights is None else (weights == 0).astype(jnp.float32)
    )
    count = _count(weights, examples)

    def draw(position: Array) -> Array:
        # Sorting uniform numbers in [0, 1) shuffles; padding has 2 added, so it comes after the pass's end.
        pass_key = jax.random.fold_in(key, position // count)
        shuffled = jax.random.uniform(pass_key, (examples,), jnp.float32)
        return jnp.argsort(shuffled + 2 * padding)[position % count]

    positions = jnp.arange(steps)[:, None] * jnp.minimum(size, count) + jnp.arange(size)
    return jax.vmap(jax.vmap(draw))(positions)


def take_minibatch(batch: Batch, places: Array) -> Batch:
    """Takes the examples of one minibatch.

    Args:
      batch: Batch of B examples.
      places: Indices of examples, int [M], a row of `draw_minibatches`.

    Returns:
      A batch of M examples; those drawn a second time have weight zero.
    """
    taken = jax.tree.map(lambda leaf: jnp.asarray(leaf)[places], batch)
    if batch.weights is None:
        return taken
    first = jnp.arange(len(places)) < _count(batch.weights, len(batch.weights))
    return taken._replace(weights=taken.weights * first)


def _count(weights: Array | None, examples: int) -> Array | int:
    """Counts the examples that have weight; at least one."""
    return examples if weights is None else jnp.maximum(jnp.sum(weights != 0), 1)
