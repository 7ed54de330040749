"""Evidence: the examples that a learner adapts to and is scored on."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from metajax import trees
from metajax.types import Batch, Episode, Evidence, Fast, Key, Meta, Task

# Folded into a task's key for its evidence; a small number would repeat a key of `split(key)`.
_SUPPORT, _QUERY = 0x53555050, 0x51554552


class TaskEvidence(NamedTuple):
    """Two functions that provide the examples of a task, such as the rollouts of a policy.

    Attributes:
      support: Function `(meta, fast, key, task) -> Batch` of examples to adapt to, given the current fast
        state.
      query: Function of the same arguments that returns the examples to score, given the adapted fast state.
      like: Function from a task to the examples of one `support` call, or to their `jax.ShapeDtypeStruct`s,
        for which `Learner.start` reserves room. None reserves none: learners that keep no examples need none.

    Example:
      >>> swapped = metajax.TaskEvidence(
      ...     support=lambda meta, fast, key, task: task.query,
      ...     query=lambda meta, fast, key, task: task.support,
      ...     like=lambda task: task.query,
      ... )
      >>> episode = metajax.Episode("few", "many")
      >>> swapped.to_adapt(None, None, jax.random.key(0), episode)
      'many'
    """

    support: Evidence
    query: Evidence
    like: Callable[[Task], Batch] | None = None

    def to_adapt(self, meta: Meta, fast: Fast, key: Key, task: Task) -> Batch:
        """Provides examples to adapt to.

        Args:
          meta: Meta-parameters.
          fast: Current fast state.
          key: Random key of the task; folded into, and may be used further.
          task: Task, a pytree that only the evidence functions read.

        Returns:
          Examples [B, ...].
        """
        return self.support(meta, fast, jax.random.fold_in(key, _SUPPORT), task)

    def to_score(self, meta: Meta, fast: Fast, key: Key, task: Task) -> Batch:
        """Provides examples to score; arguments and result as in `to_adapt`, with the adapted fast state."""
        return self.query(meta, fast, jax.random.fold_in(key, _QUERY), task)

    def room(self, task: Task, *, calls: int = 1) -> Batch | None:
        """Computes the shapes of all support examples, the argument `like` of `Learner.start`.

        Args:
          task: Task.
          calls: Number of `support` calls in the task.

        Returns:
          Batch of `jax.ShapeDtypeStruct`s with `calls` times the examples of one call; None without `like`.
        """
        return trees.repeated(self.like(task), calls) if self.like else None


def _support(meta: Meta, fast: Fast, key: Key, task: Episode) -> Batch:
    """Returns the support set of an episode."""
    del meta, fast, key
    return task.support


def _query(meta: Meta, fast: Fast, key: Key, task: Episode) -> Batch:
    """Returns the query set of an episode."""
    del meta, fast, key
    return task.query


# The support set and the query set of an `Episode`, whatever the learner.
EPISODE = TaskEvidence(_support, _query, lambda task: task.support)
