"""A work directory: found by what a run computes, locked by who works there, tied to its settings."""

import dataclasses
import hashlib
import json
import re
from pathlib import Path

from experiments.checkpoints import Checkpoints
from experiments.files import check_settings
from experiments.options import TrainingSettings
from experiments.settings import TrainingError, UsageError

# Where a run happens and what it shows, as against what it computes; and what a stopped run may change.
NOT_COMPARED = (
    *(
        "workdir",
        "mode",
        "plan",
        "data_dir",
        "test_data_dir",
        "resident",
        "read_workers",
        "compilation_cache",
        "log_every",
        "skip_nonfinite",
    ),
    *("memory_budget", "published", "published_by"),
    *("parameter_shards", "distributed", "coordinator", "num_processes", "process_id"),
    "join_seconds",
)
# What may differ when a finished training is tested again.
TEST_ONLY = (
    *("eval_episodes", "eval_seed", "test_inner_steps", "test_queries", "beside_support"),
    *("attack", "attack_epsilon", "attack_on"),
)

_locks = []  # open files whose locks this process holds to its end


def prepare_workdir(settings: TrainingSettings, name: str, fingerprint: str) -> Path:
    """Makes and locks the work directory.

    Args:
      settings: the run's; `workdir` names the directory.
      name: begins its default name, which ends in a digest of settings and data.
      fingerprint: identifies the data.

    Raises:
      UsageError: if it cannot be written, or another process works in it.
    """
    # By what differs from the defaults, so that an option added later renames no directory.
    given = {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)}
    defaults = {f.name: f.default for f in dataclasses.fields(settings)}
    compared = {
        k: v for k, v in given.items() if k not in NOT_COMPARED and v not in (None, defaults[k])
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


def tie_settings(settings: TrainingSettings, workdir: Path, fingerprint: str) -> None:
    """Refuses a work directory whose checkpoints were made with other settings or data.

    Raises:
      SettingsMismatch: with the differences.
      TrainingError: if there is nothing yet to evaluate.
    """
    recorded = {**dataclasses.asdict(settings), "images": fingerprint}
    defaults = {field.name: field.default for field in dataclasses.fields(settings)}
    begun = bool(Checkpoints(workdir / "checkpoints").steps())
    if settings.mode == "evaluate":
        if not begun:
            raise TrainingError(f"{workdir} holds no checkpoint to evaluate; train there first.")
        # Where training has its own ways or shots, those of --ways and --shots are the test's.
        own = [name for name in ("ways", "shots") if recorded.get(f"train_{name}")]
        ignore = (*NOT_COMPARED, *TEST_ONLY, *own)
        check_settings(workdir, recorded, ignore=ignore, defaults=defaults)
        return
    check_settings(workdir, recorded, ignore=NOT_COMPARED, binding=begun, defaults=defaults)
