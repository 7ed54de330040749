"""A run leaves a bundle that answers its test tasks as the run does, without the data and the drivers."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from experiments.fewshot import driver as fewshot
from experiments.setup.experiment import Setup, evaluation_key
from helpers.class_tables import write_tickets
from helpers.driver_runs import drive, parsed, settings_of, undrawn, unlock
from metajax import deploy
from metajax.errors import DataError
from metajax.objectives import query_outputs
from metajax.train import draw_tasks

pytest.importorskip("safetensors")


@pytest.mark.parametrize("learner", ["protonet", "maml_plus_plus"])
@undrawn()
def test_a_bundle_answers_the_tasks_of_the_test_as_the_run_does(learner, pictures, tmp_path):
    settings = settings_of(pictures, tmp_path / "run", learner=learner, invert="yes")
    assert fewshot.start(settings) == 0
    unlock()
    model = deploy.load(tmp_path / "run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert model.bundle.training["test_accuracy"] == result["test_accuracy"]
    assert model.bundle.images.invert and model.bundle.images.shape == (16, 16, 1)

    experiment = fewshot.build(settings)
    setup = Setup(experiment, fewshot.resolve_fewshot(settings).common)
    sampler, data = experiment.samplers["test"], experiment.data["test"]
    key = evaluation_key(settings.eval_seed, "test")
    (keys, episodes) = draw_tasks(sampler, data, key, 0, np.arange(1))
    task = jax.tree.map(lambda leaf: leaf[0], episodes)
    outputs = query_outputs(setup.test_learner, model.bundle.meta, keys[0], task)

    mean, scale = data.constants
    support, query = (
        np.asarray(np.round((batch.inputs * scale + mean) * 255), np.uint8)
        for batch in (task.support, task.query)
    )
    examples = {str(i): support[np.asarray(task.support.targets) == i] for i in range(3)}
    found = deploy.Classifier(model.bundle, examples).answer(query)
    np.testing.assert_allclose(found, jax.nn.softmax(outputs), atol=1e-6)


@pytest.mark.parametrize(
    "flags",
    [
        "--learner=protonet --text=message --model_options=size=128_idf=true_scaled=true",
        "--learner=maml --text=message --features=age,color --model=mlp --inner_steps=2",
    ],
)
def test_a_bundle_answers_texts_and_rows_as_the_run_does(flags, tmp_path):
    table = write_tickets(tmp_path / "tickets.csv")
    flags = [*flags.split(), f"--data_dir={table}", "--ways=2", "--shots=2", "--steps=2"]
    small = "--valid_episodes=2 --eval_episodes=2 --queries=2 --test_queries=2 --meta_batch=2"
    flags += ["--dataset=table", "--label=topic", "--eval_every=2", "--log_every=2", *small.split()]
    flags = [flag.replace("_idf", " idf").replace("_scaled", " scaled") for flag in flags]
    assert drive(*flags, f"--workdir={tmp_path / 'run'}") == 0
    unlock()
    settings = parsed(flags)
    experiment = fewshot.build(settings)
    table.rename(tmp_path / "gone.csv")
    model = deploy.load(tmp_path / "run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert model.bundle.training["test_accuracy"] == result["test_accuracy"]

    setup = Setup(experiment, fewshot.resolve_fewshot(settings).common)
    sampler, data = experiment.samplers["test"].own, experiment.data["test"]
    (keys, episodes) = draw_tasks(sampler, data, evaluation_key(0, "test"), 0, np.arange(1))
    task = jax.tree.map(lambda leaf: leaf[0], episodes)
    run = jax.jit(lambda meta: query_outputs(setup.test_learner, meta, keys[0], task))
    expected = jax.nn.softmax(run(model.bundle.meta))

    form = model.bundle.form
    rows = form.from_file(tmp_path / "gone.csv")
    known = flat_of(form.inputs(form.features(rows)))

    def rows_of(batch):
        """Finds the rows of the file that have the features of a task."""
        distances = np.abs(known[:, None] - flat_of(batch.inputs)).max(-1)
        assert distances.min(0).max() < 1e-6
        return list(rows[distances.argmin(0)])

    labels = np.asarray(task.support.targets)
    support = np.array(rows_of(task.support))
    examples = {str(c): list(support[labels == c]) for c in range(2)}
    found = model.learn(examples).probabilities(rows_of(task.query))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def flat_of(inputs):
    """Writes each example of a tree of arrays as one row of numbers."""
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(inputs)]
    return np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], 1)


@undrawn()
def test_probabilities_are_calibrated_and_unknown_classes_told(pictures, tmp_path, calibrated):
    settings = settings_of(pictures, tmp_path / "run", learner="protonet", ways=2, unknown_ways=1)
    assert fewshot.start(settings) == 0
    unlock()
    bundle = deploy.load(tmp_path / "run").bundle
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    found, bins = result["calibration"], result["reliability"]
    assert found == bundle.training["calibration"] and found["valid_episodes"] == 4

    experiment = fewshot.build(settings)
    setup = Setup(experiment, fewshot.resolve_fewshot(settings).common)
    wider = dataclasses.replace(experiment.samplers["valid"], ways=3)

    def answers(split):
        """Answers the queries of two classes that were learned, and of one that was not."""
        drawn = experiment.data[split], evaluation_key(settings.eval_seed, split), 0, np.arange(4)
        keys, episodes = draw_tasks(wider, *drawn)
        support = jax.tree.map(lambda leaf: leaf[:, :2], episodes.support)
        tasks = episodes._replace(support=support)
        run = jax.vmap(lambda *task: query_outputs(setup.test_learner, bundle.meta, *task))
        logits, labels = run(keys, tasks).reshape(-1, 2), episodes.query.targets.reshape(-1)
        return np.asarray(logits), np.asarray(labels)

    logits, labels = answers("valid")
    known = labels < 2
    temperature = deploy.fit_temperature(logits[known], labels[known])
    np.testing.assert_allclose(bundle.temperature, temperature, rtol=1e-4)
    sure = np.asarray(jax.nn.softmax(logits / temperature)).max(1)
    threshold = deploy.known_threshold(sure[known])
    np.testing.assert_allclose(bundle.threshold, threshold, rtol=1e-5)
    logits, labels = answers("test")
    sure, known = np.asarray(jax.nn.softmax(logits / temperature)).max(1), labels < 2
    assert found["unknown_rejected"] == np.mean(sure[~known] < threshold)
    area = deploy.separation(sure[known], sure[~known])
    np.testing.assert_allclose(found["unknown_auroc"], area, atol=1e-6)
    nll = deploy.calibration_scores(logits[known], labels[known])["nll"]
    np.testing.assert_allclose(found["nll_before"], nll, rtol=1e-4)
    expected = deploy.reliability(logits[known], labels[known], temperature=temperature)
    for name, values in expected.items():
        np.testing.assert_allclose(bins["after"][name], values, atol=1e-4)


def test_too_few_classes_for_unknown_ones_are_refused(pictures, tmp_path):
    with pytest.raises(DataError, match="--unknown_ways=19 and --ways=3: 22 ways are more than"):
        fewshot.build(settings_of(pictures, tmp_path / "run", unknown_ways=19))


@undrawn()
def test_a_bundle_that_cannot_be_written_is_a_warning(pictures, tmp_path, monkeypatch, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model").write_text("a file where the folder should be")
    flags = (
        f"--dataset=folder --data_dir={pictures} --model=mlp --learner=protonet --ways=3 --steps=2"
    )
    sizes = "--eval_every=2 --valid_episodes=2 --eval_episodes=2 --queries=2 --test_queries=2 --meta_batch=2"
    assert drive(*flags.split(), *sizes.split(), f"--workdir={tmp_path / 'run'}") == 0
    unlock()
    assert "warning: no bundle was written: the bundle" in capsys.readouterr().err
    assert (tmp_path / "run" / "result.json").exists()
    # A test writes the bundle that a run lacks, and a further one leaves it as it is.
    (tmp_path / "run" / "model").unlink()
    same = [f"--workdir={tmp_path / 'run'}", f"--data_dir={pictures}"]
    assert drive("--mode=bundle", *same) == 0
    unlock()
    assert f"bundle  {tmp_path / 'run' / 'model'}" in capsys.readouterr().out
    whole = (tmp_path / "run" / "model" / "model.json").read_bytes()
    shutil.rmtree(tmp_path / "run" / "model")
    test = ["--mode=evaluate", f"--workdir={tmp_path / 'run'}", f"--data_dir={pictures}"]
    assert drive(*test) == 0
    unlock()
    written = (tmp_path / "run" / "model" / "model.json").read_bytes()
    assert (
        json.loads(written)["training"]["test_accuracy"]
        == json.loads(whole)["training"]["test_accuracy"]
    )
    assert json.loads(written)["tensors"] == json.loads(whole)["tensors"]
    assert drive(*test, "--eval_seed=5") == 0
    unlock()
    assert (tmp_path / "run" / "model" / "model.json").read_bytes() == written
