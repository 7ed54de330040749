"""The driver of tasks from tables: from a file to a comparison with baselines, and back again."""

import csv
import json
import os
import shutil
import sys
from pathlib import Path

import absl.flags
import jax
import numpy as np
import pytest
from scipy import stats

from experiments.flags.settings import UsageError, define_flags
from experiments.pertask import driver as pertask
from experiments.pertask import loading, networks, reports, scores
from experiments.pertask.options import PertaskSettings, resolve_pertask
from experiments.runtime.flag_sources import read_flags
from experiments.setup import columns
from helpers.driver_runs import drive, rows, unlock
from helpers.task_tables import write_ratings
from metajax.errors import DataError
from metajax.zoo.learners import LEARNERS

SMALL = (
    "--group=user --target=stars --item=film --features=genre,year --support=3,5 --queries=4 "
    "--valid_queries=4 --meta_batch=4 --steps=4 --eval_every=2 --checkpoint_every=2 --valid_episodes=4 "
    "--log_every=1 --repeats=2 --trees=3 --model=mlp --hidden=8"
).split()


def run(*flags):
    status = drive(*flags, driver=pertask, settings_class=PertaskSettings)
    unlock()
    return status


@pytest.fixture(scope="module")
def ratings(tmp_path_factory):
    """A table of forty users whose ratings are an item's quality plus a user's offset."""
    return write_ratings(tmp_path_factory.mktemp("ratings") / "ratings.csv")


@pytest.fixture(scope="module")
def trained(ratings, tmp_path_factory):
    """A run on ratings as values."""
    workdir = tmp_path_factory.mktemp("values")
    assert run(*SMALL, f"--data_dir={ratings}", f"--workdir={workdir}") == 0
    return workdir


def result_of(workdir):
    return json.loads((workdir / "result.json").read_text())


def test_baselines_are_measured_on_the_tasks_of_the_learner(trained):
    result = result_of(trained)
    assert result["kind"] == "values" and list(result["comparison"]) == ["3", "5"]
    first = result["comparison"]["3"]
    wanted = {"learner", "training_constant", "support_constant", "item_bias", "knn", "ridge"}
    assert wanted <= set(first)
    assert result["test_mae"] == pytest.approx(first["learner"]["mae"], rel=1e-6)
    # What made the ratings beats what does not know the items.
    assert first["item_bias"]["mae"] < first["support_constant"]["mae"]
    with (trained / "tasks.csv").open() as file:
        tasks = list(csv.DictReader(file))
    assert len(tasks) == result["episodes"] == 2 * sum(result["tasks"].values())
    learner, bias = (
        np.array([float(t[f"{name}_mae"]) for t in tasks if t["support"] == "3"]).reshape(-1, 2)
        for name in ("learner", "item_bias")
    )
    differences = (learner - bias).mean(1)  # of a user, over its repeats
    found = first["item_bias"]
    assert found["mae_difference"] == pytest.approx(differences.mean(), rel=1e-5)
    quantile = stats.t.ppf(0.975, len(differences) - 1)
    width = quantile * differences.std(ddof=1) / np.sqrt(len(differences))
    assert found["mae_difference_ci95"] == pytest.approx(width, rel=1e-5)


def test_a_baseline_can_be_computed_again_from_the_kept_rows(trained, ratings):
    with ratings.open() as file:
        table = list(csv.DictReader(file))
    with (trained / "tasks.csv").open() as file:
        task = next(csv.DictReader(file))
    stars = {
        name: [float(table[int(n) - 1]["stars"]) for n in task[f"{name}_rows"].split()]
        for name in ("support", "query")
    }
    users = {
        table[int(n) - 1]["user"] for n in (task["support_rows"] + " " + task["query_rows"]).split()
    }
    assert users == {task["task"]} and len(stars["query"]) == int(task["queries"])
    expected = np.abs(np.array(stars["query"]) - np.mean(stars["support"])).mean()
    assert float(task["support_constant_mae"]) == pytest.approx(expected, rel=1e-5)


def test_a_run_resumes_to_the_same_numbers(trained, ratings, tmp_path):
    workdir = tmp_path / "again"
    shutil.copytree(trained, workdir)
    shutil.rmtree(workdir / "checkpoints" / "4")
    for name in ("result.json", "tasks.csv"):
        (workdir / name).unlink()
    assert run(*SMALL, f"--data_dir={ratings}", f"--workdir={workdir}") == 0
    assert (workdir / "tasks.csv").read_text() == (trained / "tasks.csv").read_text()
    assert rows(workdir / "metrics.csv") == rows(trained / "metrics.csv")


def test_a_trained_learner_is_tested_at_another_size(trained, ratings, tmp_path):
    workdir = tmp_path / "evaluated"
    shutil.copytree(trained, workdir)
    flags = ["--mode=evaluate", "--repeats=1", "--test_tasks=3", "--baselines=none"]
    assert run(*flags, f"--data_dir={ratings}", f"--workdir={workdir}") == 0
    result = result_of(workdir / "evaluation")
    assert result["tasks"] == {"3": 3, "5": 3} and list(result["comparison"]["5"]) == ["learner"]


def test_rows_that_are_encoded_once_have_the_scores_of_rows_encoded_in_their_tasks(
    ratings, tmp_path, monkeypatch
):
    flags = [*SMALL, f"--data_dir={ratings}", "--target=liked", "--learner=protonet", "--support=4"]
    flags += ["--baselines=none", f"--workdir={tmp_path}"]
    assert run(*flags) == 0
    once = result_of(tmp_path)
    monkeypatch.setitem(LEARNERS, "protonet", LEARNERS["protonet"]._replace(encoder_of=None))
    assert run("--mode=evaluate", f"--data_dir={ratings}", f"--workdir={tmp_path}") == 0
    learner, again = (
        each["comparison"]["4"]["learner"] for each in (once, result_of(tmp_path / "evaluation"))
    )
    assert learner == pytest.approx(again, rel=1e-5)


def test_baselines_alone_need_no_training_and_wide_rows_fewer_tasks_at_once(
    ratings, tmp_path, monkeypatch
):
    flags = [*SMALL, "--baselines_only", "--learner=protonet", f"--data_dir={ratings}"]
    assert run(*flags, "--baselines=item_bias,support_constant", f"--workdir={tmp_path}") == 0
    found = result_of(tmp_path)["comparison"]["3"]
    assert list(found) == ["support_constant", "item_bias"]
    assert not (tmp_path / "checkpoints").exists()
    kept = (tmp_path / "tasks.csv").read_text()
    monkeypatch.setattr(scores, "NUMBERS_AT_ONCE", 1)
    assert run(*flags, "--baselines=item_bias,support_constant", f"--workdir={tmp_path}") == 0
    assert (tmp_path / "tasks.csv").read_text() == kept


@pytest.mark.parametrize("target", ["liked", "mood"])
def test_classes_are_stratified_and_scored(target, ratings, tmp_path):
    flags = [flag for flag in SMALL if not flag.startswith(("--target", "--item"))]
    flags += [f"--target={target}", "--learner=protonet", "--baselines=logistic,knn"]
    assert run(*flags, f"--data_dir={ratings}", f"--workdir={tmp_path}") == 0
    result = result_of(tmp_path)
    assert result["kind"] == {"liked": "binary", "mood": "classes"}[target]
    assert result["order"] == "stratified"
    for row in result["comparison"]["5"].values():
        assert 0 <= row["auroc"] <= 1 and 0 <= row["calibration_error"] <= 1


def test_windows_are_measured_apart(ratings, tmp_path, capsys):
    flags = [flag for flag in SMALL if not flag.startswith(("--target", "--support", "--item"))]
    flags += "--target=liked --support=2 --order=first --windows=3-4,5-6 --baselines=knn".split()
    assert run(*flags, "--baselines_only", f"--data_dir={ratings}", f"--workdir={tmp_path}") == 0
    found = result_of(tmp_path)["comparison"]["2"]["knn"]
    assert {"accuracy_3_4", "auroc_5_6"} <= set(found) and found["accuracy"] >= 0
    printed = capsys.readouterr().out.split("support 2: ")
    (window,) = [block for block in printed if block.startswith("accuracy of rows 3-4 (higher")]
    assert f"knn                {found['accuracy_3_4']:.4f} +- " in window


def settings(ratings, **options):
    plain = {"data_dir": str(ratings), "group": "user", "target": "stars", "support": "3"}
    return PertaskSettings(**{**plain, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group": ""}, "--dataset=table needs --group, such as --group=user"),
        ({"group": "usr"}, r"no column 'usr'; did you mean 'user'"),
        ({"features": "stars"}, "--features=stars is the target"),
        ({"item": "stars"}, "--item=stars is the target"),
        ({"support": "3,x"}, "is not a list of different numbers"),
        ({"windows": "5-3"}, "is not a list of ranges"),
        ({"windows": "3-5", "order": "random"}, "use --order=first"),
        ({"windows": "3-5", "support": "2,4"}, "use windows from row 5"),
        ({"baselines": "kn"}, "--baselines=kn is unknown; did you mean knn"),
        ({"baselines": "logistic"}, "does not fit values targets of this table; use training_c"),
        ({"baselines": "item_bias"}, "It needs --item"),
        ({"learner": "simpleshot"}, "use a learner of episodes"),
        ({"learner": "protonet"}, "predicts classes, and these tasks ask for values"),
        ({"metric": "auroc"}, "does not go with values targets; use one of mae"),
        ({"order": "stratified"}, "needs classes, and the target has values"),
        ({"support": "500"}, "and the largest of 8 has 1[0-9]; use --support="),
        ({"model": "ngrams"}, "reads text, and the table has none"),
        ({"model": "fields", "model_options": "wdth=3"}, "did you mean width"),
        ({"model": "fields", "model_options": "width=x"}, "width=x is no int"),
        ({"kind": "binary"}, "has 5 values, and --kind=binary"),
        ({"target": "constant"}, "the target|target needs"),
    ],
)
def test_what_does_not_fit_is_one_line(options, message, ratings):
    with pytest.raises((UsageError, DataError), match=message) as caught:
        pertask.build(settings(ratings, **options))
    assert "\n" not in str(caught.value)


def test_columns_are_numbers_or_categories_by_their_values(ratings):
    data, found = loading.load(settings(ratings, features="genre,year", item="film"))
    assert found["kind"] == "values" and found["order"] == "random" and found["model"] == "fields"
    features = data.stores["train"].features
    assert set(features) == {"numbers", "missing", "categories"}
    flat = data.flat(data.stores["train"].take(np.arange(3)), False)
    assert flat.shape == (
        3,
        3 + 1 + 1,
    )  # two genres and an unseen one, the year, whether it is missing
    targets = np.asarray(data.stores["train"].targets)
    assert targets.shape[1] == 1 and abs(targets.mean()) < 1e-5 and abs(targets.std() - 1) < 1e-5


def test_test_targets_do_not_reach_what_is_learned_from_training(ratings, tmp_path):
    first, _ = loading.load(settings(ratings, features="genre,year", item="film"))
    with ratings.open() as file:
        table = list(csv.DictReader(file))
    changed = tmp_path / "changed.csv"
    with changed.open("w") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        for row in table:
            stars = "1" if row["user"] in first.names else row["stars"]
            writer.writerow({**row, "stars": stars})
    second, _ = loading.load(settings(changed, features="genre,year", item="film"))
    assert (second.level, second.spread) == (first.level, first.spread)
    for name in ("targets", "features"):
        both = [getattr(data.stores["train"], name) for data in (first, second)]
        if name == "features":
            both = [each["numbers"] for each in both]
        np.testing.assert_array_equal(*both)
    one, two = (data.fingerprint.split(".") for data in (first, second))
    assert one[0] == two[0] and one[1] != two[1]


@pytest.mark.parametrize("given", [True, False])
def test_a_flag_that_is_given_stays_where_targets_are_values(given, ratings):
    # Of classes, cavia takes two inner steps of this size by itself.
    flags = ["--learner=cavia", f"--data_dir={ratings}", "--group=user", "--target=stars"]
    flags += ["--support=3", "--baselines=none"] + (["--inner_lr=5"] if given else [])
    values = absl.flags.FlagValues()
    define_flags(PertaskSettings, values)
    settled = pertask.build(read_flags(PertaskSettings, ["driver", *flags], values)).settled
    assert settled["kind"] == "values" and settled["inner_steps"] == 1
    assert ("inner_lr" in settled) != given and settled.get("inner_lr", 0.1) == 0.1


def test_what_is_left_out_is_printed_and_kept(tmp_path, capsys):
    lines = ["user,word,score,late"]
    lines += [
        f"u{i // 6},{'' if i == 8 else 'ab'[i % 2]},{i % 5},{['no', 'yes', 'NA'][(i > 5) * i % 3]}"
        for i in range(60)
    ]
    path = tmp_path / "users.csv"
    path.write_text("\n".join(lines) + "\n")
    flags = (
        f"--data_dir={path} --group=user --target=late --text=word --support=2 --split=all".split()
    )
    more = ["--baselines_only", "--baselines=support_constant", f"--workdir={tmp_path / 'run'}"]
    assert run(*flags, *more) == 0
    notes = result_of(tmp_path / "run")["notes"]
    assert "test: 1 of 60 rows have no 'word' and are left out: rows 9" in notes
    assert "18 of 60 rows have no 'late'" in notes
    printed = " ".join(capsys.readouterr().out.split())
    assert "note test: 1 of 60 rows have no 'word' and are left out: rows 9" in printed


def test_missing_targets_do_not_make_two_classes_three(tmp_path):
    lines = ["user,age,late", *(f"u{i // 9},{i % 4},{'01?'[i % 3]}" for i in range(54))]
    path = tmp_path / "users.csv"
    path.write_text("\n".join(lines) + "\n")
    options = {"group": "user", "target": "late", "support": "2"}
    data, found = loading.load(PertaskSettings(data_dir=str(path), **options))
    assert found["kind"] == "binary" and data.labels == ("0", "1")
    assert all("have no 'late'" in note for note in data.notes) and len(data.notes) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"target": "stars", "features": "late"},
            r"row 18 of odd.csv, column 'stars': 'four' is not .* or use --kind=classes",
        ),
        (
            {"target": "stars", "kind": "values", "features": "late"},
            r"row 18 of odd.csv, column 'stars': 'four'",
        ),
        (
            {"target": "late", "features": "age"},
            "row 21 of odd.csv, column 'age': 'x1' .*--categories",
        ),
        (
            {"target": "late", "categories": "age", "features": "age", "order": "balanced"},
            r"takes 1 support rows and 16 queries of each class .* use --queries=\d+ or less",
        ),
        ({"target": "late", "text": "word"}, "Column 'word' of odd.csv is empty in all 60 rows"),
        (
            {"target": "id", "features": "late"},
            "has 60 values, and 20 classes are the most; use ano",
        ),
        ({"target": "late", "features": "id"}, "name it in --text, or name the columns to read by"),
        ({"target": "late", "features": "age,late"}, "--features=late is the target, which is no"),
    ],
)
def test_what_a_file_lacks_is_named_with_a_remedy(options, message, tmp_path, monkeypatch):
    lines = ["user,age,stars,late,word,id"]
    lines += [
        f"u{i // 10},{'x1' if i == 20 else i % 4},{'four' if i == 17 else i % 5},{i % 2},,c{i}"
        for i in range(100)
    ]
    path = tmp_path / "odd.csv"
    path.write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(columns, "MOST_CATEGORIES", 50)
    plain = {"data_dir": str(path), "group": "user", "support": "2", "features": "stars"}
    if "text" in options:
        plain["features"] = ""
    with pytest.raises((UsageError, DataError), match=message) as caught:
        pertask.build(PertaskSettings(**{**plain, **options}))
    assert "\n" not in str(caught.value)


def test_tasks_are_divided_by_a_file_of_lists(ratings, tmp_path):
    lists = {"train": [f"u{i}" for i in range(9)], "valid": ["u10", "u11"], "test": ["u12"]}
    path = tmp_path / "split.json"
    path.write_text(json.dumps(lists))
    data, _ = loading.load(settings(ratings, features="year", split_file=str(path)))
    assert tuple(data.names) == ("u12",)


def test_parquet_without_pyarrow_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    path = tmp_path / "ratings.parquet"
    path.touch()
    with pytest.raises(
        ImportError, match=r"needs pyarrow; install it with: pip install 'metajax\[tables\]'"
    ):
        pertask.build(settings(path))


def test_the_plan_has_the_sizes(ratings):
    plan = resolve_pertask(settings(ratings, support="4,2", train_support=3))
    assert plan.supports == (4, 2) and plan.train_support == 3
    assert resolve_pertask(settings(ratings)).train_support == 3


@pytest.mark.skipif("METAJAX_SHARED_DATA" not in os.environ, reason="needs the data sets on disk")
def test_restaurants_have_the_tasks_and_means_of_their_file(tmp_path):
    folder = Path(os.environ["METAJAX_SHARED_DATA"]) / "restaurant"
    flags = ["--dataset=restaurant", f"--data_dir={folder}", "--support=4", "--baselines_only"]
    assert run(*flags, "--baselines=support_constant", f"--workdir={tmp_path}") == 0
    (ratings,) = folder.rglob("rating_final.csv")
    with ratings.open() as file:
        table = list(csv.DictReader(file))
    with (tmp_path / "tasks.csv").open() as file:
        for task in csv.DictReader(file):
            support, query = (
                np.array([float(table[int(n) - 1]["rating"]) for n in task[f"{name}_rows"].split()])
                for name in ("support", "query")
            )
            own = {table[int(n) - 1]["userID"] for n in task["query_rows"].split()}
            assert own == {task["task"]}
            expected = np.abs(query - support.mean()).mean()
            assert float(task["support_constant_mae"]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("columns", "model", "kinds"),
    [
        ({"text": "genre"}, "ngrams", {"text"}),
        ({"features": "year"}, "fields", {"numbers", "missing"}),
        ({"text": "genre", "features": "year"}, "mlp", {"text", "numbers", "missing"}),
        (
            {"text": "genre", "model": "word_cnn", "model_options": "filters=4 length=3"},
            "word_cnn",
            {"text"},
        ),
    ],
)
def test_the_network_follows_the_columns(columns, model, kinds, ratings):
    plan, data = pertask.read(settings(ratings, target="mood", **columns))
    assert plan.model == model and set(data.stores["train"].features) == kinds
    built = networks.build(plan, data)
    inputs = pertask.example_inputs(data.stores["train"], built.view, 3)
    for network, width in ((built.model, (3, 3)), (built.decoder, (3, 2))):
        params = jax.eval_shape(network.init, jax.random.key(0), inputs)
        assert jax.eval_shape(network.apply, params, inputs).shape == width
    # Ids of words are no numbers to compare rows by.
    named = reports.chosen_baselines(plan, data)
    assert data.is_flat == ("knn" in named) == (model != "word_cnn") and "support_constant" in named
    if data.is_flat:
        assert data.flat(data.stores["train"].take(np.arange(2)), True).shape[0] == 2
