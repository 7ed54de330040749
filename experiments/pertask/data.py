"""Tables as a driver's options name them: stores of rows whose units are tasks."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metajax.episodes.rows import Rows
from metajax.types import Array, Tree


class TaskData(NamedTuple):
    """Rows of each split, and what is known of them.

    Attributes:
      stores: Stores by split. Targets are labels [R] int32 in [0, N), or standardized values [R, 1] float32.
      names: Names of the units of the test store, in the order of the store.
      by_group: Whether a task is one group rather than one parent.
      ways: Number of classes N; None for values.
      labels: Names of the classes; () for values.
      level: Mean of the training values, which the stores have subtracted; 0 for classes.
      spread: Standard deviation of the training values, which the stores are divided by; 1 for classes.
      items: Item of each row by split, ints [R], -1 for an unknown one; None without items.
      num_items: Number of items.
      row_numbers: Number of each test row in its table, ints [R].
      flat: Function from features [B, ...] and whether to scale counts to rows of numbers [B, D].
      is_flat: Whether the features are such rows, and no ids of words or graphs.
      about: Arguments of networks that depend on the data, by kind of columns: "text", "smiles", "fields".
      description: The data in words.
      notes: Lines for people about rows and tasks that are left out or cut.
      fingerprint: Hashes of the splits joined by dots, test data last.
    """

    stores: Mapping[str, Rows]
    names: Sequence[str]
    by_group: bool
    ways: int | None
    labels: tuple[str, ...]
    level: float
    spread: float
    items: Mapping[str, np.ndarray] | None
    num_items: int
    row_numbers: np.ndarray
    flat: Callable[[Tree, bool], Array]
    is_flat: bool
    about: Mapping[str, Mapping[str, Any]]
    description: str
    notes: tuple[str, ...]
    fingerprint: str

    def width(self, split: str) -> int:
        """Counts the numbers of a row that `flat` makes."""
        store = self.stores[split]
        row = jax.eval_shape(lambda s: self.flat(s.take(jnp.zeros(1, jnp.int32)), True), store)
        return row.shape[1]

    @property
    def kind(self) -> str:
        """Kind of the targets: "binary", "classes" or "values"."""
        if self.ways is None:
            return "values"
        return "binary" if self.ways == 2 else "classes"
