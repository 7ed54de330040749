"""The forest of the published protocol: its trees, the choice of its setting, and the comparison."""

import gzip

import numpy as np
import pytest

from benchmarks import forests
from metajax.data.features.molecules import morgan_counts


def _data(rows, features, seed=0):
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(rows, features)).astype(np.float32)
    return inputs, (inputs[:, 0] + 0.3 * rng.normal(size=rows) > 0).astype(int)


def test_trees_are_those_of_scikit_learn_at_every_depth():
    tree = pytest.importorskip("sklearn.tree")
    (inputs, labels), (queries, _) = _data(40, 5), _data(20, 5, seed=1)
    whole = tree.DecisionTreeClassifier(random_state=0).fit(inputs, labels)
    assert whole.get_depth() > 3
    for depth in (1, 2, 3, whole.get_depth()):
        cut = tree.DecisionTreeClassifier(max_depth=depth, random_state=0).fit(inputs, labels)
        expected = cut.predict_proba(queries)[:, 1]
        found = forests.share_at(whole.tree_, queries, depth)
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(("features", "leaf"), [("sqrt", 1), ("log2", 2), (None, 5)])
def test_a_bank_grows_the_trees_of_a_forest(features, leaf):
    pytest.importorskip("sklearn")
    (inputs, labels), rng = _data(24, 300), np.random.default_rng(0)
    setting = forests.Setting(None, features, leaf, 300)
    theirs = [each.tree_ for each in forests.fit(inputs, labels, setting, rng).estimators_]
    mine = forests.grow(inputs, labels, rng, features=features, leaf=leaf, count=300)
    for measure in (
        lambda tree: tree.node_count,
        lambda tree: forests.share_at(tree, inputs, 2)[0],
    ):
        a, b = (np.array([measure(each) for each in trees]) for trees in (mine, theirs))
        error = np.sqrt((a.var() + b.var()) / 300)
        assert abs(a.mean() - b.mean()) < 4 * error + 1e-9


def test_the_first_of_equal_settings_is_chosen():
    pytest.importorskip("sklearn")
    labels = np.tile([0, 1], 10)
    inputs = np.repeat(labels[:, None], 9, axis=1).astype(np.float32)
    first, last = forests.GRIDS["first"], forests.GRIDS["last"]
    assert (len(first), len(last)) == (36, 144)
    for grid, expected in ((first, (5, None, 2, 100)), (last, (None, "sqrt", 1, 10))):
        rng = np.random.default_rng(0)
        chosen = forests.choose(inputs, labels, rng, grid=grid, bank=20)
        assert chosen == grid[0] == expected


def test_the_best_setting_is_chosen(monkeypatch):
    pytest.importorskip("sklearn")
    labels = np.tile([0, 1], 10)
    inputs = labels[:, None].astype(np.float32)

    def votes(inputs, labels, queries, rng, kind, depths, bank):
        right = np.broadcast_to(queries[:, 0], (bank, len(queries)))
        return {d: right if kind == ("log2", 2) and d in (5, 20) else 1 - right for d in depths}

    monkeypatch.setattr(forests, "_votes", votes)
    rng = np.random.default_rng(0)
    chosen = forests.choose(inputs, labels, rng, grid=forests.GRIDS["last"], bank=3)
    assert chosen == (5, "log2", 2, 10)


def test_assays_are_paired_with_the_published_file(tmp_path):
    lines = "TASK_ID,fraction_positive_test,16_train,32_train\nA,0.5,0.75+/-0.1,\nB,0.25,0.5+/-0,0.6+/-0\n"
    path = tmp_path / "summary.csv"
    path.write_text(lines)
    other = forests.published(path)
    assert other == {("A", 16): 0.25, ("B", 16): 0.25, ("B", 32): pytest.approx(0.35)}
    setting = forests.GRIDS["last"][0]
    found = [
        {"assay": assay, "support": 16, "setting": setting, "chosen": chosen, "fixed": 0.4}
        for assay, chosen in (("A", 0.2), ("A", 0.4), ("B", 0.5))
    ]
    table = dict(forests.rows(found, other))
    assert table["chosen forest at 16"].startswith("0.4000 +- 0.196")
    assert table["chosen less fixed at 16"].startswith("0.0000")
    assert table["fixed less published at 16"].startswith("0.1500 +- 0.0000 (2 assays)")
    assert table["chosen trees at 16"] == "10: 3"


def test_tasks_of_a_run_are_read_with_their_molecules(tmp_path):
    pytest.importorskip("rdkit")
    lines = ["fold\tassay\tsmiles\tactive\tlog_activity", "train\tT\tCC\t1\t", "valid\tV\tCC\t0\t"]
    lines += [f"test\tA\t{'C' * (size + 1)}O\t{size % 2}\t" for size in range(4)]
    (tmp_path / "fsmol.tsv.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    (tmp_path / "tasks.csv").write_text("task,support,support_rows,query_rows\nA,2,3 4,5 6\n")
    (task,) = forests.read_tasks(tmp_path / "tasks.csv", tmp_path, 0)
    assert (task.assay, task.support) == ("A", 2)
    for (inputs, labels), smiles in ((task.rows, ["CO", "CCO"]), (task.queries, ["CCCO", "CCCCO"])):
        np.testing.assert_array_equal(inputs, morgan_counts(smiles).values)
        assert labels.tolist() == [0, 1]


def test_what_is_wrong_is_one_line(tmp_path, capsys):
    flags = [f"--data_dir={tmp_path}", f"--tasks={tmp_path / 'tasks.csv'}"]
    assert forests.main(flags) == 1
    assert "is no file; name the tasks.csv of a run" in capsys.readouterr().err
    (tmp_path / "tasks.csv").write_text("a\n")
    assert forests.main(flags) == 1
    assert "lists no tasks" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        forests.parse([*flags, "--bank=0"])
