"""Images that stay on disk: the same run as with images in memory, whichever it is gone on with."""

import json
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from experiments.completion import driver as completion
from experiments.setup.streams import StreamedSteps
from helpers.driver_runs import PLAIN, drive, rows, undrawn, unlock

SMALL = [*PLAIN, "--steps=20", "--eval_every=10", "--checkpoint_every=10", "--valid_episodes=6"]
FIELDS = ("test_accuracy", "episodes_sha256", "best_step", "best_valid_accuracy", "split")


def result_of(workdir):
    return json.loads((workdir / "result.json").read_text())


@pytest.fixture(scope="module")
@undrawn()
def resident(pictures, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("resident")
    assert drive(*SMALL, f"--data_dir={pictures}", f"--workdir={workdir}") == 0
    unlock()
    return workdir


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_from_disk_is_the_run_from_memory(pictures, resident, tmp_path, capsys, workers):
    flags = [*SMALL, f"--data_dir={pictures}", f"--workdir={tmp_path}"]
    assert drive(*flags, "--resident=never", f"--read_workers={workers}") == 0
    unlock()
    found, expected = result_of(tmp_path), result_of(resident)
    assert {name: found[name] for name in FIELDS} == {name: expected[name] for name in FIELDS}
    for name in ("metrics.csv", "test_scores.csv"):
        ours, theirs = rows(tmp_path / name), rows(resident / name)
        assert len(ours) == len(theirs)
        for mine, other in zip(ours, theirs, strict=True):
            assert float(mine["loss"]) == pytest.approx(float(other["loss"]), rel=1e-4)
    assert (tmp_path / "episodes.png").stat().st_size > 0
    assert found["streamed_images_per_second"] > 0
    assert 0 <= found["waited_for_images"] <= 1
    assert "on disk" in capsys.readouterr().out


@pytest.mark.parametrize("first", [0, 4])
def test_what_is_told_of_reading_is_of_the_steps_of_this_process(first):
    mesh, read = metajax.task_mesh(jax.devices()[:1]), []
    pixels = jax.ShapeDtypeStruct(
        (2, 3, 4, 4, 1), np.uint8, sharding=metajax.sharding.divided(mesh)
    )

    def images(*, key, steps):
        assert jax.random.key_data(key).tolist() == [0, 7]
        for number in steps:
            read.append(number)
            yield np.full(pixels.shape, number, np.uint8)

    def step(state, data):
        metrics = {"mean": jnp.mean(data.pixels, dtype=jnp.float32)}
        return state._replace(step=state.step + 1), metrics

    blocks = StreamedSteps(step, images, pixels, steps=8)
    assert blocks.facts() == {}
    state = metajax.init_state(jnp.zeros(2), optax.sgd(1.0), jax.random.key(7))
    state = state._replace(step=jnp.int32(first))
    run = blocks.compile(state, None)
    blocks.prepare(state)
    assert read[0] == first
    begun = time.perf_counter()
    for block in range(2):
        time.sleep(0.2)  # a validation, which is no step
        blocks.prepare(state)
        state, metrics = run(state, None, 2)
        np.testing.assert_array_equal(metrics["mean"], first + 2 * block + np.arange(2))
    seconds = time.perf_counter() - begun - 0.4
    told = blocks.facts()
    assert told["streamed_images_per_second"] >= 4 * 2 * 3 / seconds
    assert 0 <= told["waited_for_images"] <= 1
    blocks.close()


@pytest.mark.parametrize("first, then", [("never", "always"), ("always", "never")])
@undrawn()
def test_a_run_goes_on_wherever_its_images_are(pictures, resident, tmp_path, capsys, first, then):
    flags = [*SMALL, f"--data_dir={pictures}", f"--workdir={tmp_path}", "--read_workers=0"]
    assert drive(*flags, f"--resident={first}") == 0
    unlock()
    shutil.rmtree(tmp_path / "checkpoints" / "20")
    capsys.readouterr()
    assert drive(*flags, f"--resident={then}") == 0
    unlock()
    assert "Resuming from step 10 of 20" in capsys.readouterr().out
    for ours, theirs in zip(
        rows(tmp_path / "test_scores.csv"), rows(resident / "test_scores.csv"), strict=True
    ):
        assert ours["accuracy"] == theirs["accuracy"]
        assert float(ours["loss"]) == pytest.approx(float(theirs["loss"]), rel=1e-4)


@undrawn()
def test_batches_of_single_images_come_from_disk_too(pictures, tmp_path):
    results = []
    for kept in ("always", "never"):
        workdir = tmp_path / kept
        flags = [flag for flag in SMALL if not flag.startswith("--queries")]
        flags += ["--learner=simpleshot", f"--data_dir={pictures}", f"--workdir={workdir}"]
        assert drive(*flags, f"--resident={kept}", "--read_workers=0") == 0
        unlock()
        results.append(result_of(workdir))
    assert results[0]["test_accuracy"] == results[1]["test_accuracy"]


@undrawn()
def test_images_are_completed_from_disk(pictures, tmp_path):
    results = []
    for kept in ("always", "never"):
        flags = (
            f"--dataset=folder --data_dir={pictures} --learner=cnp --points=10 --queries=20 --hidden=8 "
            f"--meta_batch=4 --steps=4 --eval_every=2 --valid_episodes=4 --eval_episodes=4 "
            f"--resident={kept} --read_workers=0 --workdir={tmp_path / kept}"
        ).split()
        assert drive(*flags, driver=completion, settings_class=completion.CompletionSettings) == 0
        unlock()
        results.append(result_of(tmp_path / kept))
    for name in ("test_log_likelihood", "test_mse_by_points"):
        assert results[0][name] == results[1][name]
