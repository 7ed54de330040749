"""Measures the random forest of FS-Mol's paper: chosen on each support set on a grid of settings.

    python -m experiments.pertask --dataset=fsmol --data_dir=fsmol --support=16 --repeats=1 --baselines_only \
        --baselines=support_constant --workdir=RUN
    python -m benchmarks.forests --data_dir=fsmol --tasks=RUN/tasks.csv
    python -m benchmarks.forests --data_dir=fsmol --tasks=RUN/tasks.csv --published=random_forest_summary.csv

The published baseline searches a grid of depths, features, leaves and numbers of trees by the accuracy in
five folds of the support set, the first of equals. The first version of its code has a grid of 36 settings
(--grid=first), the last one of 144, which fits 145,800 trees for a support set. Here each fold grows --bank
trees for each choice of features and leaves; a forest of the search draws its trees from them, and a depth
cuts them, as the top of a tree does not depend on its depth. The chosen forest is fitted anew. Next to it
stands a forest of 100 trees of scikit-learn, the `--baselines=forest` of the driver.

Reference: Stanley et al., 2021, FS-Mol (https://openreview.net/forum?id=701FtuyLlAd).
"""

import argparse
import csv
import itertools
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.harness import options as shared
from experiments.reports import report
from experiments.reports.comparison import with_width
from metajax.data.features.molecules import morgan_counts
from metajax.data.tables import load_table
from metajax.errors import DataError
from metajax.metrics import confidence_interval

_FOLDS = 5
_FIXED = 100
_NO_DEPTH = np.iinfo(np.int32).max  # scikit-learn's number for no limit


class Setting(NamedTuple):
    """A setting of the search; their order decides between equals.

    Attributes:
      depth: Largest depth of a tree; None for no limit.
      features: Number of features that a node looks at, a word of scikit-learn; None for all.
      leaf: Fewest rows of a leaf.
      trees: Number of trees.
    """

    depth: int | None
    features: str | None
    leaf: int
    trees: int


def _grid(*columns: Sequence[Any]) -> tuple[Setting, ...]:
    """Lists the settings of depths, features, leaves and trees, the last of which varies fastest."""
    return tuple(map(Setting._make, itertools.product(*columns)))


GRIDS: Mapping[str, tuple[Setting, ...]] = {
    "first": _grid((5, 10, 20), (None, "sqrt", "log2"), (2, 5), (100, 200)),
    # "sqrt" stands for "auto" too, which scikit-learn has no more.
    "last": _grid((None, 5, 10, 20), ("sqrt", "sqrt", "log2"), (1, 2, 5), (10, 100, 200, 500)),
}
"""Grids of the first and of the last published version of the baseline's code, by name."""


class Task(NamedTuple):
    """A task of FS-Mol.

    Attributes:
      assay: Name of the assay.
      support: Number of support rows.
      rows: Inputs and labels of the support rows.
      queries: Inputs and labels of the queries.
    """

    assay: str
    support: int
    rows: tuple[np.ndarray, np.ndarray]
    queries: tuple[np.ndarray, np.ndarray]


def read_tasks(path: Path, data_dir: Path, most: int) -> list[Task]:
    """Reads the tasks of a run of `experiments.pertask`, with counts of fragments as inputs.

    Args:
      path: File `tasks.csv` of the run.
      data_dir: Folder of FS-Mol.
      most: Largest number of tasks, spread evenly over the file; 0 for all.

    Returns:
      The tasks.

    Raises:
      DataError: If a file is missing, or lists no task.
    """
    if not path.is_file():
        raise DataError(f"--tasks={path} is no file; name the tasks.csv of a run.")
    limit = csv.field_size_limit(sys.maxsize)  # of an assay with thousands of rows
    try:
        with path.open() as file:
            listed = list(csv.DictReader(file))
    finally:
        csv.field_size_limit(limit)  # which all readers of the process share
    if not listed or "support_rows" not in listed[0]:
        raise DataError(f"--tasks={path} lists no tasks; name the tasks.csv of a run.")
    if most and most < len(listed):
        listed = [listed[i] for i in np.linspace(0, len(listed) - 1, most).round().astype(int)]
    table = load_table("fsmol", data_dir=data_dir).test
    smiles, active = table.text("smiles"), table.floats("active").astype(int)
    place = {int(number): row for row, number in enumerate(table.numbers)}
    used: dict[str, int] = {}
    found = []
    for line in listed:
        halves = []
        for name in ("support_rows", "query_rows"):
            rows = [place[int(number)] for number in line[name].split()]
            numbers = [used.setdefault(smiles[row], len(used)) for row in rows]
            halves.append((np.array(numbers), active[rows]))
        found.append((line["task"], int(line["support"]), *halves))
    counts = morgan_counts(list(used)).values
    return [
        Task(assay, size, *((counts[rows].astype(np.float32), y) for rows, y in halves))
        for assay, size, *halves in found
    ]


def choose(
    inputs: np.ndarray,
    labels: np.ndarray,
    rng: np.random.Generator,
    *,
    grid: Sequence[Setting],
    bank: int,
) -> Setting:
    """Chooses a setting on a support set by its accuracy in cross-validation.

    Args:
      inputs: Inputs [B, D].
      labels: Labels [B] of 0 and 1.
      rng: Generator, advanced.
      grid: Settings to choose from.
      bank: Number of trees that the forests of a fold draw from.

    Returns:
      The first of the best settings.
    """
    model_selection = _sklearn("model_selection")
    kinds = list(dict.fromkeys((one.features, one.leaf) for one in grid))
    depths = list(dict.fromkeys(one.depth for one in grid))
    scores = np.zeros((_FOLDS, len(grid)))
    for fold, (train, valid) in enumerate(
        model_selection.StratifiedKFold(_FOLDS).split(inputs, labels)
    ):
        votes = {
            kind: _votes(inputs[train], labels[train], inputs[valid], rng, kind, depths, bank)
            for kind in kinds
        }
        for number, one in enumerate(grid):
            drawn = rng.multinomial(one.trees, np.full(bank, 1 / bank))
            shares = drawn @ votes[one.features, one.leaf][one.depth]
            scores[fold, number] = ((shares > one.trees / 2) == labels[valid]).mean()
    # As in the published search, means of the same accuracies in another order may differ by rounding.
    return grid[int(scores.mean(0).argmax())]


def _votes(
    inputs: np.ndarray,
    labels: np.ndarray,
    queries: np.ndarray,
    rng: np.random.Generator,
    kind: tuple[str | None, int],
    depths: Sequence[int | None],
    bank: int,
) -> dict[int | None, np.ndarray]:
    """Grows the trees of a fold; returns their share of the second class [bank, Q] by depth."""
    if (labels == labels[0]).all():  # a fold may lack a class of one row
        return dict.fromkeys(depths, np.full((bank, len(queries)), float(labels[0])))
    found: dict[int | None, list[np.ndarray]] = {depth: [] for depth in depths}
    for tree in grow(inputs, labels, rng, features=kind[0], leaf=kind[1], count=bank):
        tops: dict[int, np.ndarray] = {}  # most trees are less deep than most limits
        for depth in depths:
            cut = tree.max_depth if depth is None else min(depth, tree.max_depth)
            if cut not in tops:
                tops[cut] = share_at(tree, queries, cut)
            found[depth].append(tops[cut])
    return {depth: np.stack(shares) for depth, shares in found.items()}


def grow(
    inputs: np.ndarray,
    labels: np.ndarray,
    rng: np.random.Generator,
    *,
    features: str | None,
    leaf: int,
    count: int,
) -> list[Any]:
    """Grows the trees of a random forest, each on a bootstrap sample, without limit of depth.

    By the builder below scikit-learn's classes, which check their arguments for 20 times as long as a tree of
    a few rows takes to grow.

    Args:
      inputs: Inputs [B, D] float32.
      labels: Labels [B] of 0 and 1, both of which occur.
      rng: Generator, advanced.
      features: Number of features that a node looks at, a word of scikit-learn; None for all.
      leaf: Fewest rows of a leaf.
      count: Number of trees.

    Returns:
      Trees as `share_at` reads them.
    """
    made, gini, best = map(_sklearn, ("tree._tree", "tree._criterion", "tree._splitter"))
    number_of = {"sqrt": np.sqrt, "log2": np.log2, None: int}[features]
    looked_at = max(1, int(number_of(inputs.shape[1])))
    targets, classes = labels[:, None].astype(np.float64), np.array([2], np.intp)
    # scikit-learn's splitters ask for NumPy's older generator.
    older = np.random.RandomState(int(rng.integers(2**31)))
    found = []
    for _ in range(count):
        weights = rng.multinomial(len(labels), np.full(len(labels), 1 / len(labels)))
        splitter = best.BestSplitter(gini.Gini(1, classes), looked_at, leaf, 0.0, older, None)
        tree = made.Tree(inputs.shape[1], classes, 1)
        builder = made.DepthFirstTreeBuilder(splitter, 2, leaf, 0.0, _NO_DEPTH, 0.0)
        builder.build(tree, inputs, targets, weights.astype(np.float64), None)
        found.append(tree)
    return found


def share_at(tree: Any, queries: np.ndarray, depth: int) -> np.ndarray:
    """Predicts with the top of a tree.

    Args:
      tree: The arrays of a scikit-learn tree of two classes, its attribute `tree_`.
      queries: Inputs [Q, D].
      depth: Depth at which the tree is cut, at most its own.

    Returns:
      Shares of the second class, [Q].
    """
    nodes, every = np.zeros(len(queries), int), np.arange(len(queries))
    for _ in range(depth):
        goes_left = queries[every, tree.feature[nodes]] <= tree.threshold[nodes]
        below = np.where(goes_left, tree.children_left[nodes], tree.children_right[nodes])
        nodes = np.where(below < 0, nodes, below)  # a leaf has none below
    value = tree.value[nodes, 0]
    return value[:, 1] / value.sum(1)


def fit(inputs: np.ndarray, labels: np.ndarray, setting: Setting, rng: np.random.Generator) -> Any:
    """Fits a forest.

    Args:
      inputs: Inputs [B, D].
      labels: Labels [B].
      setting: Setting of the forest.
      rng: Generator, advanced.

    Returns:
      The forest.
    """
    return (
        _sklearn("ensemble")
        .RandomForestClassifier(
            setting.trees,
            max_depth=setting.depth,
            max_features=setting.features,
            min_samples_leaf=setting.leaf,
            random_state=int(rng.integers(2**31)),
        )
        .fit(inputs, labels)
    )


def delta_auprc(forest: Any, queries: np.ndarray, labels: np.ndarray) -> float:
    """Measures a forest: average precision less the share of positives.

    Args:
      forest: Forest of two classes.
      queries: Inputs [Q, D].
      labels: Labels [Q].

    Returns:
      The difference.
    """
    shares = forest.predict_proba(queries)[:, -1]
    return float(_sklearn("metrics").average_precision_score(labels, shares) - labels.mean())


def _sklearn(name: str) -> Any:
    """Imports a module of scikit-learn."""
    from importlib import import_module

    return import_module(f"sklearn.{name}")


def measure(
    tasks: Sequence[Task],
    *,
    grid: Sequence[Setting],
    bank: int,
    seed: int,
    show: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Measures both forests on tasks.

    Args:
      tasks: The tasks.
      grid: Settings to choose from.
      bank: Number of trees that the forests of a fold draw from.
      seed: Seed of the trees.
      show: Function that shows a line, called once a minute.

    Returns:
      A row per task: assay, support, setting, and `delta_auprc` of the chosen and of the fixed forest.
    """
    found, last = [], time.monotonic()
    for number, task in enumerate(tasks):
        rng = np.random.default_rng([seed, number])
        chosen = choose(*task.rows, rng, grid=grid, bank=bank)
        row: dict[str, Any] = {"assay": task.assay, "support": task.support, "setting": chosen}
        fixed = Setting(None, "sqrt", 1, _FIXED)
        for name, setting in (("chosen", chosen), ("fixed", fixed)):
            row[name] = delta_auprc(fit(*task.rows, setting, rng), *task.queries)
        found.append(row)
        if time.monotonic() - last > 60:
            last = time.monotonic()
            show(f"{number + 1:,} of {len(tasks):,} tasks: {dict(rows(found, {}))}")
    return found


def published(path: Path) -> dict[tuple[str, int], float]:
    """Reads a published file of average precisions.

    Args:
      path: File `random_forest_summary.csv` of FS-Mol's repository.

    Returns:
      Average precision less the share of positives, by assay and support size.
    """
    with path.open() as file:
        lines = list(csv.DictReader(file))
    return {
        (line["TASK_ID"], int(name.split("_")[0])): float(value.split("+")[0])
        - float(line["fraction_positive_test"])
        for line in lines
        for name, value in line.items()
        if name.endswith("_train") and name[0].isdigit() and value
    }


def rows(
    found: Sequence[Mapping[str, Any]], other: Mapping[tuple[str, int], float]
) -> list[tuple[str, str]]:
    """Formats the measurements.

    Args:
      found: Rows of `measure`.
      other: Published values by assay and support size.

    Returns:
      Pairs of name and text for `report.table`.
    """
    lines = []
    for size in sorted({row["support"] for row in found}):
        mine = [row for row in found if row["support"] == size]
        assays = sorted({row["assay"] for row in mine})

        def per_assay(value: Callable[[Any], float], mine=mine, assays=assays) -> np.ndarray:
            return np.array([np.mean([value(r) for r in mine if r["assay"] == a]) for a in assays])

        chosen, fixed = (per_assay(lambda row, name=n: row[name]) for n in ("chosen", "fixed"))
        trees = Counter(row["setting"].trees for row in mine)
        lines += [
            (f"chosen forest at {size}", _mean(chosen)),
            (f"forest of {_FIXED} trees at {size}", _mean(fixed)),
            (f"chosen less fixed at {size}", _mean(chosen - fixed)),
            (f"chosen trees at {size}", ", ".join(f"{n}: {trees[n]:,}" for n in sorted(trees))),
        ]
        if pairs := [a for a in assays if (a, size) in other]:
            theirs = np.array([other[assay, size] for assay in pairs])
            lines.append((f"published at {size}", _mean(theirs)))
            for name, values in (("chosen", chosen), ("fixed", fixed)):
                paired = values[[assays.index(assay) for assay in pairs]] - theirs
                lines.append((f"{name} less published at {size}", _mean(paired)))
    return lines


def _mean(values: np.ndarray) -> str:
    """Formats a mean over assays with its 95% interval."""
    return f"{with_width(*confidence_interval(values))} ({len(values):,} assays)"


def parse(args: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the options; an invalid one is an error of one line, with status 2.

    Args:
      args: Words of the command line; None for the process's.

    Returns:
      The options.
    """
    parser = shared.Parser("benchmarks.forests", __doc__)
    parser.add_argument("--data_dir", type=Path, required=True, help="folder of FS-Mol")
    parser.add_argument("--tasks", type=Path, required=True, help="tasks.csv of a run")
    parser.add_argument("--published", type=Path, help="published file to pair with")
    parser.add_argument(
        "--grid", choices=tuple(GRIDS), default="last", help="grid of settings [last]"
    )
    parser.add_argument("--most", type=shared.positive(int), help="largest number of tasks [all]")
    parser.add_argument(
        "--bank", type=shared.positive(int), default=200, help="trees that forests draw from [200]"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the trees [0]")
    return parser.parse_args(args)


def main(args: Sequence[str] | None = None) -> int:
    """Measures, and prints a table.

    Args:
      args: Words of the command line; None for the process's.

    Returns:
      Exit status.
    """
    options = parse(args)
    try:
        tasks = read_tasks(options.tasks, options.data_dir, options.most or 0)
        other = published(options.published) if options.published else {}
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    start = time.monotonic()
    found = measure(
        tasks,
        grid=GRIDS[options.grid],
        bank=options.bank,
        seed=options.seed,
        show=lambda line: print(line, file=sys.stderr, flush=True),
    )
    took = ("seconds", f"{time.monotonic() - start:,.0f} for {len(tasks):,} tasks")
    print(report.table([*rows(found, other), took]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
