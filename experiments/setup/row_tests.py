"""Fixed lists of splits of rows: how rows are split, the hashes of tasks, and what is measured on them."""

import hashlib
import importlib.util
from collections.abc import Iterable
from typing import Any

import numpy as np

from metajax.types import Key

ORDERS = ("stratified", "balanced", "random", "first")
BY_CLASS = ("stratified", "balanced")  # those that need classes


class ListedTasks:
    """Takes the test tasks from their list; the data are the hashes of their rows."""

    by_task = 0

    def identify(self, data: Any, key: Key) -> Any:
        """Returns the hash of a task's rows, which `make_evaluate` has taken from the list."""
        del key
        return data


def digests(splits: Iterable[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Hashes the rows of tasks.

    Args:
      splits: Support rows and query rows of each of E tasks.

    Returns:
      Hashes [E, 8] uint32.
    """
    found = []
    for support, queries in splits:
        rows = np.concatenate([[len(support)], support, queries]).astype("<i8")
        found.append(np.frombuffer(hashlib.sha256(rows.tobytes()).digest(), "<u4"))
    return np.stack(found)


def split(
    rng: np.random.Generator,
    size: int,
    support: int,
    *,
    order: str,
    strata: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Splits the rows of a unit into a support set and the rest.

    Args:
      rng: Generator, advanced.
      size: Number of rows n.
      support: Number of support rows K, below n.
      order: One of ORDERS. Of "stratified", every stratum has the share of the support set that it has of the
        rows, rounded by largest remainders, ties at random, but one row at least where there is room. Of
        "balanced", all strata have equally many.
      strata: Stratum of each row, ints [n], for these two.

    Returns:
      Places of the support rows [K] and of all others [n - K], the latter in a random order, or both in
      their own order for "first".
    """
    if order == "first":
        return np.arange(support), np.arange(support, size)
    places = rng.permutation(size)
    if order == "random":
        return places[:support], places[support:]
    _, codes, counts = np.unique(strata, return_inverse=True, return_counts=True)
    taken = _shares(rng, counts, support, balanced=order == "balanced")
    # The place of each row among the rows of its stratum, in the permuted order.
    ranks = np.empty(size, int)
    for stratum in range(len(counts)):
        own = codes[places] == stratum
        ranks[own] = np.arange(own.sum())
    chosen = ranks < taken[codes[places]]
    return places[chosen], places[~chosen]


def _shares(
    rng: np.random.Generator, counts: np.ndarray, support: int, *, balanced: bool
) -> np.ndarray:
    """Divides the support rows over strata of these sizes."""
    size = int(counts.sum())
    if balanced:
        return np.full(len(counts), support // len(counts))
    exact = counts * support / size
    taken = np.floor(exact).astype(int)
    missing = support - taken.sum()
    by_remainder = np.lexsort((rng.random(len(counts)), -(exact - taken)))
    taken[by_remainder[:missing]] += 1
    if support >= len(counts):  # A class without a support row could not be learned at all.
        for stratum in np.flatnonzero(taken == 0):
            taken[stratum], taken[np.argmax(taken)] = 1, taken.max() - 1
    return taken


def measurable(names: tuple[str, ...], *, named: bool) -> tuple[str, ...]:
    """Lists the baselines that this machine can measure; before training, so that nothing fails after it.

    Args:
      names: Names of baselines.
      named: Whether the user names them, rather than asks for all.

    Returns:
      The names, without "forest" where scikit-learn is missing.

    Raises:
      ImportError: If a named one needs scikit-learn, which is missing.
    """
    if importlib.util.find_spec("sklearn") or "forest" not in names:
        return names
    if named:
        raise ImportError(
            "--baselines=forest needs scikit-learn; pip install 'metajax[baselines]' brings it."
        )
    return tuple(name for name in names if name != "forest")
