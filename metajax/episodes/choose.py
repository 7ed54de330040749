"""Uniform draws without replacement, exact and of static shape."""

import jax
import jax.numpy as jnp

from metajax.types import Array, Key


def choose(key: Key, size: Array | int, count: int) -> Array:
    """Draws `count` different integers of [0, size), in random order.

    Exact, and `count` steps of `count` comparisons however large `size` is, where a permutation would sort
    the whole range.

    Args:
      key: Random key, consumed.
      size: Number of integers, may be traced; at least `count`, which the caller answers for.
      count: Number of draws, static.

    Returns:
      [count] int32.
    """
    return choose_within(key, 0, size, jnp.arange(count, dtype=jnp.int32))


def choose_within(key: Key, starts: Array | int, sizes: Array | int, ranks: Array) -> Array:
    """Draws an integer of each of some ranges, different ones of the same range.

    A draw picks one of the integers of its range that are still free, counted from below; the picks so far
    say which integer that is.

    Args:
      key: Random key, consumed.
      starts: First integer of each draw's range, int32 [n] or the same for all; ranges ascend, those of
        several draws are next to each other, and none overlap.
      sizes: Number of integers in it, likewise; at least the number of its draws.
      ranks: Number of draws of the same range before, [n] int32.

    Returns:
      [n] int32.
    """
    count = len(ranks)
    order = jnp.arange(count, dtype=jnp.int32)
    free_ranks = jax.random.randint(key, (count,), 0, sizes - ranks, jnp.int32)
    starts = jnp.broadcast_to(jnp.asarray(starts, jnp.int32), count)
    unpicked = jnp.iinfo(jnp.int32).max // 2  # above every integer

    def pick(i, carry):
        ascending, drawn = carry
        # Of a range, the j-th smallest pick p has p - j free integers below it, so it pushes up every rank
        # from p - j on.
        number = order - (i - ranks[i])
        pushes = (number >= 0) & (ascending - starts[i] - number <= free_ranks[i])
        value = starts[i] + free_ranks[i] + jnp.sum(pushes, dtype=jnp.int32)
        place = jnp.sum(ascending < value, dtype=jnp.int32)
        shifted = jnp.where(order == place, value, jnp.roll(ascending, 1))
        return jnp.where(order < place, ascending, shifted), drawn.at[i].set(value)

    start = (jnp.full(count, unpicked, jnp.int32), jnp.zeros(count, jnp.int32))
    return jax.lax.fori_loop(0, count, pick, start)[1]


def choose_eligible(key: Key, eligible: Array) -> Array:
    """Draws one of the numbers [0, n) that are eligible, [n] bool, uniformly."""
    up_to = jnp.cumsum(eligible, dtype=jnp.int32)
    return jnp.searchsorted(
        up_to, jax.random.randint(key, (), 0, up_to[-1], jnp.int32), side="right"
    )
