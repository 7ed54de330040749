"""The drivers where JAX computes in 64 bits, as under JAX_ENABLE_X64=1, and networks in bfloat16."""

import json

import absl.flags
import jax
import pytest

from experiments.completion import driver as completion
from experiments.fewshot import driver as fewshot
from experiments.flags.plan import resolve
from experiments.flags.settings import define_flags, from_flags
from experiments.flags.training import check_together
from experiments.regression import driver as regression
from experiments.reports.results import episodes_sha256
from experiments.setup.experiment import Setup, evaluation_key
from helpers.driver_runs import drive, undrawn, unlock
from metajax.train import many_steps

FEWSHOT = (
    "--dataset=folder --model=mlp --ways=3 --shots=1 --queries=2 --test_queries=2 --meta_batch=4"
)
SHORT = "--steps=4 --eval_every=2 --valid_episodes=4 --eval_episodes=8"


@undrawn()
def test_a_run_in_64_bits_is_that_in_32(pictures, tmp_path):
    flags = f"{FEWSHOT} {SHORT} --learner=protonet --learn_scale=true --data_dir={pictures}".split()
    found = []
    for wide in (False, True):
        with jax.enable_x64(wide):
            assert drive(*flags, f"--workdir={tmp_path / str(wide)}") == 0
        unlock()
        found.append(json.loads((tmp_path / str(wide) / "result.json").read_text()))
    narrow, wide = found
    assert wide["episodes_sha256"] == narrow["episodes_sha256"]
    for name in ("test_accuracy", "best_valid_accuracy"):
        assert wide[name] == pytest.approx(narrow[name], abs=1e-6)
    # And its checkpoint, of float32, is tested there.
    with jax.enable_x64(True):
        assert drive(*flags, f"--workdir={tmp_path / 'False'}", "--mode=evaluate") == 0
    unlock()
    again = json.loads((tmp_path / "False" / "evaluation" / "result.json").read_text())
    assert again["test_accuracy"] == pytest.approx(narrow["test_accuracy"], abs=1e-6)


CASES = {
    "changed episodes": (
        fewshot,
        fewshot.FewshotSettings,
        FEWSHOT
        + " --learner=imaml --learn_strength=true --mix_classes --label_noise=0.2 --project "
        "--rotations=all --augment=shift,flip --clip=1",
    ),
    "running norms": (
        fewshot,
        fewshot.FewshotSettings,
        "--dataset=folder --model=conv4 --filters=2 --ways=3 --shots=1 --test_queries=2 --images=6 "
        "--learner=baseline --norm=running",
    ),
    "regression": (regression, regression.RegressionSettings, "--outer=es --meta_batch=4"),
    "completion": (
        completion,
        completion.CompletionSettings,
        "--dataset=folder --learner=anp --meta_batch=4",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_training_keeps_its_types_and_tests_have_the_same_episodes(name, pictures):
    driver, kind, flags = CASES[name]
    data = [] if driver is regression else [f"--data_dir={pictures}"]

    def outcome(precision):
        values = absl.flags.FlagValues()
        define_flags(kind, values)
        values(["driver", *flags.split(), *data, f"--precision={precision}"])
        settings = from_flags(kind, values)
        check_together(settings)
        experiment = driver.build(settings)
        setup = Setup(experiment, resolve(settings))
        shapes = setup.shapes()
        state, metrics = jax.eval_shape(many_steps(setup.meta_step(), 2), *shapes)
        digest = episodes_sha256(
            *(part["test"] for part in (experiment.samplers, experiment.data)),
            evaluation_key(settings.eval_seed, "test"),
            3,
            experiment.fingerprint,
        )
        return digest, [leaf.dtype for leaf in jax.tree.leaves((shapes[0], state, metrics))]

    narrow = outcome("float32")
    with jax.enable_x64(True):
        wide, coarse = outcome("float32"), outcome("bfloat16")
    assert narrow == wide == coarse
