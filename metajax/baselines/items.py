"""Item means of training rows with the offset of a user: the bias that recommenders have to beat."""

from typing import NamedTuple

import chex
import jax.numpy as jnp
import numpy as np

from metajax.types import Array


class ItemMeans(NamedTuple):
    """Means of the training targets by item.

    Attributes:
      values: Shrunken means [I], float32; the overall mean for items without a training row.
      overall: Mean of all training targets, a float32 scalar.

    Example:
      >>> ItemMeans(jnp.array([3.0, 4.0]), jnp.array(3.5)).values.shape
      (2,)
    """

    values: Array
    overall: Array


def item_means(
    items: np.ndarray, targets: np.ndarray, *, num_items: int, shrinkage: float = 5.0
) -> ItemMeans:
    """Averages the targets of the training rows of each item, shrunken to the mean of all.

    A mean is (sum of targets + shrinkage * overall) / (count + shrinkage). Give it rows of training tasks
    alone: with rows of test tasks it would know the answers.

    Args:
      items: Item of each training row, ints [R] in [0, I); -1 for rows of no known item.
      targets: Targets of these rows, numbers [R].
      num_items: Number of items I, unseen ones included.
      shrinkage: Number of rows at the overall mean that is added to each item, 0 or more.

    Returns:
      Means by item, on the default device.

    Raises:
      ValueError: If there is no training row, or lengths differ.

    Example:
      >>> means = item_means(np.array([0, 0, 1]), np.array([5.0, 4.0, 1.0]), num_items=3, shrinkage=0.0)
      >>> [round(value, 3) for value in means.values.tolist()]
      [4.5, 1.0, 3.333]
    """
    items, targets = np.asarray(items), np.asarray(targets, np.float64).reshape(-1)
    if not len(targets) or len(items) != len(targets):
        raise ValueError(
            f"There are {len(items)} items and {len(targets)} targets; give one or more of both."
        )
    overall, known = targets.mean(), items >= 0
    counts = np.bincount(items[known], minlength=num_items)
    sums = np.bincount(items[known], weights=targets[known], minlength=num_items)
    total = counts + shrinkage
    means = np.where(
        total > 0, (sums + shrinkage * overall) / np.where(total > 0, total, 1), overall
    )
    return ItemMeans(jnp.asarray(means, jnp.float32), jnp.asarray(overall, jnp.float32))


def item_offset(
    means: ItemMeans,
    support_items: Array,
    support_targets: Array,
    weights: Array,
    query_items: Array,
    *,
    shrinkage: float = 1.0,
) -> Array:
    """Predicts the mean of each query's item plus the offset of the user.

    The offset is the sum of the support rows' differences from their items' means, divided by their number
    plus `shrinkage`.

    Args:
      means: Means of training rows.
      support_items: Items of the support rows, ints [B]; -1 for an unknown item.
      support_targets: Targets of the support rows, numbers [B].
      weights: Float weights [B]; zero marks padding.
      query_items: Items of the queries, ints [Q]; -1 for an unknown item.
      shrinkage: Number of rows without a difference that is added to the user's, 0 or more.

    Returns:
      Predicted targets [Q], float32.

    Example:
      >>> means = metajax.baselines.ItemMeans(jnp.array([4.0, 2.0]), jnp.array(3.0))
      >>> one, targets = jnp.array([0]), jnp.array([5.0])
      >>> item_offset(means, one, targets, jnp.ones(1), jnp.array([1, -1])).tolist()  # 1 / (1 + 1) more
      [2.5, 3.5]
    """
    chex.assert_equal_shape([support_items, support_targets, weights])

    def of_items(items: Array) -> Array:
        return jnp.where(items >= 0, means.values[items], means.overall)

    # Padding may hold any target, so its difference is set to zero before it is weighted.
    differences = jnp.where(weights > 0, support_targets - of_items(support_items), 0)
    offset = jnp.sum(weights * differences) / jnp.maximum(jnp.sum(weights) + shrinkage, 1e-9)
    return of_items(query_items) + offset
