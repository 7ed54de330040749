"""The best meta-parameters of a run so far, by validation score."""

from typing import Any, NamedTuple

import jax
import numpy as np

from metajax.sharding import fetch


class Best(NamedTuple):
    """The M best meta-parameters, on the host.

    Attributes:
      metas: Meta-parameters with every leaf [M, ...], best first; places without a score hold no candidate.
      scores: Validation scores of the candidates found so far, at most M, best first.
      steps: Steps at which they were found.
    """

    metas: Any
    scores: tuple[float, ...] = ()
    steps: tuple[int, ...] = ()

    @property
    def first(self) -> Any:
        """The best meta-parameters, leaves [...]."""
        return jax.tree.map(lambda leaf: leaf[0], self.metas)

    @property
    def found(self) -> Any:
        """The meta-parameters found so far, every leaf [m, ...] with m at most M."""
        return jax.tree.map(lambda leaf: leaf[: max(len(self.scores), 1)], self.metas)

    def offer(self, meta: Any, score: float, step: int, *, higher_is_better: bool) -> "Best":
        """Inserts a candidate if it is among the best.

        A NaN score is never inserted, and of equal scores the earlier candidate stays ahead.

        Args:
          meta: Meta-parameters, with leaves on the host or on devices.
          score: Validation score, a float.
          step: Number of meta-steps taken.
          higher_is_better: Whether the largest score is the best.

        Returns:
          The updated candidates.
        """
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
    """Makes room for the best meta-parameters before any is found.

    Args:
      meta: Meta-parameters with the expected shapes and dtypes.
      size: Number of candidates M to keep.

    Returns:
      A Best without scores, whose leaves [M, ...] are copies of `meta`.
    """
    return Best(jax.tree.map(lambda leaf: np.repeat(leaf[None], size, axis=0), fetch(meta)))
