"""Few-shot classification of pictures by the vectors of a frozen encoder: from a folder to a bundle."""

import json

import jax
import numpy as np
import pytest

pytest.importorskip("safetensors")

from experiments.fewshot import driver as fewshot
from experiments.flags.settings import UsageError
from experiments.setup.experiment import Setup, evaluation_key
from helpers.driver_runs import drive, parsed, unlock
from helpers.encoders import packaged, write_dinov2
from metajax import deploy
from metajax.data.features import pictures as encoders
from metajax.data.sources import load
from metajax.deploy import encoded
from metajax.objectives import query_outputs
from metajax.train import draw_tasks

FLAGS = (
    "--dataset=folder --encoder_size=32 --image_size=16 --ways=3 --queries=2 --test_queries=3 --meta_batch=2 "
    "--steps=2 --eval_every=1 --valid_episodes=3 --eval_episodes=4 --log_every=1"
).split()


def run(*flags):
    status = drive(*flags)
    unlock()
    return status


@pytest.fixture
def encoder(tmp_path, monkeypatch):
    """Puts a small encoder in the place of the packaged one; returns its folder."""
    folder = write_dinov2(tmp_path / "dino")
    packaged(folder, monkeypatch)
    encoded._encoder.cache_clear()
    yield folder
    encoded._encoder.cache_clear()


def test_a_run_compares_with_class_means_and_its_bundle_answers_as_it_does(
    encoder, pictures, tmp_path
):
    flags = [*FLAGS, "--encoder=efficientnet_lite0", "--learner=protonet"]
    flags += [f"--data_dir={pictures}", f"--workdir={tmp_path / 'run'}"]
    assert run(*flags) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["settings"]["model"] == "frozen_pictures" and not result["transductive"]
    assert result["untrained"] == "vectors of efficientnet_lite0"
    model = deploy.load(tmp_path / "run")
    assert model.bundle.images.side == 32 and model.bundle.images.shape == (16, 16, 1)

    settings = parsed(flags)
    experiment = fewshot.build(settings)
    setup = Setup(experiment, fewshot.resolve_fewshot(settings).common)
    sampler, store = experiment.samplers["test"], experiment.data["test"]
    key = evaluation_key(settings.eval_seed, "test")
    keys, tasks = draw_tasks(sampler, store, key, 0, np.arange(1))
    task = jax.tree.map(lambda leaf: leaf[0], tasks)
    outputs = query_outputs(setup.test_learner, model.bundle.meta, keys[0], task.own)

    # The pictures of the task are found by their vectors, which a folder of other pictures has not.
    test = load(f"folder:{pictures}", image_size=16, min_classes=3).test
    vectors = encoders.picture_vectors(
        test.images, encoders.load_picture_encoder("dinov2", folder=str(encoder), side=32)
    )
    drawn = [
        np.abs(np.asarray(batch.inputs["pictures"])[:, None] - vectors).sum(-1).argmin(1)
        for batch in (task.own.support, task.own.query)
    ]
    support, query = (test.images[rows] for rows in drawn)
    examples = {str(i): support[np.asarray(task.own.support.targets) == i] for i in range(3)}
    found = deploy.Classifier(model.bundle, examples).answer(query)
    np.testing.assert_allclose(found, jax.nn.softmax(outputs), atol=1e-6)


def test_vectors_are_computed_once_and_a_folders_encoder_leaves_no_bundle(
    encoder, pictures, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("METAJAX_CACHE_DIR", str(tmp_path / "cache"))
    calls, compute = [], encoders.compute_picture_vectors
    monkeypatch.setattr(
        encoders,
        "compute_picture_vectors",
        lambda pixels, *rest, **more: calls.append(len(pixels)) or compute(pixels, *rest, **more),
    )
    flags = [*FLAGS, f"--encoder_dir={encoder}", f"--data_dir={pictures}", "--learner=r2d2"]
    assert run(*flags, f"--workdir={tmp_path / 'first'}") == 0
    assert "a folder of one machine" in capsys.readouterr().err
    assert not (tmp_path / "first" / "model").exists()
    assert sum(calls) == 20 * 8  # every picture once
    assert run(*flags, "--shots=2", "--split_seed=1", f"--workdir={tmp_path / 'second'}") == 0
    assert sum(calls) == 20 * 8


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--augment=flip"], "--augment=flip does not go with a frozen encoder"),
        (["--model=resnet12"], "--model=resnet12 does not read the vectors of a frozen encoder"),
        (["--model=ngrams"], "--model=ngrams does not read the vectors"),
        (["--encoder_size=34"], "--encoder_size=34: .*patches of 4 do not divide"),
    ],
)
def test_what_does_not_go_with_an_encoder_is_one_line(encoder, pictures, tmp_path, flags, message):
    with pytest.raises(UsageError, match=message):
        fewshot.build(
            parsed([*FLAGS, "--encoder=efficientnet_lite0", f"--data_dir={pictures}", *flags])
        )


def test_the_network_of_vectors_needs_an_encoder(pictures):
    flags = [f"--data_dir={pictures}", "--dataset=folder", "--model=frozen_pictures"]
    with pytest.raises(UsageError, match="name one by --encoder"):
        fewshot.build(parsed(flags))
