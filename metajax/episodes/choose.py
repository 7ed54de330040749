"""Uniform draws without replacement, exact and of static shape."""

import chex
import jax
import jax.numpy as jnp

from metajax.types import Array, Key


def choose(key: Key, size: Array | int, count: int) -> Array:
    """Draws `count` different integers of [0, size), in random order.

    Exact, in `count` steps of `count` comparisons however large `size` is; a permutation would sort the whole
    range.

    Args:
      key: Random key, consumed.
      size: Number of integers, possibly traced. It must be at least `count`, which is not checked.
      count: Number of draws, a static int.

    Returns:
      Different integers, [count] int32.

    Example:
      >>> sorted(choose(jax.random.key(0), 3, 3).tolist())
      [0, 1, 2]
    """
    return choose_within(key, 0, size, jnp.arange(count, dtype=jnp.int32))


def choose_within(key: Key, starts: Array | int, sizes: Array | int, ranks: Array) -> Array:
    """Draws one integer from each of several ranges; draws from the same range differ.

    A draw picks the rank of a free integer of its range, counted from below; a free integer is one that no
    earlier draw has taken. The earlier draws, kept in ascending order, turn the rank into the integer.

    Args:
      key: Random key, consumed.
      starts: First integer of each draw's range, int32 [n] or a scalar. Ranges ascend and do not overlap;
        draws from one range are adjacent.
      sizes: Number of integers in each draw's range, int32 [n] or a scalar. It must be at least the number of
        draws from the range, which is not checked.
      ranks: Number of earlier draws from the same range, [n] int32.

    Returns:
      Drawn integers, [n] int32.

    Example:
      >>> starts, sizes, ranks = (jnp.array(x) for x in ([0, 10, 10], [5, 2, 2], [0, 0, 1]))
      >>> sorted(choose_within(jax.random.key(0), starts, sizes, ranks)[1:].tolist())
      [10, 11]
    """
    chex.assert_rank(ranks, 1)
    count = len(ranks)
    order = jnp.arange(count, dtype=jnp.int32)
    free_ranks = jax.random.randint(key, (count,), 0, sizes - ranks, jnp.int32)
    starts = jnp.broadcast_to(jnp.asarray(starts, jnp.int32), count)
    unpicked = jnp.iinfo(jnp.int32).max // 2  # larger than every pick, and no sum with it overflows

    def pick(i, carry):
        ascending, drawn = carry
        # The j-th smallest pick p of a range has p - j free integers below it, so it pushes up every rank
        # from p - j on. `number` is j for the picks of this range, which lie next to each other.
        number = order - (i - ranks[i])
        pushes = (number >= 0) & (ascending - starts[i] - number <= free_ranks[i])
        value = starts[i] + free_ranks[i] + jnp.sum(pushes, dtype=jnp.int32)
        place = jnp.sum(ascending < value, dtype=jnp.int32)
        shifted = jnp.where(order == place, value, jnp.roll(ascending, 1))
        return jnp.where(order < place, ascending, shifted), drawn.at[i].set(value)

    start = (jnp.full(count, unpicked, jnp.int32), jnp.zeros(count, jnp.int32))
    return jax.lax.fori_loop(0, count, pick, start)[1]


def choose_eligible(key: Key, eligible: Array) -> Array:
    """Draws an eligible number uniformly.

    Args:
      key: Random key, consumed.
      eligible: Marks of the eligible numbers, [n] bool, at least one of which is True.

    Returns:
      A number in [0, n), an int32 scalar.

    Example:
      >>> int(choose_eligible(jax.random.key(0), jnp.array([False, False, True])))
      2
    """
    chex.assert_rank(eligible, 1)
    up_to = jnp.cumsum(eligible, dtype=jnp.int32)
    return jnp.searchsorted(
        up_to, jax.random.randint(key, (), 0, up_to[-1], jnp.int32), side="right"
    )
