"""Tables in memory for the driver of tasks from tables."""

import numpy as np

from experiments.pertask.stores import of_stores
from metajax.episodes.rows import Rows


def task_data(kind="binary", *, units=(12, 6, 6), rows=24, order="stratified", seed=0):
    """Makes tables whose tasks share how features make a target, up to a task's own offset.

    Args:
      kind: "binary", "classes" or "values".
      units: Numbers of training, validation and test tasks.
      rows: Rows of a task, up to a third fewer.
      order: Choice of support rows.
      seed: Seed of the numbers.

    Returns:
      A `TaskData`.
    """
    rng = np.random.default_rng(seed)
    stores, items = {}, {}
    quality = rng.normal(size=5)
    for split, number in zip(("train", "valid", "test"), units, strict=True):
        counts = rng.integers(rows * 2 // 3, rows + 1, number)
        groups = np.repeat(np.arange(number), counts)
        numbers = rng.normal(size=(len(groups), 3)).astype(np.float32)
        item = rng.integers(0, 5, len(groups))
        offset = rng.normal(size=number)[groups]
        signal = 2 * numbers[:, 0] + quality[item] + offset + 0.3 * rng.normal(size=len(groups))
        if kind == "binary":
            targets = (signal > np.median(signal)).astype(np.int32)
        elif kind == "classes":
            targets = np.digitize(signal, np.quantile(signal, [1 / 3, 2 / 3])).astype(np.int32)
        else:
            targets = (3 + signal).astype(np.float32)
        features = {
            "numbers": numbers,
            "kind": item[:, None].astype(np.int32),
            "words": rng.integers(0, 3, (len(groups), 4)).astype(np.uint8),
        }
        stores[split] = Rows.from_groups(features, groups, targets=targets)
        items[split] = item
    labels = {"binary": ("no", "yes"), "classes": ("low", "middle", "high"), "values": ()}[kind]
    return of_stores(
        stores,
        [f"user{number}" for number in range(units[2])],
        by_group=True,
        labels=labels,
        order=order,
        description="numbers that were drawn",
        fingerprint=f"train{seed}.test{seed}",
        items=items,
        num_items=5,
        sizes={"kind": (5,)},
    )


def write_ratings(path, *, users=40, films=12):
    """Writes a table of ratings, with a class of two and a class of three made of them; returns its path."""
    rng = np.random.default_rng(0)
    quality = rng.normal(size=films)
    lines = ["user,film,genre,year,stars,liked,mood,constant"]
    for user in range(users):
        offset = rng.normal()
        for film in rng.permutation(films)[: rng.integers(films // 2 + 2, films + 1)]:
            exact = 3 + quality[film] + offset / 2 + 0.3 * rng.normal()
            stars = int(np.clip(round(exact), 1, 5))
            mood = ("bad", "fair", "good")[rng.integers(0, 3)]
            liked = "yes" if exact > 3 + offset / 2 else "no"
            genre = ("drama", "comedy")[film % 2]
            lines.append(f"u{user},f{film},{genre},{1980 + film},{stars},{liked},{mood},7")
    path.write_text("\n".join(lines) + "\n")
    return path
