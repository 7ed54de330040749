"""Work directories: named by the settings of a run, locked while it works, bound to its settings."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metajax.data import strict_json

from ..flags.settings import (
    DISPLAY,
    HOST,
    RUN,
    TEST,
    TrainingError,
    UsageError,
    declarations,
    defaults,
    in_scope,
    with_todays_names,
)
from ..flags.training import TrainingSettings
from .checkpoints import CheckpointError, Checkpoints
from .files import (
    HASHES,
    SettingsMismatch,
    check_settings,
    data_hashes,
    read_settings,
)

# Sections of options that differ for another model or other data, not for more training. Those of the inner
# loop may have been learned: the learned values would replace the new ones.
_NOT_TO_GO_ON_WITH = ("Data", "Environment", "Learner", "Inner loop", "Start")

_locks = []  # open files whose locks this process holds to its end


def prepare_workdir(settings: TrainingSettings, name: str, fingerprint: str) -> Path:
    """Makes and locks the work directory.

    Args:
      settings: Settings of the run; `workdir` names the directory.
      name: First part of its default name, which ends in a digest of settings and data.
      fingerprint: Hash of the data.

    Returns:
      Path of the directory.

    Raises:
      UsageError: If it cannot be written, or another process works in it.
    """
    # The digest is of settings that differ from their defaults: an option added later renames no directory.
    unset, bound = defaults(settings), in_scope(settings, RUN, TEST)
    given = {name: getattr(settings, name) for name in bound}
    compared = {
        _first_name(settings, name): value
        for name, value in given.items()
        if value not in (None, unset[name])
    }
    tag = hashlib.sha256(json.dumps([compared, fingerprint], sort_keys=True).encode()).hexdigest()
    name = re.sub(r"[^\w.-]+", "_", name)
    if "://" in settings.workdir:
        raise UsageError(
            f"--workdir={settings.workdir} is an address and no folder; mount what it names, and give "
            "the folder."
        )
    workdir = Path(settings.workdir or f"runs/{name}-{tag[:8]}").expanduser()
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / ".lock").open("a")
    except OSError as error:
        raise UsageError(
            f"--workdir={workdir} cannot be written ({error.strerror}); name a directory that can."
        ) from error
    try:
        import fcntl

        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # not a Unix; two processes in one directory are the user's to avoid
        pass
    except OSError as error:
        lock.close()
        raise UsageError(
            f"Another process is working in --workdir={workdir}; wait for it, or name another."
        ) from error
    _locks.append(lock)
    return workdir


def _first_name(settings: TrainingSettings, name: str) -> str:
    """Returns the first name that an option had, so that a renamed one renames no directory."""
    own = settings.entry.options.get(name)
    former = own.was if own else declarations(settings)[name].was
    return former[0] if former else name


def tie_settings(settings: TrainingSettings, workdir: Path, fingerprint: str) -> None:
    """Refuses a work directory whose checkpoints were made with other settings or data.

    Args:
      settings: Settings of the run.
      workdir: Work directory.
      fingerprint: Hash of the data.

    Raises:
      SettingsMismatch: If settings or data differ; lists the differences.
      FormatError: If its checkpoints are of another version.
      TrainingError: If there is nothing yet to evaluate.
    """
    recorded = {**dataclasses.asdict(settings), **data_hashes(fingerprint)}
    unbound = in_scope(settings, HOST, DISPLAY)
    check = functools.partial(
        check_settings,
        workdir,
        recorded,
        defaults=defaults(settings),
        rename=functools.partial(with_todays_names, type(settings)),
    )
    checkpoints = Checkpoints(workdir / "checkpoints")
    # First, because another version may have had other options too.
    checkpoints.check_format()
    begun = bool(checkpoints.steps())
    if settings.after_training:
        if not begun:
            raise TrainingError(f"{workdir} holds no checkpoint to evaluate; train there first.")
        free = free_in_test(settings, read_settings(workdir) or {})
        check(ignore=(*unbound, *free), remedy=_evaluate_remedy)
        return
    check(
        ignore=unbound,
        binding=begun,
        remedy=functools.partial(_train_remedy, settings, workdir),
    )


def keep_evaluation(folder: Path, result: Mapping[str, Any], *, unbound: Sequence[str]) -> None:
    """Renames the folder of an earlier evaluation unless a new one is of the same model, data and options.

    Args:
      folder: Folder of the newest evaluation, which need not exist.
      result: Content of the new evaluation's `result.json`.
      unbound: Options that change no number.
    """
    try:
        earlier = strict_json.loads((folder / "result.json").read_text(encoding="utf-8"))
        new = json.loads(json.dumps(result))
        if _evaluated(earlier, unbound) == _evaluated(new, unbound):
            return
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # what cannot be read is kept too
    number = 1
    while (kept := folder.with_name(f"{folder.name}-{number}")).exists():
        number += 1
    folder.rename(kept)
    print(f"The evaluation before this one, of other data or options, is kept in {kept}.")


def _evaluated(result: Mapping[str, Any], unbound: Sequence[str]) -> list[Any]:
    """Returns everything that determines the numbers of an evaluation."""
    options = {k: v for k, v in result["settings"].items() if k not in unbound}
    return [options, result["episodes_sha256"], result["best_step"]]


def trained_with(settings: TrainingSettings, name: str) -> Any:
    """Looks up an option of the training; an evaluation finds it in its work directory."""
    now = getattr(settings, name)
    if not settings.after_training or not settings.workdir:
        return now
    with contextlib.suppress(OSError, SettingsMismatch):  # reported when the directory is opened
        return (read_settings(Path(settings.workdir).expanduser()) or {}).get(name, now)
    return now


def free_in_test(settings: TrainingSettings, was: Mapping[str, Any]) -> tuple[str, ...]:
    """Names the options that may differ when a finished training is tested.

    Args:
      settings: Settings of the test.
      was: Recorded settings of the training.
    """
    now = dataclasses.asdict(settings)
    names = list(in_scope(settings, TEST))
    # Where training has its own ways or shots, --ways and --shots are options of the test.
    names += [name for name in ("ways", "shots") if now.get(f"train_{name}")]
    if now.get("test_dataset") or was.get("test_dataset"):
        names.append("test_data_sha256")
    if now.get("test_dataset"):
        # Other images may be read in another way and be fewer; the hash of the training images still binds.
        names += ["fit", "invert", "shots"]
        names += ["ways"] if settings.entry.ways_agnostic else []
    # Both train on turned classes.
    if {now.get("rotations"), was.get("rotations")} <= {"train", "all"}:
        names.append("rotations")
    return tuple(names)


def _has_best(workdir: Path) -> bool:
    """Returns whether a validation has chosen a checkpoint that can be read."""
    with contextlib.suppress(CheckpointError):
        found = Checkpoints(workdir / "checkpoints").latest_leaves()
        return bool(found and found.notes.get("progress", {}).get("best_steps"))
    return False


def _evaluate_remedy(names: Sequence[str]) -> str:
    images = " Other images to test on are --test_dataset." if set(names) & set(HASHES) else ""
    return f"Evaluating takes the values that a run was trained with.{images}"


def _train_remedy(settings: TrainingSettings, workdir: Path, names: Sequence[str]) -> str:
    usual = "Use another --workdir, or the old values to continue that run"
    sections = {name: declared.section for name, declared in declarations(settings).items()}
    kinds = {*names, *(sections.get(name, "Data") for name in names)}
    if kinds & set(_NOT_TO_GO_ON_WITH) or not _has_best(workdir):
        return f"{usual}."
    source = shlex.quote(str(workdir))
    return (
        f"{usual}; to train on from its best checkpoint with the new ones: "
        f"--workdir=ANOTHER --init_from={source} --init_head."
    )
