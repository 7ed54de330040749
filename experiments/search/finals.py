"""The last runs: the best trials again, at full length and with several seeds, and only then tested."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from metajax.data import strict_json
from metajax.names import shown

from .locks import try_lock
from .processes import Run
from .trial_flags import Base, flags_of
from .trials import shown_score
from .working import work


class Final(NamedTuple):
    """One run of one of the best trials.

    Attributes:
      number: Number of the trial.
      seed: Seed of the run.
      flags: Flags of the driver.
      folder: Work directory.
    """

    number: int
    seed: int
    flags: list[str]
    folder: Path

    @property
    def result(self) -> dict[str, Any]:
        """The run's result; {} before it has one."""
        try:
            found = strict_json.loads((self.folder / "result.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def finals_of(base: Base, trials: Sequence[Any], folder: Path, *, seeds: int) -> list[Final]:
    """Lists the last runs.

    Args:
      base: Facts that all trials share.
      trials: Optuna's frozen trials, the best first.
      folder: Work directory of the search.
      seeds: Number of runs of each trial.

    Returns:
      Runs, by trial and seed.
    """
    first = base.given.get("seed", base.settings_class().seed)
    return [
        Final(
            trial.number,
            first + i,
            flags_of(base, trial.user_attrs["chosen"], steps=base.steps, seed=first + i),
            folder / "finals" / f"{trial.number:04}-seed{first + i}",
        )
        for trial in trials
        for i in range(seeds)
    ]


def run_finals(
    base: Base,
    finals: Sequence[Final],
    workers: int,
    *,
    tell: Callable[[str], None],
    start: Callable[..., Any] = Run,
) -> None:
    """Runs those that have no result yet; other commands may run some of them.

    Args:
      base: Facts that all trials share.
      finals: The last runs.
      workers: Number of runs at once.
      tell: Function that prints a line.
      start: Function with the arguments of `Run` that starts a process.

    Raises:
      Interrupted: If a signal asked to stop.
    """
    failed: set[Path] = set()

    def open_ones() -> list[Final]:
        return [final for final in finals if final.folder not in failed and not final.result]

    def take(cores: set[int] | None) -> "_FinalJob | None":
        for final in open_ones():
            if lock := try_lock(final.folder / ".final.lock"):
                if final.result:  # another command has just ended it
                    lock.close()
                    continue
                return _FinalJob(base, final, lock, cores, failed, tell, start)
        return None

    work(workers, take, waits=lambda: bool(open_ones()))


class _FinalJob:
    """One of the last runs in a process."""

    def __init__(
        self,
        base: Base,
        final: Final,
        lock: IO,
        cores: set[int] | None,
        failed: set[Path],
        tell: Callable[[str], None],
        start: Callable[..., Any],
    ):
        self._final, self._lock, self._failed, self._tell = final, lock, failed, tell
        self._stopped = False
        tell(f"trial {final.number} runs at full length, seed {final.seed}")
        self._run = start(base.driver, final.flags, final.folder, lock=lock, cores=cores)

    def advance(self) -> bool:
        status = self._run.status
        if status is None:
            return False
        name = f"trial {self._final.number}, seed {self._final.seed}"
        if score := _score_of(self._final.result):
            tested = shown_score(score, self._final.result.get(f"test_{score}"))
            self._tell(f"{name}: test {score} {tested}")
        elif not self._stopped:
            self._failed.add(self._final.folder)
            self._tell(f"{name} failed: {shown(self._run.reason(), 400)}")
        self._lock.close()
        return True

    def stop(self) -> None:
        self._stopped = True
        self._run.stop()

    def kill(self) -> None:
        self._run.kill()


def _score_of(result: dict[str, Any]) -> str:
    """Names the score that picked the best checkpoint of a run; "" without a result."""
    names = [name for name in result if name.startswith("best_valid_")]
    return names[0].removeprefix("best_valid_") if names else ""
