"""Checkpoints of a run, restored bit for bit or not at all.

A checkpoint is a folder `<directory>/<step>` written by Orbax. It holds the arrays of the state, one
entry per leaf, and a JSON header with the number of this format, the caller's notes and the SHA-256
digests of every leaf and of the header itself. Restoring checks them, so that neither damage nor a
checkpoint of another version becomes a slightly different run.
"""

import contextlib
import hashlib
import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from metajax.data import strict_json
from metajax.names import shown

from .files import one_line, sync, unwritten

PyTree = Any

# Raised whenever states saved before would be misread. Format 1, without a number in its header, had no
# random key in the state.
FORMAT = 2


class CheckpointError(ValueError):
    """A checkpoint that is damaged or does not fit; the message is one line for the user."""


class FormatError(CheckpointError):
    """A checkpoint in the format of another version of this program."""


class Restored(NamedTuple):
    """A checkpoint read from disk.

    Attributes:
      step: Step at which it was saved.
      state: Pytree with the template's structure and numpy leaves, or Python numbers where the template has
        them.
      notes: Notes saved with the state.
    """

    step: int
    state: PyTree
    notes: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run, of which the newest is restored.

    Reading leaves the directory as it is; saving also removes the remains of an interrupted save.

    Args:
      directory: Folder of the checkpoints, made at the first save.
      keep: Number of newest checkpoints to keep, at least 1; 2 leaves one in reserve.

    Raises:
      ValueError: If `keep` is below 1.
    """

    def __init__(self, directory: Path, *, keep: int = 2):
        if keep < 1:
            raise ValueError(f"keep={keep} leaves no checkpoint to resume from; use 1 or more.")
        self.directory = Path(directory).absolute()
        self.keep = keep

    def steps(self) -> list[int]:
        """Lists the steps of the complete checkpoints.

        Returns:
          Steps in ascending order.

        Raises:
          CheckpointError: If a file is in the place of the directory.
        """
        if not os.path.lexists(self.directory):
            return []
        if not self.directory.is_dir():
            raise CheckpointError(
                f"{shown(self.directory)} is not a folder, but checkpoints are kept there; move it away."
            )
        # Orbax writes into `<step>.orbax-checkpoint-tmp`, then renames: a plain number is complete.
        found = [p.name for p in self.directory.iterdir() if p.name.isdecimal() and p.is_dir()]
        return sorted(int(name) for name in found if name == str(int(name)))

    def check_format(self) -> None:
        """Checks that the newest checkpoint has this version's format; damage is found when it is read.

        Raises:
          FormatError: If it has another format.
        """
        for step in self.steps()[-1:]:
            folder = self.directory / str(step)
            try:
                header = _read_header(folder)
            except (OSError, ValueError, AttributeError):
                return
            _check_format(header, folder)

    def save(self, step: int, state: PyTree, *, notes: Mapping[str, Any]) -> None:
        """Saves a checkpoint, returns when it is on disk; if the process is killed, the previous one remains.

        Args:
          step: Number of the checkpoint, greater than that of any checkpoint in the directory.
          state: Pytree of jax or numpy arrays, random keys and Python numbers.
          notes: Values that JSON can hold, by name.

        Raises:
          CheckpointError: If the directory has this step or a later one, or the disk does not accept it.
          ValueError: If a leaf is not an array of numbers.
        """
        steps = self.steps()
        if steps and step <= steps[-1]:
            raise CheckpointError(
                f"Step {step} cannot be saved in {self.directory}, which has step {steps[-1]}; "
                "resume from that, or use another directory."
            )
        leaves = _host_leaves(state)
        header = _header(step, notes, leaves)
        try:
            self._write(step, header, leaves)
        except Exception as error:
            # Orbax raises exceptions of many types when it cannot write; the remedy is the same.
            folder = self.directory / str(step)
            raise CheckpointError(
                f"Checkpoint {shown(folder)} cannot be saved {unwritten(_cause(error), folder)}"
            ) from error

    def _write(self, step: int, header: dict, leaves: Mapping[str, np.ndarray]) -> None:
        """Writes header and leaves with Orbax, and flushes them to the disk."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with _quiet_orbax() as ocp:
            options = ocp.CheckpointManagerOptions(
                create=False,
                preservation_policy=ocp.checkpoint_managers.LatestN(self.keep),
                enable_async_checkpointing=False,
                cleanup_tmp_directories=True,
                multiprocessing_options=_alone(ocp),
            )
            with ocp.CheckpointManager(self.directory, options=options) as manager:
                items = ocp.args.Composite(
                    header=ocp.args.JsonSave(header),
                    # Orbax cannot store empty arrays; the header has their shapes and dtypes.
                    state=ocp.args.StandardSave({k: v for k, v in leaves.items() if v.size}),
                )
                manager.save(step, args=items, force=True)
        # The renamed folder already survives a killed process; flushing it makes it survive a power cut.
        _sync_tree(self.directory / str(step))

    def restore_latest(self, template: PyTree) -> Restored | None:
        """Reads the newest complete checkpoint.

        Args:
          template: Pytree with the expected structure, shapes and dtypes; `jax.ShapeDtypeStruct` leaves
            suffice.

        Returns:
          The checkpoint; None if there is none.

        Raises:
          CheckpointError: If it is damaged, or does not fit the template.
        """
        found = self.latest_leaves()
        if found is None:
            return None
        folder = self.directory / str(found.step)
        return Restored(found.step, _fit(found.state, template, folder), found.notes)

    def latest_leaves(self) -> Restored | None:
        """Reads the newest complete checkpoint without a template.

        Returns:
          The checkpoint, whose state maps the path of each leaf to a numpy array; None if there is none.

        Raises:
          CheckpointError: If it is damaged.
        """
        steps = self.steps()
        if not steps:
            return None
        step, previous = steps[-1], steps[-2:-1]
        folder = self.directory / str(step)
        with _quiet_orbax() as ocp:
            try:
                leaves, notes = _read(ocp, folder, step)
            except FormatError:
                raise
            except Exception as error:
                # Damaged bytes raise exceptions of many types; the remedy is the same.
                time.sleep(0.1)  # Reads of other leaves end while Orbax's messages are suppressed.
                ahead = (
                    f"the previous checkpoint, step {previous[0]}" if previous else "the beginning"
                )
                raise CheckpointError(
                    f"Checkpoint {folder} is damaged or cannot be read ({one_line(error)}); "
                    f"delete that folder to continue from {ahead}."
                ) from error
        return Restored(step, leaves, notes)


def _cause(error: BaseException) -> BaseException:
    """Finds the operating system's error behind one of Orbax; returns Orbax's own if there is none."""
    found = error
    while found is not None and not isinstance(found, OSError):
        found = found.__cause__ or found.__context__
    return found or error


def _host_leaves(state: PyTree) -> dict[str, np.ndarray]:
    """Copies leaves to the host, by their paths."""
    leaves = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name = jax.tree_util.keystr(path)
        leaf = jax.random.key_data(leaf) if _is_key(leaf) else leaf
        leaves[name] = np.asarray(jax.device_get(leaf))
        if leaves[name].dtype.kind in "OSU":
            raise ValueError(f"State{name} is a {type(leaf).__name__}, not an array of numbers.")
    return leaves


def _header(step: int, notes: Mapping[str, Any], leaves: Mapping[str, np.ndarray]) -> dict:
    """Describes and signs everything in a checkpoint but the arrays."""
    described = {name: [*_kind(leaf), _digest(leaf)] for name, leaf in leaves.items()}
    content = {"format": FORMAT, "step": step, "notes": dict(notes), "leaves": described}
    header = json.loads(json.dumps(content))
    return {**header, "sha256": _signature(header)}


def _is_key(leaf: Any) -> bool:
    """Returns whether a leaf is an array of typed random keys."""
    return hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _kind(leaf: Any) -> list:
    """Returns the shape and dtype of a leaf; of a random key's data."""
    leaf = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
    dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
    return [list(np.shape(leaf)), str(dtype)]


def _digest(leaf: np.ndarray) -> str:
    """Hashes the bytes of a leaf."""
    return hashlib.sha256(np.ascontiguousarray(leaf).tobytes()).hexdigest()


def _signature(header: Mapping[str, Any]) -> str:
    """Hashes a header without its own hash."""
    signed = {name: value for name, value in header.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(signed, sort_keys=True).encode()).hexdigest()


def _read_header(folder: Path) -> dict[str, Any]:
    """Reads the JSON header of a checkpoint."""
    text = (folder / "header" / "metadata").read_text(encoding="utf-8")
    return dict(strict_json.loads(text).items())


def _check_format(header: Mapping[str, Any], folder: Path) -> None:
    """Raises FormatError unless a header has this version's format."""
    if (found := header.get("format")) != FORMAT:
        named = "no format number" if found is None else f"format {shown(found)}"
        raise FormatError(
            f"Checkpoint {shown(folder)} has {named}, and this version reads format {FORMAT} alone; start "
            "again in another --workdir, or use the version that saved it."
        )


def _read(ocp: Any, folder: Path, step: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Reads leaves and notes, and raises an exception of some type unless they are exactly as saved."""
    alone = _alone(ocp)
    handler = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=alone)
    )
    with ocp.Checkpointer(handler, multiprocessing_options=alone) as reader:
        header = _read_header(folder)
        _check_format(header, folder)
        if header["sha256"] != _signature(header) or header["step"] != step:
            raise ValueError("the header's digest differs")
        # Broadcast zeros take no memory; they give Orbax the shapes, dtypes and array type to restore.
        expect = {
            name: np.broadcast_to(np.zeros((), np.dtype(dtype)), shape)
            for name, (shape, dtype, _) in header["leaves"].items()
        }
        stored = {name: leaf for name, leaf in expect.items() if leaf.size}
        items = ocp.args.Composite(state=ocp.args.StandardRestore(stored))
        leaves = {**expect, **reader.restore(folder, args=items).state}
    for name, (shape, dtype, digest) in header["leaves"].items():
        if _kind(leaves[name]) != [shape, dtype] or _digest(leaves[name]) != digest:
            raise ValueError(f"the digest of state{name} differs")
    return leaves, header["notes"]


def _alone(ocp: Any) -> Any:
    """Makes Orbax options for a single process: it has all arrays, and waits for no other process."""
    process = jax.process_index()
    if jax.process_count() == 1:
        return ocp.options.MultiprocessingOptions()
    return ocp.options.MultiprocessingOptions(
        primary_host=process, active_processes={process}, barrier_sync_key_prefix="alone"
    )


def _fit(leaves: Mapping[str, np.ndarray], template: PyTree, folder: Path) -> PyTree:
    """Arranges leaves in the template's structure; raises CheckpointError if any is missing or differs."""
    flat, structure = jax.tree_util.tree_flatten_with_path(template)
    wanted = {jax.tree_util.keystr(path): leaf for path, leaf in flat}
    kinds = [{name: _kind(leaf) for name, leaf in side.items()} for side in (leaves, wanted)]
    names = [name for name in {**leaves, **wanted} if kinds[0].get(name) != kinds[1].get(name)]
    if names:
        saved, expected = (_kind_shown(side.get(names[0])) for side in kinds)
        raise CheckpointError(
            f"Checkpoint {folder} does not fit this run: state{names[0]} is {saved} there and "
            f"{expected} here (leaves that differ: {len(names)}); use the settings it was saved "
            "with, or another --workdir."
        )
    return structure.unflatten(_typed_like(leaves[name], like) for name, like in wanted.items())


def _kind_shown(kind: list | None) -> str:
    """Formats a leaf's shape and dtype for a message."""
    return "absent" if kind is None else f"{kind[1]}{kind[0]}"


def _typed_like(leaf: np.ndarray, like: Any) -> Any:
    """Converts a leaf to the template's type: random key, Python number, numpy scalar or array."""
    if _is_key(like):
        return jax.random.wrap_key_data(leaf, impl=str(jax.random.key_impl(like)))
    if isinstance(like, bool | int | float | complex) and not isinstance(like, np.generic):
        return leaf.item()
    return leaf[()] if isinstance(like, np.generic) else np.array(leaf)


@contextlib.contextmanager
def _quiet_orbax() -> Iterator[Any]:
    """Imports Orbax, which takes long, and keeps its messages out of the run's output."""
    import orbax.checkpoint as ocp

    # Orbax logs through absl's logger, which exists after the import; its level is restored afterwards.
    logger, hook = logging.getLogger("absl"), sys.unraisablehook
    level = logger.level

    def report_unless_loop_closed(unraisable):
        # When one leaf cannot be read, Orbax closes its event loop while the others are still being read.
        if "Event loop is closed" not in str(unraisable.exc_value):
            hook(unraisable)

    logger.setLevel(logging.CRITICAL)
    sys.unraisablehook = report_unless_loop_closed
    try:
        yield ocp
    finally:
        sys.unraisablehook = hook
        logger.setLevel(level)


def _sync_tree(folder: Path) -> None:
    """Flushes all files in a folder, and the folder's name, to the disk."""
    for path in (*folder.rglob("*"), folder, folder.parent):
        sync(path)
