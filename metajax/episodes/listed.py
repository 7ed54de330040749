"""Test sets that are lists of tasks: pairs of parent and repeat, or known rows.

Two users, each split three times, and scored like the tasks of any sampler:

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

Tasks with known rows, as a paper lists them, of sizes up to the sizes of the sampler:

>>> tests = listed.listed_rows(sampler.sampler, store, support=[[0, 1], [6]], queries=[[4], [8]])
>>> keys = jax.random.split(jax.random.key(0), 2)
>>> tasks = jax.vmap(sampler, (listed.BY_TASK, 0))(tests, keys)
>>> print(tasks.support.inputs[1], tasks.support.weights[1], tasks.query.inputs[1])
[6. 6.] [1. 0.] [8.]
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import chex
import jax
import jax.numpy as jnp
import numpy as np

from metajax.episodes.rows import Rows, check_length
from metajax.episodes.split_sampler import SplitDraw, SplitSampler
from metajax.errors import DataError
from metajax.types import Array, Episode, Key


class DrawSampler(Protocol):
    """A sampler that chooses rows before it makes a task, as `GroupSampler` and `SplitSampler` do."""

    def check(self, store: Rows, *, name: str = "data", parents: Any = None) -> None:
        """Raises DataError if tasks cannot be drawn from the store."""
        ...

    def identify(self, store: Rows, key: Key, parent: Array | None = None) -> Any:
        """Draws the rows of a task."""
        ...

    def episode(self, store: Rows, key: Key, draw: Any) -> Episode:
        """Makes the task of a draw."""
        ...


class Listed(NamedTuple):
    """A list of tasks, such as a test set: the data of a `ListedSampler`.

    `ListedSampler.of_parents` and `listed_rows` make it. Whatever maps over tasks maps over the leaves of
    `draws` alone: pass `by_task=metajax.episodes.listed.BY_TASK`, which is `Listed(store=None, draws=0)`, to
    `metajax.make_evaluate` or `metajax.draw_tasks`.

    Attributes:
      store: Store of all tasks.
      draws: Draws of the E tasks, as `identify` returns them; leaves [E, ...].

    Example:
      >>> store = metajax.Rows.from_groups(np.arange(9.0), np.repeat([0, 1], [5, 4]), parents=[0, 1])
      >>> sampler = metajax.SplitSampler(support=2, queries=1)
      >>> keys = jax.random.split(jax.random.key(0), 4)
      >>> draws = jax.eval_shape(jax.vmap(sampler.identify, (None, 0)), store, keys)
      >>> Listed(store, draws).draws.rows.shape
      (4, 3)
    """

    store: Rows
    draws: Any


# A prefix of `Listed`, as `vmap` and `train.draw_tasks` read it: only draws have an axis of tasks.
BY_TASK = Listed._make((None, 0))


@dataclasses.dataclass(frozen=True)
class ListedSampler:
    """Makes the tasks of a list, such as a test set; call it as `sampler(listed, key) -> Episode`.

    For scores on the same tasks every time: a task is its draw, and the key serves the view alone, so a list
    is the same test under any key. Within a call `listed` holds a single draw; `vmap`, `make_evaluate` and
    `draw_tasks` map over the list with `by_task=metajax.episodes.listed.BY_TASK`.

    Attributes:
      sampler: Sampler of the draws, a `GroupSampler` or a `SplitSampler`.

    Example:
      Two assays of five and four molecules, each split three times; the number of a task is its place in the
      list.

      >>> assays = np.repeat([0, 1], [5, 4])
      >>> store = metajax.Rows.from_groups(np.arange(9.0), assays, targets=np.zeros(9), parents=[0, 1])
      >>> sampler = ListedSampler(metajax.SplitSampler(support=2, queries=1))
      >>> tests = sampler.of_parents(store, jax.random.key(0), [0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 2])
      >>> def objective(meta, key, task):
      ...     return 0.0, {"molecule": task.query.inputs[0]}
      >>> by_task = metajax.episodes.listed.BY_TASK
      >>> evaluate = jax.jit(metajax.make_evaluate(objective, sampler, by_task=by_task))
      >>> scores = evaluate(None, tests, jax.random.key(1), jnp.arange(6))
      >>> print(np.asarray(scores["molecule"]) >= 5)  # of the second assay
      [False False False  True  True  True]
    """

    sampler: DrawSampler

    def identify(self, listed: Listed, key: Key) -> Any:
        """Returns the draw of a task.

        Args:
          listed: List of which `vmap` has taken one draw.
          key: Random key; ignored.

        Returns:
          The draw.
        """
        del key
        return listed.draws

    def __call__(self, listed: Listed, key: Key) -> Episode:
        """Makes a task of its draw.

        Args:
          listed: List of which `vmap` has taken one draw.
          key: Random key of the view, consumed.

        Returns:
          The task.
        """
        return self.sampler.episode(listed.store, key, listed.draws)

    def of_parents(self, store: Rows, key: Key, parents: Any, repeats: Any) -> Listed:
        """Lists tasks of given parents.

        Each task is a function of (key, parent, repeat), so a longer list has the same tasks.

        Args:
          store: Store to draw from, not traced.
          key: Random key of the list.
          parents: Parent of each task, ints [E], not traced.
          repeats: Number of each task among the tasks of its parent, ints [E].

        Returns:
          The list.

        Raises:
          DataError: If a parent is out of range or too small, or `sampler.check` refuses the store.
        """
        chex.assert_equal_shape([jnp.asarray(parents), jnp.asarray(repeats)])
        self.sampler.check(store, parents=parents)

        def draw(parent: Array, repeat: Array) -> Any:
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
    """Lists tasks whose rows are known, such as the tasks of a published split.

    Args:
      sampler: Sampler whose `support` and `queries` are at least the sizes of the tasks.
      store: Store of the rows. `Rows.from_groups` has sorted them by parent and group: its order counts.
      support: Support rows of each task, row numbers of the store; E sequences of any lengths.
      queries: Query rows of each task, row numbers of the store; E sequences of any lengths.

    Returns:
      The list. Tasks smaller than the sampler's sizes are padded by repeats with weight zero.

    Raises:
      DataError: If a task has no rows, more rows than the sampler, or rows that the store lacks.

    Example:
      >>> store = metajax.Rows.from_groups(np.arange(9.0), np.repeat([0, 1], [5, 4]), parents=[0, 1])
      >>> sampler = metajax.SplitSampler(support=2, queries=1)
      >>> tests = listed_rows(sampler, store, support=[[0, 1], [6]], queries=[[4], [8]])
      >>> print(tests.draws.rows[1], tests.draws.weights[1])
      [6 6 8] [1. 0. 1.]
    """
    check_length("support sets", len(support), "sets of queries", len(queries))
    halves = [
        _padded("support", sampler.support, support, store),
        _padded("queries", sampler.queries, queries, store),
    ]
    rows, weights = (
        jnp.asarray(np.concatenate(parts, axis=1)) for parts in zip(*halves, strict=True)
    )
    return Listed(store, SplitDraw(rows, weights))


def _padded(
    name: str, most: int, tasks: Sequence[Sequence[int]], store: Rows
) -> tuple[np.ndarray, np.ndarray]:
    """Pads the support sets, or the queries, of tasks to `most` rows.

    Args:
      name: Name of the part in messages.
      most: Number of rows of each task.
      tasks: Rows of each task, E sequences.
      store: Store of the rows.

    Returns:
      Rows [E, most] int32 and weights [E, most] float32.

    Raises:
      DataError: If a task has no rows, more than `most`, or rows that the store lacks.
    """
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
    return rows, (np.arange(most) < lengths).astype(np.float32)
