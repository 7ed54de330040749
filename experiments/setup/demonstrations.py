"""Files of an expert's demonstrations: NumPy archives of plain arrays.

Rows are episodes one after another, without padding:

- `observations`, float [R, ...];
- `actions`, int [R] or float [R, A];
- `ends`, bool [R]: whether the row was the last of its episode. An episode shorter than the environment's
  horizon ended by itself.

Two more are optional: `task_0`, `task_1`, ..., the leaves of the task, and `returns`, one per episode, which
are reported and never learned from.
"""

import hashlib
import io
import os
import zipfile
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from metajax import rl
from metajax.errors import DataError
from metajax.names import shown
from metajax.types import Batch, Task

from ..flags.settings import PACKAGE
from ..runtime.files import writing

_NEEDED = ("observations", "actions", "ends")


class Demonstrations(NamedTuple):
    """Demonstrations of one expert in one task.

    Attributes:
      batch: Observations and actions of N whole episodes of the environment's horizon [N H, ...]; weights are
        zero after an end.
      task: Task of the environment, where the file has it; else None.
      returns: Returns [N] of the expert, where the file has them; else None.
      sha256: Digest of the arrays.
    """

    batch: Batch
    task: Task | None
    returns: np.ndarray | None
    sha256: str


def write(path: Path, lives: rl.Trajectories, task: Task) -> None:
    """Writes demonstrations.

    Args:
      path: File to write; replaced if it exists.
      lives: Trajectories of N episodes, whose observations are one array.
      task: Task that they belong to.

    Raises:
      DataError: If observations are a tree of several arrays.
      WriteError: If the disk does not accept the file.
    """
    observations = jax.tree.leaves(lives.observation)
    if len(observations) != 1:
        raise DataError(
            f"observations are {len(observations)} arrays, and a file of demonstrations has one; flatten "
            "them in the environment."
        )
    alive = np.asarray(lives.alive)
    arrays = {
        "observations": np.asarray(observations[0])[alive],
        "actions": np.asarray(lives.action)[alive],
        "ends": np.asarray(lives.ends)[alive],
        "returns": np.asarray(lives.reward).sum(axis=1),
    }
    arrays |= {f"task_{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(task))}
    content = io.BytesIO()
    np.savez(content, **arrays)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        try:
            partial.write_bytes(content.getvalue())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def read(path: Path, env: rl.Env, *, episodes: int) -> Demonstrations:
    """Reads the first episodes of a file of demonstrations, and checks that they fit the environment.

    Nothing in the file is executed: it may hold arrays of numbers only.

    Args:
      path: File.
      env: Environment.
      episodes: Number of episodes N.

    Returns:
      The demonstrations.

    Raises:
      DataError: If the file is missing, damaged or does not fit.
    """
    arrays = _arrays(path)
    rows, ends = len(arrays["observations"]), arrays["ends"]
    for name in _NEEDED:
        if arrays[name].shape[:1] != (rows,):
            raise _unfit(path, f"{name} has shape {arrays[name].shape} for {rows} observations")
    if ends.shape != (rows,) or not rows or not ends[-1]:
        raise _unfit(path, "its last row is no end; mark the last step of each episode in ends")
    last = np.flatnonzero(ends)
    lengths = np.diff(last, prepend=-1)
    if len(last) < episodes:
        raise DataError(
            f"--expert_file={shown(path)} has {len(last)} episodes; use --demonstrations={len(last)} or "
            "fewer."
        )
    lengths = lengths[:episodes]
    if (longest := int(lengths.max())) > env.horizon:
        raise DataError(
            f"--expert_file={shown(path)} has an episode of {longest} steps, and the environment's horizon "
            f"is {env.horizon}; use --horizon={longest} or more."
        )
    task = _task(path, arrays, env)
    batch = _padded(arrays, lengths, env.horizon)
    drawn = env.sample(jax.random.key(0)) if task is None else task
    if not isinstance(env.actions, rl.Discrete):
        batch = batch._replace(targets=np.asarray(batch.targets, batch.inputs.dtype))
    elif not np.issubdtype(batch.targets.dtype, np.integer):
        raise _unfit(path, f"actions are {batch.targets.dtype}, and the environment's are integers")
    try:
        rl.check_demonstrations(env, jax.tree.map(jax.numpy.asarray, batch), drawn)
    except ValueError as error:
        raise _unfit(path, str(error).removesuffix(".")) from error
    returns = arrays.get("returns")
    returns = None if returns is None or len(returns) < episodes else returns[:episodes]
    return Demonstrations(batch, task, returns, _digest(arrays))


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """Loads the arrays of a file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError as error:
        raise DataError(
            f"--expert_file={shown(path)} is not there; python -m {PACKAGE}.rl writes one with "
            "--export_demonstrations."
        ) from error
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise _unfit(path, "it is no .npz archive of plain arrays") from error
    for name in _NEEDED:
        if name not in arrays:
            raise _unfit(path, f"{name} is missing among {', '.join(sorted(arrays)) or 'nothing'}")
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf":
            raise _unfit(path, f"{name} is of type {array.dtype}, which is no number")
    if arrays["ends"].dtype != bool:
        raise _unfit(path, f"ends is of type {arrays['ends'].dtype}; make it boolean")
    return {n: np.float32(a) if a.dtype == np.float64 else a for n, a in arrays.items()}


def _task(path: Path, arrays: dict[str, np.ndarray], env: rl.Env) -> Task | None:
    """Restores the task from its leaves; None if the file has none."""
    leaves = [arrays[name] for i in range(len(arrays)) if (name := f"task_{i}") in arrays]
    if not leaves:
        return None
    like, structure = jax.tree.flatten(jax.eval_shape(env.sample, jax.random.key(0)))
    shapes = [leaf.shape for leaf in like]
    if [leaf.shape for leaf in leaves] != shapes:
        raise _unfit(path, "its task is not one of this environment; use the expert's --env")
    typed = [np.asarray(leaf, one.dtype) for leaf, one in zip(leaves, like, strict=True)]
    return structure.unflatten(map(jax.numpy.asarray, typed))


def _padded(arrays: dict[str, np.ndarray], lengths: np.ndarray, horizon: int) -> Batch:
    """Makes whole episodes [N H, ...] of the first ones; steps after an end repeat the last row."""
    begins = np.cumsum(lengths) - lengths
    steps = np.minimum(np.arange(horizon), lengths[:, None] - 1)  # [N, H]
    chosen = (begins[:, None] + steps).reshape(-1)
    weights = (np.arange(horizon) < lengths[:, None]).reshape(-1).astype(np.float32)
    return Batch(arrays["observations"][chosen], arrays["actions"][chosen], weights)


def _digest(arrays: dict[str, np.ndarray]) -> str:
    """Hashes names, shapes, types and content of arrays."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name}{array.shape}{array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _unfit(path: Path, reason: str) -> DataError:
    return DataError(f"--expert_file={shown(path)} does not fit: {reason}.")
