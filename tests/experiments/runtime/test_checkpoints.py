"""A checkpoint comes back bit for bit, or not at all and with a clear error."""

import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import experiments
from experiments.runtime.checkpoints import FORMAT, CheckpointError, Checkpoints, FormatError
from helpers.driver_runs import give_format


class State(NamedTuple):
    step: object
    params: dict
    opt: tuple


def small_state(seed: int = 0) -> State:
    draw = np.random.default_rng(seed).normal
    params = {"w/~.b['x']": draw(size=(6, 4)).astype(np.float32), "empty": np.zeros((0, 3))}
    return State(np.int32(seed), params, (np.arange(300, dtype=np.uint32), None, 7))


def assert_identical(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        g, w = np.asarray(g), np.asarray(w)
        assert (g.dtype, g.shape, g.tobytes()) == (w.dtype, w.shape, w.tobytes())


def test_restores_every_kind_of_leaf_bit_for_bit(tmp_path):
    mesh = jax.sharding.Mesh(jax.devices(), ("t",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    state = {
        "replicated": jax.device_put(jnp.linspace(0.0, 1.0, 24).reshape(4, 6), everywhere),
        "bfloat16": jnp.asarray([1.5, -0.0, jnp.nan, jnp.inf], jnp.bfloat16),
        "key": jax.random.key_data(jax.random.key(3)),
        "denormal": np.asarray([np.float32(1e-45), -0.0, np.nan], np.float32),
        "float64": np.asarray([[np.pi]]),
        "transposed": np.arange(6, dtype=np.int8).reshape(2, 3).T,
        "scalar": np.float16(0.1),
        "numbers": [3, True, 0.1],
        "nested": small_state(),
    }
    notes = {"best": 0.1 + 0.2, "none": None, "list": [1, {"a": "b"}]}
    checkpoints = Checkpoints(tmp_path / "new" / "c")
    assert checkpoints.restore_latest(state) is None
    checkpoints.save(12, state, notes=notes)
    step, restored, restored_notes = checkpoints.restore_latest(state)
    assert (step, restored_notes) == (12, notes)
    assert_identical(restored, state)
    assert [type(number) for number in restored["numbers"]] == [int, bool, float]
    assert isinstance(restored["scalar"], np.float16)
    assert isinstance(restored["replicated"], np.ndarray)
    restored["replicated"][0] = 5.0  # The caller's own copy.


def test_keeps_the_newest_and_refuses_to_go_back(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (0, 9, 10):
        checkpoints.save(step, small_state(step), notes={"at": step})
    assert checkpoints.steps() == [9, 10]
    assert checkpoints.restore_latest(small_state()).notes == {"at": 10}
    for step in (9, 10):
        with pytest.raises(CheckpointError, match=f"Step {step} .* has step 10"):
            checkpoints.save(step, small_state(), notes={})
    with pytest.raises(ValueError, match="keep=0"):
        Checkpoints(tmp_path, keep=0)


def test_half_written_checkpoints_are_ignored_then_removed(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, small_state(3), notes={})
    partial = tmp_path / "8.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "3", partial)
    shutil.rmtree(partial / "header")
    assert checkpoints.steps() == [3]
    assert_identical(checkpoints.restore_latest(small_state()).state, small_state(3))
    assert partial.exists()  # Reading changes nothing: another process may be writing this.
    checkpoints.save(4, small_state(4), notes={})
    assert not partial.exists() and checkpoints.steps() == [3, 4]


def test_damage_to_any_file_is_found_or_harmless(tmp_path):
    checkpoints, state, notes = Checkpoints(tmp_path), small_state(1), {"best": 0.25}
    for step in (5, 7):
        checkpoints.save(step, state, notes=notes)
    outcomes = {}

    def restore(name: str) -> None:
        try:
            found = checkpoints.restore_latest(state)
        except CheckpointError as error:
            text = str(error)
            assert str(tmp_path / "7") in text and "previous checkpoint, step 5" in text
            assert "delete that folder" in text and "\n" not in text
            outcomes[name] = "error"
        else:
            assert (found.step, found.notes) == (7, notes)
            assert_identical(found.state, state)
            outcomes.setdefault(name, "harmless")

    for path in sorted(p for p in (tmp_path / "7").rglob("*") if p.is_file()):
        name, whole = str(path.relative_to(tmp_path / "7")), path.read_bytes()
        middle = len(whole) // 2
        flipped = whole[:middle] + bytes([whole[middle] ^ 0x55]) + whole[middle + 1 :]
        for damaged in (flipped, whole[:middle], b""):
            path.write_bytes(damaged)
            restore(name)
        path.unlink()
        restore(name)
        path.write_bytes(whole)
    assert outcomes["header/metadata"] == outcomes["state/manifest.ocdbt"] == "error"
    assert "error" in {found for name, found in outcomes.items() if "/d/" in name}
    assert_identical(checkpoints.restore_latest(state).state, state)


def test_a_lone_damaged_checkpoint_points_to_the_beginning(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(7, small_state(), notes={})
    shutil.rmtree(tmp_path / "7" / "state")
    with pytest.raises(CheckpointError, match="continue from the beginning"):
        checkpoints.restore_latest(small_state())


def test_damage_makes_no_noise_beside_the_error(tmp_path, monkeypatch):
    complaints = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)
    checkpoints, state = Checkpoints(tmp_path), {f"leaf {i}": np.ones(3) for i in range(12)}
    checkpoints.save(7, state, notes={})
    manifest = tmp_path / "7" / "state" / "manifest.ocdbt"
    whole = manifest.read_bytes()
    for kept in range(8):
        manifest.write_bytes(whole[: kept * len(whole) // 8])
        with pytest.raises(CheckpointError):
            checkpoints.restore_latest(state)
    assert not complaints and sys.unraisablehook == complaints.append


@pytest.mark.parametrize("what", ["leaf", "notes", "step"])
def test_well_formed_but_different_content_is_found_by_its_digest(tmp_path, what):
    mine, other = Checkpoints(tmp_path / "mine"), Checkpoints(tmp_path / "other")
    mine.save(7, small_state(1), notes={"best": 0.25})
    other.save(7, small_state(2), notes={})
    if what == "leaf":  # A readable array of the right shape with other numbers.
        shutil.rmtree(mine.directory / "7" / "state")
        shutil.copytree(other.directory / "7" / "state", mine.directory / "7" / "state")
    elif what == "notes":
        header = mine.directory / "7" / "header" / "metadata"
        header.write_text(header.read_text().replace("0.25", "0.75"))
    else:
        (mine.directory / "7").rename(mine.directory / "8")
    with pytest.raises(CheckpointError, match="digest"):
        mine.restore_latest(small_state())


def test_a_template_that_does_not_fit_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"w": np.zeros((3, 2), np.float32), "b": np.zeros(2)}, notes={})
    fits = {"w": jax.ShapeDtypeStruct((3, 2), np.float32), "b": np.ones(2)}
    np.testing.assert_array_equal(checkpoints.restore_latest(fits).state["w"], np.zeros((3, 2)))
    for wrong, message in [
        (
            {**fits, "w": np.zeros((2, 3), np.float32)},
            r"state\['w'\] is float32\[3, 2\] there and ",
        ),
        ({**fits, "w": np.zeros((3, 2))}, r"float64\[3, 2\] here"),
        ({"w": fits["w"]}, r"state\['b'\] is float64\[2\] there and absent here"),
        ({**fits, "c": 1}, r"state\['c'\] is absent there and int64\[\] here"),
        ([fits["w"], fits["b"]], r"leaves that differ: 4"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            checkpoints.restore_latest(wrong)


@pytest.mark.parametrize(
    ("number", "found"), [(None, "no format number"), (1, "format 1"), (3, "format 3")]
)
def test_another_format_is_refused_by_its_number(tmp_path, number, found):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(7, small_state(), notes={})
    checkpoints.check_format()
    folder = give_format(tmp_path, number)
    readers = (
        checkpoints.check_format,
        checkpoints.latest_leaves,
        lambda: checkpoints.restore_latest(small_state()),
    )
    for read in readers:
        with pytest.raises(FormatError) as error:
            read()
        assert str(error.value) == (
            f"Checkpoint {folder} has {found}, and this version reads format {FORMAT} alone; start again in "
            "another --workdir, or use the version that saved it."
        )


def test_damage_is_no_other_format(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.check_format()
    checkpoints.save(7, small_state(), notes={})
    header = tmp_path / "checkpoints" / "7" / "header" / "metadata"
    for content in ("", "[]", "3", header.read_text()[:-9]):
        header.write_text(content)
        checkpoints.check_format()
        with pytest.raises(CheckpointError, match="is damaged"):
            checkpoints.latest_leaves()


def test_random_keys_come_back_as_keys(tmp_path):
    checkpoints, keys = Checkpoints(tmp_path), jax.random.split(jax.random.key(3), 2)
    checkpoints.save(0, {"keys": keys}, notes={})
    restored = checkpoints.restore_latest({"keys": keys}).state["keys"]
    np.testing.assert_array_equal(jax.random.bits(restored[1]), jax.random.bits(keys[1]))
    with pytest.raises(CheckpointError, match=r"\['keys'\]"):
        checkpoints.restore_latest({"keys": keys[:1]})


def test_leaves_that_are_no_numbers_are_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(ValueError, match=r"\['name'\] is a str"):
        checkpoints.save(0, {"name": "conv4"}, notes={})
    assert checkpoints.steps() == []


def test_orbax_stays_quiet_and_logging_stays_as_it_was(tmp_path, caplog):
    import absl.logging  # noqa: F401  Makes the logger of its own class, before anyone asks for it.

    caplog.set_level(logging.DEBUG, logger="absl")
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(0, small_state(), notes={})
    checkpoints.restore_latest(small_state())
    assert not caplog.records
    assert logging.getLogger("absl").level == logging.DEBUG


SAVE_FOREVER = """
import sys
from pathlib import Path
import numpy as np
from experiments.runtime.checkpoints import Checkpoints
assert not any(name.startswith("orbax") for name in sys.modules), "orbax must be imported lazily"
checkpoints = Checkpoints(Path(sys.argv[1]))
template = {"w": np.zeros(100_000), "n": 0}
found = checkpoints.restore_latest(template)
step = found.step if found else 0
while True:
    step += 1
    state = {"w": np.random.default_rng(step).random(100_000), "n": step}
    checkpoints.save(step, state, notes={"step": step})
    print(step, flush=True)
"""


def test_a_killed_process_leaves_a_whole_checkpoint(tmp_path):
    root = str(Path(experiments.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", SAVE_FOREVER, str(tmp_path)]
    checkpoints, saved = Checkpoints(tmp_path), 0
    for pause in (0.0, 0.02):
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as child:
            for _ in range(3):
                saved = int(child.stdout.readline())
            time.sleep(pause)  # Somewhere within one of the next saves.
            child.kill()
            saved = max([saved, *(int(line) for line in child.stdout.read().split())])
        step, state, notes = checkpoints.restore_latest({"w": np.zeros(100_000), "n": 0})
        assert step >= saved  # What `save` has returned from is there.
        assert state["n"] == notes["step"] == step
        np.testing.assert_array_equal(state["w"], np.random.default_rng(step).random(100_000))
    assert saved >= 6
