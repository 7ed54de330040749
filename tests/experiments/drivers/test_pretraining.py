"""Encoders trained on all classes at once, and what starts from them."""

import json

import numpy as np
import pytest

import metajax
from experiments.fewshot import driver as fewshot
from experiments.flags.plan import resolve
from experiments.flags.settings import UsageError
from experiments.runtime.checkpoints import Checkpoints
from experiments.setup.experiment import Setup
from helpers.driver_runs import settings_of, undrawn


@pytest.fixture(scope="module")
@undrawn()
def pretrained(pictures, tmp_path_factory):
    """A supervised training with running averages."""
    workdir = tmp_path_factory.mktemp("pretrained")
    options = {"model": "conv4_stride", "filters": 2, "norm": "running", "images": 6, "queries": 5}
    settings = settings_of(pictures, workdir, learner="simpleshot", **options)
    assert fewshot.start(settings) == 0
    return workdir


def test_supervised_training_is_tested_on_episodes(pretrained):
    result = json.loads((pretrained / "result.json").read_text())
    assert result["learner"] == "simpleshot" and result["transductive"] is False
    assert 0 <= result["test_accuracy"] <= 1
    state = Checkpoints(pretrained / "checkpoints").latest_leaves().state
    running = state["['state'].meta.encoder['norm0']['running']['mean']"]
    assert np.abs(running).max() > 1e-3, "the averages ran"


@undrawn()
def test_an_encoder_starts_any_other_learner(pictures, tmp_path, pretrained, capsys):
    options = {"model": "conv4_stride", "filters": 2, "norm": "running", "steps": 1}
    settings = settings_of(
        pictures, tmp_path, learner="protonet", init_from=str(pretrained), outer_lr=1e-30, **options
    )
    assert fewshot.start(settings) == 0
    assert f"20 arrays of {pretrained}" in " ".join(capsys.readouterr().out.split())
    # Nothing is learned at this rate: what is there at the end is what was pre-trained.
    old, new = (
        Checkpoints(folder / "checkpoints").latest_leaves().state
        for folder in (pretrained, tmp_path)
    )
    best = json.loads((pretrained / "result.json").read_text())["best_step"]
    assert best in (2, 4)
    kernel = "['conv1']['kernel']"
    np.testing.assert_allclose(
        new[f"['state'].meta.params{kernel}"], old[f"['best_metas'].encoder{kernel}"][0]
    )


@undrawn()
def test_a_frozen_encoder_stays_and_what_comes_after_it_learns(pictures, tmp_path, pretrained):
    options = {"model": "conv4_stride", "filters": 2, "norm": "running", "steps": 2}
    options |= {"learner": "recurrent", "units": 4, "init_from": str(pretrained), "freeze": True}
    assert fewshot.start(settings_of(pictures, tmp_path, **options)) == 0
    old, new = (
        Checkpoints(folder / "checkpoints").latest_leaves().state
        for folder in (pretrained, tmp_path)
    )
    for place in ("['conv1']['kernel']", "['norm3']['scale']"):
        before = old[f"['best_metas'].encoder{place}"][0]
        np.testing.assert_array_equal(new[f"['state'].meta.encoder{place}"], before)
    assert np.abs(new["['state'].meta.bias"]).max() > 1e-4, "it started at zero"

    def arithmetic(**changed):
        settings = settings_of(pictures, tmp_path, **(options | changed))
        setup = Setup(fewshot.build(settings), resolve(settings))
        return metajax.flops(setup.meta_step(), *setup.shapes())

    assert arithmetic() < 0.7 * arithmetic(freeze=False), "the encoder has no backward pass"
    with pytest.raises(UsageError, match="--freeze=true needs --init_from"):
        settings_of(pictures, tmp_path, freeze=True)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"model": "mlp"}, "has none of this network's parameters"),
        (
            {"model": "conv4_stride", "filters": 2, "norm": "none"},
            r"has no \['conv0'\]\['bias'\] that fits",
        ),
        ({"split": "random", "split_seed": 1, "model": "conv4_stride"}, "divided into other"),
    ],
    ids=["network", "norm", "split"],
)
def test_an_encoder_that_does_not_fit_is_refused(pictures, tmp_path, pretrained, options, says):
    settings = settings_of(pictures, tmp_path, init_from=str(pretrained), **options)
    with pytest.raises(UsageError, match=says):
        fewshot.start(settings)


def test_a_work_directory_without_checkpoint_starts_nothing(pictures, tmp_path):
    settings = settings_of(pictures, tmp_path / "here", init_from=str(tmp_path / "none"))
    with pytest.raises(UsageError, match="holds no checkpoint"):
        fewshot.start(settings)
