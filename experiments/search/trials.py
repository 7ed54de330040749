"""A trial as it runs: its validations go to the study, which may end it."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from metajax.data import strict_json
from metajax.names import shown

from ..reports.validation import FILE
from ..runtime.metrics import read_metrics
from .processes import Run
from .study import Study, Taken
from .trial_flags import Base, trial_flags

# An option that a study's first trial decides, and the others have to share.
_EPISODES = "episodes_sha256"


class TrialJob:
    """A trial in a process.

    Args:
      study: The study.
      base: Facts that all trials share.
      taken: The trial.
      cores: Cores that it may use; None for all.
      tell: Function that prints a line.
      start: Function with the arguments of `Run` that starts a process; tests have another.
    """

    def __init__(
        self,
        study: Study,
        base: Base,
        taken: Taken,
        *,
        cores: set[int] | None,
        tell: Callable[[str], None],
        start: Callable[..., Any] = Run,
    ):
        self._study, self._taken, self._tell = study, taken, tell
        self.reason, self.began = "", False
        self._seen, self._cut, self._pruned, self._foreign = -1, False, False, False
        self._last: tuple[int, float] | None = None
        taken.trial.set_user_attr("chosen", taken.chosen)
        (taken.folder / FILE).unlink(missing_ok=True)  # of the process before, if there was one
        flags = [*trial_flags(base, taken.chosen), "--skip_test"]
        tell(
            f"trial {taken.number} {'goes on' if taken.again else 'starts'}: {in_words(taken.chosen)}"
        )
        self._run = start(base.driver, flags, taken.folder, lock=taken.lock, cores=cores)

    def advance(self) -> bool:
        """Reports new validations to the study; returns whether the trial has ended."""
        status = self._run.status  # before the files: they are whole once the process has ended
        facts = read_facts(self._taken.folder)
        if facts:
            self.began = True
            if not self._foreign and not self._study.shares(_EPISODES, facts[_EPISODES]):
                self._foreign = True
                self._run.stop()
            self._report(facts)
        if status is None:
            return False
        self._end(status, facts)
        return True

    def stop(self) -> None:
        """Asks the run to end, because the command's time is over or somebody interrupts it."""
        if not self._pruned:
            self._cut = True
        self._run.stop()

    def kill(self) -> None:
        """Ends the run at once; the study keeps the trial as one to go on with."""
        self._run.kill()

    def _report(self, facts: Mapping[str, Any]) -> None:
        name, sign = facts["score"], -1 if facts["higher_is_better"] else 1
        for row in read_metrics(self._taken.folder):
            if row["split"] != "valid" or row["step"] <= self._seen or name not in row:
                continue
            self._seen = row["step"]
            if row[name] != row[name]:  # NaN, which no pruner compares
                continue
            self._last = self._seen, row[name]
            prunes = self._study.should_prune(self._taken, sign * row[name], self._seen)
            if prunes and not self._cut:
                self._pruned = True
                self._run.stop()

    def _end(self, status: int, facts: Mapping[str, Any]) -> None:
        number, score = self._taken.number, facts.get("score", "score")
        best = facts.get(f"best_valid_{score}")
        last = self._last and {"steps": self._last[0], "last": self._last[1]}
        known = {"score": score, "higher_is_better": facts.get("higher_is_better", True)}
        if self._foreign:
            self._fail(
                "its validation episodes are other ones than those of the first trial; search options that "
                "leave them as they are"
            )
        elif status == 0 and best is not None:
            sign = -1 if facts["higher_is_better"] else 1
            kept = ("ci95", "steps", "train_tasks_per_second", "wall_seconds", "best_step")
            found = {name: facts[name] for name in kept if facts.get(name) is not None}
            self._study.end(self._taken, "COMPLETE", sign * best, best=best, **known, **found)
            self._tell(f"trial {number} ends: validation {score} {shown_score(score, best)}")
        elif status in (0, 130) and self._pruned and last:
            self._study.end(self._taken, "PRUNED", **known, **last)
            self._tell(
                f"trial {number} is pruned at step {last['steps']:,}: validation {score} "
                f"{shown_score(score, last['last'])}"
            )
        elif self._cut:
            self._give_back()
        else:
            self._fail(self._run.reason())

    def _give_back(self) -> None:
        """Leaves the trial in the study as one to go on with."""
        self._taken.lock.close()
        self._tell(f"trial {self._taken.number} is stopped; the same command goes on with it.")

    def _fail(self, reason: str) -> None:
        self.reason = reason
        self._study.end(self._taken, "FAIL", reason=reason)
        self._tell(f"trial {self._taken.number} failed: {shown(reason, 400)}")


def read_facts(folder: Path) -> dict[str, Any]:
    """Reads validation.json of a run; {} if there is none yet."""
    try:
        found = strict_json.loads((Path(folder) / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def in_words(chosen: Mapping[str, Any]) -> str:
    """Formats the values of a trial, such as "inner_lr=0.4, learner=maml"."""
    words = (f"{n}={v if isinstance(v, str) else json.dumps(v)}" for n, v in chosen.items())
    return shown(", ".join(words) or "the command's own values", 400)


def shown_score(name: str, value: float | None, *, sign: str = "") -> str:
    """Formats a score: accuracies in percent, others with four digits."""
    if value is None or value != value:
        return "-"
    return f"{100 * value:{sign}.2f}%" if "accuracy" in name else f"{value:{sign}.4g}"
