"""Evidence: the examples that a task adapts to and is scored on."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from metajax import trees
from metajax.types import Batch, Episode, Evidence, Fast, Key, Meta, Task

# Folded into a task's key for its evidence; a small number would give a key of `split(key)` again.
_SUPPORT, _QUERY = 0x53555050, 0x51554552


class TaskEvidence(NamedTuple):
    """Where the examples of a task come from, such as a policy's rollouts.

    Attributes:
      support: Evidence to adapt to, `(meta, fast, key, task) -> Batch`, given the fast state as it is.
      query: Evidence to be scored on, given the adapted fast state.
      like: task -> the examples of one call of `support`, or their `jax.ShapeDtypeStruct`s, for which
        `Learner.start` makes room. None makes no room: learners that keep no examples need none.
    """

    support: Evidence
    query: Evidence
    like: Callable[[Task], Batch] | None = None

    def to_adapt(self, meta: Meta, fast: Fast, key: Key, task: Task) -> Batch:
        """Asks for examples to adapt to; the key is folded into, and may be used further."""
        return self.support(meta, fast, jax.random.fold_in(key, _SUPPORT), task)

    def to_score(self, meta: Meta, fast: Fast, key: Key, task: Task) -> Batch:
        """Asks for examples to be scored on; the key is folded into, and may be used further."""
        return self.query(meta, fast, jax.random.fold_in(key, _QUERY), task)

    def room(self, task: Task, *, calls: int = 1) -> Batch | None:
        """Returns what `Learner.start` takes as `like`, for as many calls of `support`."""
        return trees.repeated(self.like(task), calls) if self.like else None


def _support(meta: Meta, fast: Fast, key: Key, task: Episode) -> Batch:
    del meta, fast, key
    return task.support


def _query(meta: Meta, fast: Fast, key: Key, task: Episode) -> Batch:
    del meta, fast, key
    return task.query


# The support and the query set of an `Episode`, whatever the learner.
EPISODE = TaskEvidence(_support, _query, lambda task: task.support)
