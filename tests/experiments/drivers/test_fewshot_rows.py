"""Few-shot classification of texts and table rows: from a file to a result, and back again."""

import csv
import json
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.fewshot import driver as fewshot
from experiments.fewshot import row_data
from experiments.fewshot.options import FewshotSettings, resolve_fewshot
from experiments.fewshot.row_scores import PairedSampler, class_means, unknown_fields
from experiments.fewshot.rows import build
from experiments.flags.settings import UsageError
from experiments.setup.experiment import evaluation_key
from experiments.setup.learners import inner_adjoint
from helpers.class_tables import write_languages, write_tickets
from helpers.driver_runs import drive, parsed, rows, unlock
from metajax.data.features import count_ngrams
from metajax.episodes.group_sampler import GroupSampler
from metajax.episodes.rows import Rows
from metajax.errors import DataError
from metajax.losses import cross_entropy
from metajax.objectives.query import query_objective
from metajax.objectives.scoring import Scoring
from metajax.train import draw_tasks
from metajax.zoo.learners import LEARNERS

SMALL = (
    "--dataset=table --label=topic --ways=2 --queries=2 --test_queries=3 --meta_batch=2 --steps=2 "
    "--eval_every=1 --checkpoint_every=1 --valid_episodes=4 --eval_episodes=5 --log_every=1"
).split()
TEXT = [*SMALL, "--text=message", "--model_options=size=256"]


def run(*flags):
    status = drive(*flags)
    unlock()
    return status


def result_of(workdir):
    return json.loads((workdir / "result.json").read_text())


@pytest.fixture(scope="module")
def tickets(tmp_path_factory):
    """A table of messages of twelve topics, and of some without one."""
    return write_tickets(tmp_path_factory.mktemp("tickets") / "tickets.csv")


@pytest.fixture(scope="module")
def trained(tickets, tmp_path_factory):
    """A run of prototypical networks on messages."""
    workdir = tmp_path_factory.mktemp("trained")
    flags = ["--learner=protonet", "--unknown=oos", f"--data_dir={tickets}", f"--workdir={workdir}"]
    assert run(*TEXT, *flags) == 0
    return workdir


def settings(tickets, **options):
    plain = {"dataset": "table", "data_dir": str(tickets), "label": "topic", "text": "message"}
    small = {"ways": 2, "queries": 2, "test_queries": 3, "model_options": "size=64"}
    if options.get("model", "ngrams") != "ngrams" or not options.get("text", "message"):
        del small["model_options"]
    return FewshotSettings(**{**plain, **small, **options})


def test_the_untrained_baseline_is_that_of_class_means_computed_by_hand(trained, tickets):
    result = result_of(trained)
    assert result["settings"]["model"] == "ngrams" and result["untrained"] == "ngrams"
    with (trained / "test_scores.csv").open() as file:
        scores = list(csv.DictReader(file))
    found = np.array([float(row["untrained_accuracy"]) for row in scores])
    assert result["test_untrained_accuracy"] == pytest.approx(found.mean())
    assert result["untrained_accuracy_ci95"] == pytest.approx(1.96 * found.std(ddof=1) / 5**0.5)
    learned = np.array([float(row["accuracy"]) for row in scores])
    assert result["test_accuracy_over_untrained"] == pytest.approx((learned - found).mean())

    options = {"learner": "protonet", "unknown": "oos", "model_options": "size=256"}
    plan = resolve_fewshot(settings(tickets, **options, model="ngrams"))
    store = row_data.load(plan).stores["test"]
    sampler = GroupSampler(2, 1, 3)
    _, draws = draw_tasks(sampler.identify, store, evaluation_key(0, "test"), 0, jnp.arange(5))
    with tickets.open() as file:
        texts = {row["message"]: row["topic"] for row in csv.DictReader(file)}
    by_counts = {count_ngrams([text], size=256).tobytes(): topic for text, topic in texts.items()}
    for accuracy, drawn in zip(found, np.asarray(draws.rows), strict=True):
        counts = np.asarray(store.take(drawn)["text"])
        topics = [[by_counts[row.tobytes()] for row in group] for group in counts]
        assert all(len(set(group)) == 1 for group in topics) and topics[0][0] != topics[1][0]
        unit = np.sqrt(counts.astype(np.float64))
        unit /= np.linalg.norm(unit, axis=-1, keepdims=True)
        cosines = unit[:, 1:].reshape(6, -1) @ unit[:, 0].T
        right = cosines.argmax(1) == np.repeat([0, 1], 3)
        assert accuracy == pytest.approx(right.mean(), abs=1e-6)


def test_rows_of_no_class_are_measured(trained):
    result = result_of(trained)
    for name in ("unknown_auroc", "untrained_unknown_auroc", "known_accepted", "unknown_rejected"):
        assert 0 <= result[name] <= 1
    assert 0.5 <= result["unknown_threshold"] <= 1  # the largest of two probabilities
    assert result["unknown_auroc_ci95"] >= 0


def test_a_run_resumes_to_the_same_numbers_and_is_tested_again(trained, tickets, tmp_path):
    workdir = tmp_path / "again"
    shutil.copytree(trained, workdir)
    shutil.rmtree(workdir / "checkpoints" / "2")
    (workdir / "result.json").unlink()
    flags = ["--learner=protonet", "--unknown=oos", f"--data_dir={tickets}", f"--workdir={workdir}"]
    assert run(*TEXT, *flags) == 0
    for name in ("test_scores.csv",):
        assert (workdir / name).read_text() == (trained / name).read_text()
    assert rows(workdir / "metrics.csv") == rows(trained / "metrics.csv")
    assert result_of(workdir)["unknown_auroc"] == result_of(trained)["unknown_auroc"]
    again = ["--mode=evaluate", "--test_queries=2", "--eval_episodes=3", f"--workdir={workdir}"]
    assert run(*again, f"--data_dir={tickets}") == 0
    tested = result_of(workdir / "evaluation")
    assert (tested["queries"], tested["episodes"]) == (2, 3)
    assert tested["settings"]["scale"] == 10 and tested["settings"]["distance"] == "cosine"


@pytest.mark.parametrize(
    ("flags", "size"),
    [
        ([], 5.0),
        (["--learner=anil"], 5.0),
        (["--inner_lr=0.4"], 0.4),
        (["--inner_optimizer=adam"], 0.4),
        (["--learner=cavia"], LEARNERS["cavia"].defaults["classes"]["inner_lr"]),
        (["--learner=protonet"], 0.4),  # which takes no steps
    ],
)
def test_inner_steps_are_of_the_size_of_features_of_length_one(tickets, flags, size):
    settings = parsed([*TEXT, f"--data_dir={tickets}", *flags])
    assert build(settings).settled["inner_lr"] == size


def test_known_rows_near_the_classes_are_told_from_others():
    """Rows of class i lie along axis i, and rows of no class along another axis or among the classes."""
    groups = np.repeat(np.arange(3), 6)
    store = Rows.from_groups(np.eye(4, dtype=np.float32)[groups], groups)
    sampler = GroupSampler(2, 1, 3)

    learner = class_means(2)
    meta = learner.init(jax.random.key(0), np.zeros((2, 4), np.float32))

    def measured(others):
        return unknown_fields(
            meta,
            learner,
            Scoring(cross_entropy),
            {split: PairedSampler(sampler, sampler) for split in ("valid", "test")},
            {split: store for split in ("valid", "test")},
            Rows.of_sorted(others, np.array([len(others)])),
            views=(lambda features: features, lambda features: features),
            seed=0,
            episodes={"valid": 4, "test": 4},
            tasks_at_once=2,
        )

    apart = measured(np.eye(4, dtype=np.float32)[np.full(8, 3)])
    assert apart["unknown_auroc"] == apart["untrained_unknown_auroc"] == 1
    assert apart["known_accepted"] == apart["unknown_rejected"] == 1
    # A softmax of the cosines 1 and 0.
    assert apart["unknown_threshold"] == pytest.approx(np.e / (np.e + 1), rel=1e-5)
    # As near to one class as to the other.
    alike = measured(np.ones((8, 4), np.float32))
    assert alike["unknown_auroc"] == 1 and alike["unknown_rejected"] == 1
    same = measured(np.eye(4, dtype=np.float32)[np.repeat([0, 1, 2], 2)])
    # Of three classes a task has two: the rows of the third are less confident, the others tie.
    assert same["unknown_auroc"] == pytest.approx((4 / 2 + 2) / 6)


@pytest.mark.parametrize(
    "flags",
    [
        ["--text=message"],
        ["--text=message", "--model=word_cnn", "--model_options=width=4 filters=4 length=6"],
        ["--features=age,color", "--learner=simpleshot", "--images=8"],
        "--text=message --features=age --learner=r2d2 --domain=shop --test_queries=1 --queries=1".split(),
    ],
    ids=["one line", "words", "fields", "mixed"],
)
def test_columns_of_all_kinds_are_classified(flags, tickets, tmp_path):
    small = [flag for flag in SMALL if "simpleshot" not in str(flags) or "queries=2" not in flag]
    assert run(*small, *flags, f"--data_dir={tickets}", f"--workdir={tmp_path}") == 0
    result = result_of(tmp_path)
    assert 0 <= result["test_accuracy"] <= 1 and 0 <= result["test_untrained_accuracy"] <= 1
    assert not result["transductive"]


CLASSIFIERS = [name for name, entry in LEARNERS.items() if "classes" in entry.predicts]


@pytest.mark.parametrize("learner", CLASSIFIERS)
def test_every_learner_of_classes_reads_text(learner, tickets):
    asked = settings(tickets, learner=learner, train_ways=None)
    if LEARNERS[learner].objective:
        asked = settings(tickets, learner=learner, queries=FewshotSettings.queries)
    experiment = fewshot.build(asked)
    adjoint = inner_adjoint("reverse")
    made = experiment.make_learner(1, adjoint)
    meta = jax.eval_shape(made.init, jax.random.key(0), experiment.inputs)
    task = jax.eval_shape(experiment.samplers["train"], experiment.data["train"], jax.random.key(0))
    objective = experiment.trained(made) if experiment.trained else None
    objective = objective or query_objective(made, experiment.scoring)
    loss, _ = jax.eval_shape(objective, meta, jax.random.key(0), task)
    assert loss.shape == ()
    tested = experiment.make_learner(1, adjoint, testing=True)
    pair = jax.eval_shape(experiment.samplers["test"], experiment.data["test"], jax.random.key(0))
    _, values = jax.eval_shape(experiment.scored(tested), meta, jax.random.key(0), pair)
    assert {"accuracy", "untrained_accuracy"} <= set(values)


@pytest.mark.parametrize(
    ("model", "width", "parts"),
    [("conv4_stride", 2048, ()), ("molecule_network", 2048, ("smiles",))],
    ids=["fingerprints", "graphs"],
)
def test_molecules_are_compared_by_their_fingerprints(model, width, parts, tickets):
    pytest.importorskip("rdkit")
    asked = settings(tickets, text="", smiles="smiles", model=model, learner="protonet")
    experiment = fewshot.build(asked)
    assert experiment.facts["untrained"] == "fingerprints"
    assert experiment.facts["model"] == (model if parts else "fingerprints")
    sampler, store = experiment.samplers["test"], experiment.data["test"]
    pair = jax.eval_shape(sampler, store, jax.random.key(0))
    assert pair.plain.query.inputs.shape == (6, width)
    found = pair.own.query.inputs["smiles"]
    assert set(found) == {"atoms", "bonds", "mask"} if parts else found.shape == (6, width)


def test_classes_of_a_task_are_of_one_domain_and_domains_are_not_shared(tmp_path):
    write_languages(tmp_path)
    asked = {"dataset": "xsid", "data_dir": str(tmp_path), "text": "", "label": "", "ways": 3}
    lists = {"train_domains": "en", "valid_domains": "de", "test_domains": "da,lt"}
    asked = settings(tmp_path, **asked, **lists, model="ngrams", model_options="size=64")
    data = row_data.load(resolve_fewshot(asked))
    counts = {split: store.parents.counts.tolist() for split, store in data.stores.items()}
    assert counts == {"train": [4], "valid": [4], "test": [4, 4]}
    # Translations of one sentence are in one file: no test row is from a file that is trained on.
    words = {
        split: {(f"{language} {file} intent0 word0") for language in languages}
        for split, languages, file in (
            ("train", ["en"], "valid"),
            ("valid", ["de"], "valid"),
            ("test", ["da", "lt"], "test"),
        )
    }
    for split, texts in words.items():
        held = {row.tobytes() for row in np.asarray(data.stores[split].features["text"])}
        assert {row.tobytes() for row in count_ngrams(sorted(texts), size=64)} <= held
        other = "test" if split != "test" else "valid"
        wrong = count_ngrams(
            [f"{text.split()[0]} {other} intent0 word0" for text in texts], size=64
        )
        assert not {row.tobytes() for row in wrong} & held
    sampler = GroupSampler(3, 1, 2, within=True)
    for seed in range(5):
        draw = sampler.identify(data.stores["test"], jax.random.key(seed))
        groups = np.asarray(data.stores["test"].groups_of(draw.rows))
        assert len(set((groups // 4).ravel())) == 1


def test_a_fifth_of_the_training_domains_validates(tmp_path):
    write_languages(tmp_path, ("en", "de", "da", "lt", "nl"))
    options = {"dataset": "xsid", "text": "", "label": "", "model": "ngrams", "ways": 3}
    lists = {"train_domains": "en,de,nl", "test_domains": "da", "model_options": "size=64"}
    data = row_data.load(resolve_fewshot(settings(tmp_path, **options, **lists)))
    sizes = {split: len(store.parents.counts) for split, store in data.stores.items()}
    assert sizes == {"train": 2, "valid": 1, "test": 1}


def test_every_split_has_the_classes_of_an_episode_where_there_are_as_many(tickets):
    # Of twelve topics and one of unknown rows, a fifth would be two.
    named = {"unknown": "oos", "test_queries": 2, "model": "ngrams"}
    for ways, least in ((4, 4), (5, 2)):
        splits = row_data.own_table(resolve_fewshot(settings(tickets, ways=ways, **named)))
        sizes = [len(set(part.text("topic"))) for part in (splits.train, splits.valid, splits.test)]
        assert sum(sizes) == 12 and min(sizes) == least


def test_a_category_that_looks_like_a_number_is_one_next_to_text(tickets):
    chosen = settings(tickets, categories="age")
    assert chosen.row_model == "mlp"
    recipe = row_data.own_table(resolve_fewshot(chosen)).recipe
    assert recipe.text == ("message",) and recipe.categories == ("age",) and not recipe.numbers


def test_columns_that_are_not_named_are_not_read(tmp_path):
    lines = [
        json.dumps({"message": f"{topic} {i}", "topic": topic, "tags": [i], "shop": "s"})
        for topic in "abcdefghij"
        for i in range(5)
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    named = {"data_dir": str(tmp_path / "t.jsonl"), "test_queries": 2}
    plan = resolve_fewshot(settings(tmp_path, **named, split="column:shop"))
    with pytest.raises(DataError, match="'s'"):  # the column of the split is read, and names none
        row_data.load(plan)
    data = row_data.load(resolve_fewshot(settings(tmp_path, **named, model="ngrams")))
    assert sum(int(store.counts.sum()) for store in data.stores.values()) == 50
    named |= {"text": "", "model": "fields", "features": ""}
    with pytest.raises(DataError, match="column 'tags': list"):  # all columns are features
        row_data.load(resolve_fewshot(settings(tmp_path, **named)))


def test_a_data_set_of_tfds_is_a_table(tmp_path, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")
    from helpers.prepared import prepare

    topics = list("abcdefghij")
    label = tfds.features.ClassLabel(names=topics)
    features = {
        "message": tfds.features.Text(),
        "topic": label,
        "n": tfds.features.Scalar(np.int64),
    }
    records = [
        {"message": f"{topic} {i}", "topic": label.str2int(topic), "n": i}
        for topic in topics
        for i in range(5)
    ]
    prepare(tmp_path, {"train": records[:20], "test": records[20:]}, features=features)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    named = {"data_dir": "tfds:tiny", "test_queries": 2, "model": "ngrams"}
    data = row_data.load(resolve_fewshot(settings(tmp_path, **named)))
    assert sum(len(store.counts) for store in data.stores.values()) == 10
    assert data.description.startswith("tiny:1.0.0, split random")
    workdir = tmp_path / "run"
    flags = ["--learner=protonet", "--data_dir=tfds:tiny", f"--workdir={workdir}"]
    assert run(*TEXT, *flags) == 0
    assert result_of(workdir)["split"].startswith("tiny:1.0.0")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": ""}, "--dataset=table needs --label, such as --label=topic"),
        ({"label": "topik"}, "no column 'topik' among .*; did you mean 'topic'"),
        ({"text": "mesage"}, "no column 'mesage' among .*; did you mean 'message'"),
        ({"text": "topic"}, "--text=topic is the label, which is no feature"),
        ({"label": "shop", "ways": 2}, "has 3 values.*, and three splits of 2 or more need 6"),
        ({"unknown": "oss"}, "has no value 'oss'; did you mean 'oos'"),
        ({"model": "resnet12"}, "--model=resnet12 reads images, and --dataset=table has none"),
        (
            {"model": "fingerprints"},
            "reads smiles, and the table has none; use mlp or one of ngrams",
        ),
        ({"model_options": "sise=64"}, "did you mean size"),
        ({"model_options": "scaled=false", "learner": "simpleshot", "queries": 5}, None),
        ({"model_options": "scaled=false", "learner": "matching"}, "has nothing to learn"),
        ({"test_queries": 9}, "10 rows per class, and [1-9].*--test_queries="),
        ({"test_queries": 8, "min_rows": 10, "unknown": "oos"}, "10 rows or more"),
        ({"ways": 5}, "5 ways are more than the [23] classes of valid; use --ways=[23] or less"),
        ({"image_size": 28}, "--image_size=28 does not go with --dataset=table"),
        ({"norm": "batch"}, "--norm=batch does not go with --model=ngrams"),
        ({"dataset": "fsmol", "text": "", "label": ""}, "is read from your disk|is not in"),
        ({"dataset": "glyphs"}, "--text=message does not go with --dataset=glyphs"),
        ({"train_domains": "a"}, "--train_domains needs domains, and table has none; name their"),
        ({"domain": "shop", "train_domains": "shop0"}, "--train_domains needs --test_domains too"),
        (
            {"domain": "shop", "train_domains": "shop0,shop9", "test_domains": "shop1"},
            "is no value of 'shop'; did you mean",
        ),
        (
            {"domain": "shop", "train_domains": "shop0,shop1", "test_domains": "shop1"},
            "in --train_domains and in --test_domains|--test_domains and in|domains and in",
        ),
        ({"domain": "shop", "train_domains": "shop0", "test_domains": "shop1"}, "single domain"),
        ({"domain": "shop", "ways": 13}, "are more than the 1[23] classes of the largest domain"),
    ],
)
def test_what_does_not_fit_is_one_line(options, message, tickets):
    if message is None:
        assert fewshot.build(settings(tickets, **options)).settled["model"] == "ngrams"
        return
    with pytest.raises((UsageError, DataError), match=message) as caught:
        fewshot.build(settings(tickets, **options))
    assert "\n" not in str(caught.value)


def test_rows_without_text_are_left_out_and_counted(tickets, tmp_path):
    lines = tickets.read_text().splitlines()
    lines[1] = "," + lines[1].partition(",")[2]
    (tmp_path / "gaps.csv").write_text("\n".join(lines))
    data = row_data.load(resolve_fewshot(settings(tmp_path / "gaps.csv", model="ngrams")))
    assert "1 of " in data.description and "have no 'message'" in data.description
    (tmp_path / "none.csv").write_text("message,topic\n" + "".join(f",{t}\n" for t in "abcdef"))
    with pytest.raises(DataError, match=r"'message' of none.csv is empty in all \d rows"):
        row_data.load(resolve_fewshot(settings(tmp_path / "none.csv", model="ngrams")))


def test_images_with_a_network_of_rows_are_refused():
    with pytest.raises(UsageError, match="--model=ngrams reads text"):
        fewshot.build(FewshotSettings(model="ngrams"))


@pytest.mark.skipif("METAJAX_SHARED_DATA" not in os.environ, reason="needs the data sets on disk")
def test_published_classes_of_intents_and_their_untrained_line():
    folder = Path(os.environ["METAJAX_SHARED_DATA"]) / "intents"
    options = {"dataset": "banking77", "data_dir": str(folder), "learner": "protonet"}
    asked = FewshotSettings(**options, test_queries=5, split="1")
    experiment = fewshot.build(asked)
    sizes = {split: len(store.counts) for split, store in experiment.data.items()}
    assert sizes == {"train": 25, "valid": 25, "test": 27}
    assert experiment.settled["train_ways"] == 20
    sampler, untrained = experiment.samplers["test"].plain, class_means(5)
    store = experiment.data["test"]
    like = jax.eval_shape(sampler, store, jax.random.key(0)).support.inputs
    meta = untrained.init(jax.random.key(0), np.zeros(like.shape, np.float32))
    score = jax.jit(
        lambda store, key: query_objective(untrained, experiment.scoring)(
            meta, key, sampler(store, key)
        )[1]["accuracy"]
    )
    keys = jax.random.split(jax.random.key(0), 200)
    found = np.mean([score(store, key) for key in keys])
    assert found == pytest.approx(0.70, abs=0.03)
