"""Test sets that are lists of tasks: known pairs of parent and repeat, or known rows.

Two users, each split three times, scored like the tasks of any sampler:

>>> import jax, jax.numpy as jnp, metajax, numpy as np
>>> from metajax.episodes import listed
>>> store = metajax.Rows.from_groups(np.arange(9.0), np.repeat([0, 1], [5, 4]), parents=[0, 1])
>>> sampler = listed.ListedSampler(metajax.SplitSampler(support=2, queries=1))
>>> tests = sampler.of_parents(store, jax.random.key(0), [0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 2])
>>> tests.draws.rows.shape
(6, 3)
>>> def objective(meta, key, task):
...     return 0.0, {"first": task.query.inputs[0]}
>>> evaluate = metajax.make_evaluate(objective, sampler, by_task=listed.BY_TASK)
>>> scores = evaluate(None, tests, jax.random.key(1), jnp.arange(6))
>>> np.asarray(scores["first"] >= 5).tolist()
[False, False, False, True, True, True]

Tasks whose rows a paper lists, of any sizes up to the sampler's:

>>> tests = listed.listed_rows(sampler.sampler, store, support=[[0, 1], [6]], queries=[[4], [8]])
>>> keys = jax.random.split(jax.random.key(0), 2)
>>> tasks = jax.vmap(sampler, (listed.BY_TASK, 0))(tests, keys)
>>> print(tasks.support.inputs[1], tasks.support.weights[1], tasks.query.inputs[1])
[6. 6.] [1. 0.] [8.]
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metajax.data.images import DataError
from metajax.episodes.group_sampler import GroupDraw, GroupSampler
from metajax.episodes.rows import Rows, check_length
from metajax.episodes.split_sampler import SplitDraw, SplitSampler
from metajax.types import Array, Episode, Key


class Listed(NamedTuple):
    """A list of tasks, such as a test set: the data that a `ListedSampler` draws from, mapped by `BY_TASK`.

    Attributes:
      store: Store of all tasks.
      draws: Draws of the tasks, as `identify` returns them; leaves [E, ...].
    """

    store: Rows
    draws: GroupDraw | SplitDraw


# The leaves with an axis of tasks, as `vmap` and `train.draw_tasks` take it.
BY_TASK = Listed(store=None, draws=0)


@dataclasses.dataclass(frozen=True)
class ListedSampler:
    """Makes the tasks of a list; call it as `sampler(listed, key) -> Episode`, `listed` having one draw.

    The key is for the view alone, so that a list is the same test under any key.

    Attributes:
      sampler: Sampler whose draws are listed.
    """

    sampler: GroupSampler | SplitSampler

    def identify(self, listed: Listed, key: Key) -> GroupDraw | SplitDraw:
        """Returns the draw of a task."""
        del key
        return listed.draws

    def __call__(self, listed: Listed, key: Key) -> Episode:
        """Makes a task of its draw; the key is consumed."""
        return self.sampler.episode(listed.store, key, listed.draws)

    def of_parents(self, store: Rows, key: Key, parents: Array, repeats: Array) -> Listed:
        """Lists tasks of given parents; each is a function of (key, parent, repeat), wherever it stands.

        Args:
          store: Store to draw from.
          key: Random key of the list.
          parents: Parent of each task, ints [E]; neither these nor the store are traced.
          repeats: Number of each task among those of its parent, [E] int32.

        Raises:
          DataError: A parent is out of range or too small, or `sampler.check` refuses the store.
        """
        self.sampler.check(store, parents=parents)

        def draw(parent, repeat):
            own = jax.random.fold_in(jax.random.fold_in(key, parent), repeat)
            return self.sampler.identify(store, own, parent)

        return Listed(store, jax.vmap(draw)(jnp.asarray(parents), jnp.asarray(repeats)))


def listed_rows(
    sampler: SplitSampler,
    store: Rows,
    *,
    support: Sequence[Sequence[int]],
    queries: Sequence[Sequence[int]],
) -> Listed:
    """Lists tasks whose rows are known, such as those of a published split.

    Args:
      sampler: Sampler of tasks at least as large.
      store: Store of the rows, which `Rows.from_groups` has sorted by parent and group.
      support: Support rows of each task, numbers of rows as the store has them; E sequences of any lengths.
      queries: Queries of each task, likewise.

    Returns:
      The list. Short tasks are filled by repeats with weight zero.

    Raises:
      DataError: A task has no rows, more than the sampler has room for, or rows that the store lacks.
    """
    check_length("support sets", len(support), "sets of queries", len(queries))
    halves = [
        _padded("support", sampler.support, support, store),
        _padded("queries", sampler.queries, queries, store),
    ]
    draws = jax.tree.map(lambda *parts: jnp.asarray(np.concatenate(parts, axis=1)), *halves)
    return Listed(store, draws)


def _padded(name: str, most: int, tasks: Sequence[Sequence[int]], store: Rows) -> SplitDraw:
    """Fills half a task, its support set or its queries, up to `most` rows; [E, most]."""
    size = int(store.starts[-1] + store.counts[-1])
    for number, rows in enumerate(tasks):
        if not 1 <= len(rows) <= most:
            raise DataError(f"Task {number} has {len(rows)} rows for its {name}; use 1 to {most}.")
        if min(rows) < 0 or max(rows) >= size:
            raise DataError(
                f"Task {number} has rows {min(rows)} to {max(rows)} for its {name}; use 0 to {size - 1}."
            )
    rows = np.stack([np.resize(np.asarray(rows, np.int32), most) for rows in tasks])
    lengths = np.array([len(rows) for rows in tasks])[:, None]
    return SplitDraw(rows, (np.arange(most) < lengths).astype(np.float32))
