"""The study: which values a trial tries, in a journal that several commands share."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from metajax.errors import DataError
from metajax.names import shown

from ..runtime.files import one_line
from .locks import locked, try_lock
from .space import Choice
from .trial_flags import Base, asks, settings_of

JOURNAL = "study.journal"
LOCK = ".search.lock"  # held while a command asks for a trial, or writes the files of the search
_DIGITS = 4  # of the numbers that trials try, so that a flag can be read


class Taken(NamedTuple):
    """A trial that this process runs.

    Attributes:
      number: Number of the trial, from 0.
      trial: Optuna's trial.
      chosen: Values by option.
      folder: Work directory of its run.
      lock: Open file that holds the trial.
      again: Whether an earlier process began it.
    """

    number: int
    trial: Any
    chosen: dict[str, Any]
    folder: Path
    lock: IO
    again: bool


class Study:
    """Trials of a work directory; several processes share them through its journal.

    A trial belongs to the process that holds its lock, and to the run that this process has started. A trial
    that nobody holds any more is taken again, and its run goes on from its last checkpoint.

    Args:
      folder: Work directory of the search.
      base: Facts that all trials share.
      prune: One of PRUNERS.
      seed: Seed of the values.

    Raises:
      DataError: If the journal cannot be read.
      ImportError: If Optuna is not installed.
    """

    def __init__(self, folder: Path, base: Base, *, prune: str, seed: int):
        self._optuna = _import_optuna()
        self._folder, self._base, self._seed = Path(folder), base, seed
        with locked(self._folder / LOCK):
            self._study = self._opened(prune)
            if not self._study.get_trials(deepcopy=False) and (own := self._own_values()):
                self._study.enqueue_trial(own)

    def trials(self) -> Sequence[Any]:
        """Lists all trials as Optuna's frozen trials; values are losses, or scores with a minus."""
        return self._study.get_trials()

    def shares(self, name: str, value: str) -> bool:
        """Compares a fact of a trial with the first trial's, which decides it.

        Args:
          name: Name of the fact.
          value: Value of this trial.

        Returns:
          Whether the study has the same value.
        """
        if name not in self._study.user_attrs:
            with locked(self._folder / LOCK):
                if name not in self._study.user_attrs:
                    self._study.set_user_attr(name, value)
        return self._study.user_attrs[name] == value

    def importances(self) -> dict[str, float]:
        """Estimates how much of the difference between trials each option explains; {} of too few trials."""
        complete = [t for t in self.trials() if t.state.name == "COMPLETE"]
        if len(complete) < 4:
            return {}
        try:
            with warnings.catch_warnings():  # such as where many values are equal
                warnings.simplefilter("ignore")
                return dict(self._optuna.importance.get_param_importances(self._study))
        except (ValueError, RuntimeError):
            return {}

    def take(self, limit: int) -> Taken | None:
        """Takes a trial that nobody runs any more, or begins a new one.

        Args:
          limit: Largest number of trials in the study.

        Returns:
          The trial; None if there are as many as the limit, and all are held or have ended.
        """
        with locked(self._folder / LOCK):
            trials = self._study.get_trials(deepcopy=False)
            for frozen in trials:
                if frozen.state.name == "RUNNING" and (lock := try_lock(self._lock_of(frozen))):
                    self._seed_sampler(frozen.number)
                    trial = self._optuna.trial.Trial(self._study, frozen._trial_id)
                    return self._taken(trial, lock, again=True)
            begun = sum(frozen.state.name != "WAITING" for frozen in trials)
            if begun >= limit:
                return None
            self._seed_sampler(begun)
            trial = self._study.ask()
            lock = try_lock(self._lock_of(trial))
            if lock is None:  # the journal was deleted, and a run of before goes on
                raise DataError(
                    f"{shown(self._lock_of(trial).parent)} is used by a run that is not in {JOURNAL}; use "
                    "another --workdir."
                )
            return self._taken(trial, lock, again=False)

    def _seed_sampler(self, number: int) -> None:
        """Seeds the values of a trial, which depend neither on the command that asks nor on its stops."""
        seed = (self._seed * 1_000_003 + number) % 2**32
        self._study.sampler = self._optuna.samplers.TPESampler(seed=seed)

    def held_by_others(self) -> int:
        """Counts the trials that other processes run."""
        count = 0
        # Not while another process takes a trial: it would find the lock held that is only tried here.
        with locked(self._folder / LOCK):
            for frozen in self._study.get_trials(deepcopy=False):
                if frozen.state.name == "RUNNING":
                    lock = try_lock(self._lock_of(frozen))
                    if lock is None:
                        count += 1
                    else:
                        lock.close()
        return count

    def should_prune(self, taken: Taken, value: float, step: int) -> bool:
        """Records a validation of a trial.

        Args:
          taken: The trial.
          value: Loss, or score with a minus.
          step: Meta-steps so far.

        Returns:
          Whether the trial is to end here.
        """
        with warnings.catch_warnings():
            # A run that goes on from a checkpoint reports its validations again.
            warnings.simplefilter("ignore")
            taken.trial.report(value, step)
        return taken.trial.should_prune()

    def end(self, taken: Taken, state: str, value: float | None = None, **facts: Any) -> None:
        """Records the end of a trial, and gives it back.

        Args:
          taken: The trial.
          state: "COMPLETE", "PRUNED" or "FAIL".
          value: Loss, or score with a minus, of a complete trial.
          **facts: Further facts, which JSON can hold.
        """
        for name, fact in facts.items():
            taken.trial.set_user_attr(name, fact)
        state = self._optuna.trial.TrialState[state]
        self._study.tell(taken.trial, values=value, state=state)
        taken.lock.close()

    def _opened(self, prune: str) -> Any:
        journal = self._optuna.storages.journal
        path = self._folder / JOURNAL
        try:
            storage = self._optuna.storages.JournalStorage(journal.JournalFileBackend(str(path)))
            return self._optuna.create_study(
                storage=storage,
                study_name="search",
                direction="minimize",
                pruner=self._pruner(prune),
                load_if_exists=True,
            )
        except (OSError, ValueError, KeyError) as error:
            raise DataError(
                f"{shown(path)} cannot be read ({one_line(error)}); use another --workdir."
            ) from error

    def _pruner(self, prune: str) -> Any:
        pruners = self._optuna.pruners
        if prune == "hyperband":
            every = min(self._base.trial_every, self._base.trial_steps)
            return pruners.HyperbandPruner(min_resource=every, max_resource=self._base.trial_steps)
        return pruners.MedianPruner() if prune == "median" else pruners.NopPruner()

    def _own_values(self) -> dict[str, Any]:
        """Lists the values that the command itself has, which the first trial tries."""
        own: dict[str, Any] = {}
        for name, values in self._base.space.items():
            if asks(self._base, own, name):
                default = getattr(settings_of(self._base, own), name)
                value = self._base.own.get(name, default)
                if values.holds(value):
                    own[name] = value
        return own

    def _taken(self, trial: Any, lock: IO, *, again: bool) -> Taken:
        chosen: dict[str, Any] = {}
        for name, values in self._base.space.items():
            if asks(self._base, chosen, name):
                chosen[name] = _suggested(trial, name, values)
        folder = self._lock_of(trial).parent
        return Taken(trial.number, trial, chosen, folder, lock, again)

    def _lock_of(self, trial: Any) -> Path:
        return self._folder / "trials" / f"{trial.number:04}" / ".trial.lock"


def _suggested(trial: Any, name: str, values: Any) -> Any:
    """Asks for a value; one that the trial has is returned again."""
    if isinstance(values, Choice):
        return trial.suggest_categorical(name, values.values)
    if values.whole:
        return trial.suggest_int(name, int(values.low), int(values.high), log=values.log)
    return rounded(trial.suggest_float(name, values.low, values.high, log=values.log), values)


def rounded(value: float, values: Any) -> float:
    """Rounds a value to few digits within its range.

    Args:
      value: Value.
      values: Range.

    Returns:
      The rounded value.
    """
    return min(max(float(f"{value:.{_DIGITS}g}"), values.low), values.high)


def _import_optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ImportError(
            "A search needs Optuna; install it with pip install 'metajax[search]'."
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna
