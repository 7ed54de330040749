"""Test sets that are lists of tasks: known pairs of parent and repeat, or known rows."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from metajax.episodes.group_sampler import GroupDraw, GroupSampler
from metajax.episodes.rows import Rows
from metajax.episodes.split_sampler import SplitDraw, SplitSampler
from metajax.types import Array, Episode, Key


class Listed(NamedTuple):
    """A list of tasks, such as a test set: `ListedSampler` makes one, of the data that `BY_TASK` maps.

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
