"""The best checkpoints of a run so far, by their validation score."""

from typing import Any, NamedTuple

import jax
import numpy as np

from metajax.sharding import fetch


class Best(NamedTuple):
    """Up to so many of the best meta-parameters, on the host.

    Attributes:
      metas: every leaf [M, ...], the best first; what lies in places not yet taken is none of them.
      scores: of those found so far, at most M, the best first.
      steps: at which they were found.
    """

    metas: Any
    scores: tuple[float, ...] = ()
    steps: tuple[int, ...] = ()

    @property
    def first(self) -> Any:
        """The best meta-parameters."""
        return jax.tree.map(lambda leaf: leaf[0], self.metas)

    @property
    def found(self) -> Any:
        """The meta-parameters found so far, every leaf [m, ...] with m at most M."""
        return jax.tree.map(lambda leaf: leaf[: max(len(self.scores), 1)], self.metas)

    def offer(self, meta: Any, score: float, step: int, *, higher_is_better: bool) -> "Best":
        """Takes in another candidate if it is among the best; NaN never is, and of equals the first stays."""
        if np.isnan(score):
            return self
        sign = 1 if higher_is_better else -1
        place = sum(sign * score <= sign * other for other in self.scores)
        meta = fetch(meta)

        def insert(leaves: np.ndarray, leaf: np.ndarray) -> np.ndarray:
            if not self.scores:
                return np.broadcast_to(leaf, leaves.shape).copy()
            return np.insert(leaves, place, leaf, axis=0)[: len(leaves)]

        size = len(jax.tree.leaves(self.metas)[0])
        scores, steps = list(self.scores), list(self.steps)
        scores.insert(place, score)
        steps.insert(place, step)
        return Best(
            jax.tree.map(insert, self.metas, meta), tuple(scores[:size]), tuple(steps[:size])
        )


def none_yet(meta: Any, size: int) -> Best:
    """Room for `size` meta-parameters shaped like these."""
    return Best(jax.tree.map(lambda leaf: np.repeat(leaf[None], size, axis=0), fetch(meta)))
