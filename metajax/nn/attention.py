"""Attention by several heads, for one sequence of tokens."""

import jax
import jax.numpy as jnp

Array = jax.Array


def attend(
    queries: Array, keys: Array, values: Array, *, heads: int, seen: Array | None = None
) -> Array:
    """Scaled dot-product attention, each head on its share of the numbers.

    Args:
      queries: [B, E]; the heads divide E.
      keys: [n, E].
      values: [n, V]; the heads divide V.
      heads: of attention.
      seen: [n] or [B, n] bool, which keys a query attends to; all if None. A query that sees none attends to
        all alike, and has a derivative.

    Returns:
      [B, V], the heads' answers side by side.

    Raises:
      ValueError: if the heads do not divide E or V.

    Reference: Vaswani et al., 2017 (https://arxiv.org/abs/1706.03762), eq. 1 and section 3.2.2.
    """
    for what, x in (("queries and keys", queries), ("values", values)):
        if x.shape[1] % heads:
            raise ValueError(f"{heads} heads do not divide {what} of {x.shape[1]}; use a divisor.")
    queries, keys, values = (x.reshape(len(x), heads, -1) for x in (queries, keys, values))
    scores = jnp.einsum("bhe,nhe->hbn", queries, keys) / queries.shape[-1] ** 0.5
    if seen is not None:
        scores = jnp.where(seen, scores, jnp.finfo(scores.dtype).min / 2)
    answers = jnp.einsum("hbn,nhe->bhe", jax.nn.softmax(scores), values)
    return answers.reshape(len(queries), -1)
