"""Initialization from the encoder of another run, or from all its meta-parameters; frozen encoders."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..flags.settings import UsageError
from ..runtime.checkpoints import Checkpoints
from ..runtime.files import SettingsMismatch, read_settings

# A parameter of the network in what any learner learns: its path in the network, such as ['conv0']['kernel'].
_OF_NETWORK = re.compile(r"\.(?:params(?:\['model'\])?|encoder)((?:\['[^']+'\])+)")
# Parameters that learners keep next to the network's.
_BESIDE = ("['context']", "['modulation']", "['factors']", "['warp")
_LAST_LAYER = "['head']"


def start_from(
    meta: Any, source: str, *, settings: dict[str, Any], head: bool = False
) -> tuple[Any, str]:
    """Takes every parameter of the network but its last layer's from the best checkpoint of another run.

    Args:
      meta: Freshly initialized meta-parameters.
      source: Work directory of the other run.
      settings: Settings of this run, with the hash of its training data as `data_sha256`.
      head: Whether the last layer and whatever else the learner learns are taken too, where path and
        shape agree.

    Returns:
      The meta-parameters, and a description of the parameters taken.

    Raises:
      UsageError: If there is no checkpoint, no parameter fits, or the other run's training classes may be
        among this run's test classes.
      CheckpointError: If the checkpoint is damaged.
    """
    folder = Path(source).expanduser()
    flag = f"--init_from={source}"
    found = Checkpoints(folder / "checkpoints").latest_leaves()
    if found is None:
        raise UsageError(f"{flag} holds no checkpoint; name the work directory of a run.")
    best_steps = found.notes["progress"]["best_steps"]
    if not best_steps:
        raise UsageError(
            f"{flag} stopped before its first validation chose a checkpoint; let it train on first."
        )
    _check_classes(folder, settings, flag)
    offered = _best_leaves(found.state)
    in_network = {
        match[1]: leaf for name, leaf in offered.items() if (match := _OF_NETWORK.fullmatch(name))
    }
    taken, missed, fresh = [], [], []

    def take_beside(path: tuple, leaf: Any) -> Any:
        name = jax.tree_util.keystr(path)
        match = _OF_NETWORK.fullmatch(name)
        other = offered.get(name, in_network.get(match[1]) if match else None)
        if not head or other is None or other.shape != leaf.shape:
            fresh.append(name)
            return leaf
        taken.append(name)
        return np.asarray(other, leaf.dtype)

    def take(path: tuple, leaf: Any) -> Any:
        place = _in_encoder(path)
        if place is None:
            return take_beside(path, leaf)
        other = in_network.get(place)
        if other is not None and other.shape == leaf.shape[1:]:
            other = np.broadcast_to(other, leaf.shape)  # learned for each inner step by itself
        if other is None or other.shape != leaf.shape:
            missed.append(place)
            return leaf
        taken.append(place)
        return np.asarray(other, leaf.dtype)

    meta = jax.tree_util.tree_map_with_path(take, meta)
    if missed or not taken:
        shape = "none of this network's parameters" if not taken else f"no {missed[0]} that fits"
        raise UsageError(
            f"{flag} has {shape}; use the --model, --filters and --norm that it was trained with."
        )
    rest = f"; initialized afresh: {', '.join(fresh[:3])}" if head and fresh else ""
    return meta, f"{len(taken)} arrays of {source}, step {best_steps[0]:,}{rest}"


def _best_leaves(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Maps paths in the meta-parameters to the leaves of the best checkpoint."""
    prefix = "['best_metas']"
    return {
        name.removeprefix(prefix): leaf[0]
        for name, leaf in state.items()
        if name.startswith(prefix)
    }


def frozen_encoder() -> optax.GradientTransformation:
    """Zeroes the updates of the network's parameters but the last layer's; chain it before an optimizer.

    Evolution strategies differentiate nothing, and have updates of a frozen encoder all the same.
    """

    return optax.stateless(lambda updates, params: _map_encoder(jnp.zeros_like, updates))


def still_encoder(meta: Any) -> Any:
    """Stops derivatives through the encoder of meta-parameters, so that they cost nothing."""
    return _map_encoder(jax.lax.stop_gradient, meta)


def _map_encoder(function: Callable[[Any], Any], tree: Any) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf if _in_encoder(path) is None else function(leaf), tree
    )


def _in_encoder(path: tuple) -> str | None:
    """Returns the path of a leaf in the network; None for the head and for parameters outside the network."""
    match = _OF_NETWORK.fullmatch(jax.tree_util.keystr(path))
    if not match or match[1].startswith((_LAST_LAYER, *_BESIDE)):
        return None
    return match[1]


def _check_classes(folder: Path, settings: dict[str, Any], flag: str) -> None:
    """Raises UsageError where the other run divided the classes of the same data set in another way."""
    try:
        other = read_settings(folder) or {}
    except (OSError, SettingsMismatch):
        other = {}
    # Of the hashes of all splits, that of the first: what this run trains on is not its test.
    hashes = [str(run.get("data_sha256", "")).split(".")[0] for run in (other, settings)]
    if not hashes[0]:
        raise UsageError(
            f"{flag} has no settings.json that can be read, which names its training data; name "
            "the work directory of a run."
        )
    dataset = other.get("dataset")
    if dataset is None:
        return  # Its tasks are drawn, and have no classes.
    same_data, same_split = dataset == settings.get("dataset"), hashes[0] == hashes[1]
    # Of the same split, the classes of other test data have been compared by name already.
    if not same_split and (same_data or dataset == settings.get("test_dataset", "")):
        raise UsageError(
            f"{flag} was trained on {dataset} divided into other classes, among which may be "
            "this run's test classes; use the --split, --split_file, --split_seed and --image_size of that "
            "run."
        )
