"""Multi-head attention over one sequence of tokens."""

import chex
import jax
import jax.numpy as jnp

Array = jax.Array


def attend(
    queries: Array, keys: Array, values: Array, *, heads: int, seen: Array | None = None
) -> Array:
    """Computes scaled dot-product attention, softmax(q k^T / sqrt(d)) v, of several heads.

    Each head works on its own share of the features, d = E / heads of queries and keys.

    Args:
      queries: Float queries [B, E]; the heads divide E.
      keys: Float keys [L, E].
      values: Float values [L, V]; the heads divide V.
      heads: Number of heads.
      seen: Mask of the keys that each query attends to, bool [L] or [B, L]; None for all. A query that sees
        no key attends to all of them equally, and has a derivative.

    Returns:
      Float outputs [B, V], the heads' outputs concatenated.

    Raises:
      ValueError: If the heads do not divide E or V.
      AssertionError: If queries, keys or values do not have two axes.

    Example:
      >>> attend(jnp.ones((2, 4)), jnp.ones((5, 4)), jnp.ones((5, 6)), heads=2).shape
      (2, 6)

    Reference: Vaswani et al., 2017 (https://arxiv.org/abs/1706.03762), eq. 1 and section 3.2.2.
    """
    chex.assert_rank([queries, keys, values], 2)
    for name, x in (("queries and keys", queries), ("values", values)):
        if x.shape[1] % heads:
            raise ValueError(f"{heads} heads do not divide {name} of {x.shape[1]}; use a divisor.")
    queries, keys, values = (x.reshape(x.shape[0], heads, -1) for x in (queries, keys, values))
    scores = jnp.einsum("bhe,nhe->hbn", queries, keys) / queries.shape[-1] ** 0.5
    if seen is not None:
        # Half the least float, not -inf: a row of equal scores has a softmax and a derivative.
        scores = jnp.where(seen, scores, jnp.finfo(scores.dtype).min / 2)
    answers = jnp.einsum("hbn,nhe->bhe", jax.nn.softmax(scores), values)
    return answers.reshape(queries.shape[0], -1)
