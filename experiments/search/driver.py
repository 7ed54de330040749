"""Finds settings of a driver's run: trials of other values, and the best of them tested at full length.

Every trial is a run of the driver in a process and a work directory of its own, WORKDIR/trials/0007. All are
compared on the same validation episodes, and hopeless ones end early. The best run again, at full length and
with several seeds, and only those are tested. The same command in another shell, or on another machine with
the same disk, joins; after Ctrl-C or a killed process it goes on. It leaves trials.csv, search.png and
best.flags.

  python -m experiments.search fewshot --flagfile=glyphs_5way_1shot_maml --trials=40 --trial_steps=1000 \\
    --search="inner_lr=log:0.05..2; outer_lr=log:1e-4..1e-2; learner=maml,anil" --workdir=runs/search

Drivers: fewshot, regression, completion, pertask, tables, rl, imitation, whose flags this command takes too.
"""

import functools
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from metajax.errors import DataError
from metajax.names import shown

from ..flags.settings import LONGEST_LINE, PACKAGE, UsageError, help_text
from ..reports.results import drawn
from ..runtime.files import check_settings
from ..runtime.launch import launch
from . import reports
from .finals import finals_of, run_finals
from .locks import locked
from .options import DRIVERS, SearchSettings, check_search, driver_settings, search_settings
from .processes import Run, pinned
from .rows import best_first, finished, rows_of
from .space import read_space
from .study import LOCK, Study
from .trial_flags import Base, make_base, trial_flags
from .trials import TrialJob, read_facts
from .working import Interrupted, work

# A search whose first trials all end with one message before they train has a fault of its own.
_HOPELESS = 3


def run_search(driver: str, settings: Any, *, start: Callable[..., Any] = Run) -> int:
    """Searches, runs the best trials again, and writes the report.

    Args:
      driver: Name of the driver.
      settings: Settings of the command.
      start: Function with the arguments of `Run` that starts a process; tests have another.

    Returns:
      Exit status.

    Raises:
      DataError: If no trial ends with a score, or the first ones all fail alike before they train.
      ImportError: If Optuna is not installed.
      SettingsMismatch: If the work directory belongs to another search.
      UsageError: If flags do not go together.
    """
    check_search(settings)
    settings_class = driver_settings(driver)
    base = make_base(driver, settings_class, settings, read_space(settings.search, settings_class))
    folder = Path(settings.workdir).expanduser()
    with locked(folder / LOCK):
        _tie(folder, base)
    study = Study(folder, base, prune=settings.prune, seed=settings.search_seed)
    print(f"searching {reports.search_in_words(base.space)} in {shown(folder)}", flush=True)
    try:
        _search(study, base, settings, start)
        ended = best_first(study.trials())
        if not ended:
            raise DataError(_without_result(study, folder))
        chosen = ended[: settings.finalists]
        finals = finals_of(base, chosen, folder, seeds=settings.final_seeds)
        # What is known, should a last run never end.
        with locked(folder / LOCK):
            _report(study, base, folder, finals=(), workers=settings.workers, last=False)
        run_finals(base, finals, settings.workers, tell=_tell, start=start)
    except Interrupted:
        print(
            f"Stopped. The same command goes on:\n  {shown(_command(), LONGEST_LINE)}", flush=True
        )
        return 130
    with locked(folder / LOCK):
        _report(study, base, folder, finals=finals, workers=settings.workers, last=True)
    return 0


def _search(study: Study, base: Base, settings: Any, start: Callable[..., Any]) -> None:
    """Runs trials until there are enough, or the time is over."""
    jobs: list[TrialJob] = []

    def take(cores: set[int] | None) -> TrialJob | None:
        ended = jobs[:_HOPELESS]
        reasons = {job.reason for job in ended}
        alike = len(ended) == _HOPELESS and len(reasons) == 1 and "" not in reasons
        if alike and not any(job.began for job in ended):
            raise DataError(f"the first {_HOPELESS} trials all failed: {reasons.pop()}")
        taken = study.take(settings.trials)
        if taken is None:
            return None
        jobs.append(TrialJob(study, base, taken, cores=cores, tell=_tell, start=start))
        return jobs[-1]

    waited: list[int] = []

    def waits() -> bool:
        count = study.held_by_others()
        if count and not waited:
            waited.append(count)
            _tell(f"waiting for {count:,} trials of other commands")
        return count > 0

    limit = time.monotonic() + 60 * settings.minutes if settings.minutes else float("inf")
    work(settings.workers, take, waits=waits, deadline=limit)


def _report(
    study: Study, base: Base, folder: Path, *, finals: Any, workers: int, last: bool
) -> None:
    """Writes the files of the search; draws the picture and prints the tables if it is the last time."""
    trials = study.trials()
    rows, ended = rows_of(trials, folder), best_first(trials)
    best = ended[0]
    score, higher = best.user_attrs["score"], best.user_attrs["higher_is_better"]
    reports.write_trials(folder / "trials.csv", rows, score, space=base.space)
    found = finished(finals, score, higher_is_better=higher)
    _write_best(base, folder, rows, best, finals, found, score, workers)
    if not last:
        return
    drawn(
        functools.partial(
            reports.draw_search,
            folder / "search.png",
            rows,
            score,
            space=base.space,
            importances=study.importances(),
            higher_is_better=higher,
        )
    )
    print(f"\n{reports.trials_table(rows, score, space=base.space)}")
    for line in reports.failures(rows):
        print(line)
    print(f"{reports.counts(rows)} of {len(rows):,} trials")
    if found:
        print(f"\n{reports.finals_table(found, score)}")
    print(f"\nbest: {shown(folder / 'best.flags')}", flush=True)


def _write_best(
    base: Base,
    folder: Path,
    rows: Any,
    best: Any,
    finals: Any,
    found: Any,
    score: str,
    workers: int,
) -> None:
    """Writes best.flags: of the first of the last runs, else of the best trial."""
    number = found[0].number if found else best.number
    searched = [
        f"Searched: {reports.search_in_words(base.space)}",
        f"  ({reports.counts(rows)}; this is trial {number}).",
    ]
    title = f"The best settings of {base.driver} that a search found."
    if found:
        final = next(final for final in finals if final.number == number and final.result)
        flags, result = final.flags, final.result
    else:
        flags = trial_flags(base, best.user_attrs["chosen"])
        result = read_facts(folder / "trials" / f"{number:04}")
    reports.best_flags(
        folder / "best.flags",
        base.driver,
        flags,
        head=[title, *searched],
        result=result,
        score=score,
        prefix=pinned(workers),
    )


def _tie(folder: Path, base: Base) -> None:
    """Refuses a work directory of another search."""
    check_settings(
        folder,
        {
            **base.given,
            "driver": base.driver,
            "search": reports.search_in_words(base.space),
            "trial_steps": base.trial_steps,
            "trial_every": base.trial_every,
            "steps": base.steps,
        },
        ignore=(),
        binding=any(folder.glob("trials/*")),
        remedy=lambda names: "Use another --workdir, or the old values to go on with that search.",
    )


def _without_result(study: Study, folder: Path) -> str:
    rows = rows_of(study.trials(), folder)
    failed = [row for row in rows if row.state == "failed"]
    why = f" The last one failed: {failed[-1].reason}" if failed else ""
    more = "give the search more --minutes, or trials fewer --trial_steps."
    return f"no trial ended with a score ({reports.counts(rows) or 'none began'}).{why or ' So ' + more}"


def _tell(line: str) -> None:
    print(line, flush=True)


def _command() -> str:
    return shlex.join(["python", "-m", f"{PACKAGE}.search", *_arguments])


_arguments: list[str] = []


def main() -> None:
    """Runs the search of the driver that the first argument names."""
    global _arguments
    _arguments = sys.argv[1:]
    driver = _arguments[0] if _arguments else ""
    if driver in DRIVERS:
        sys.argv.pop(1)
    asked = any(a.lstrip("-").startswith(("help", "h")) for a in _arguments if a.startswith("-"))
    if driver in DRIVERS:
        launch(search_settings(driver), __doc__, functools.partial(run_search, driver))
    elif asked:
        print(help_text(SearchSettings, __doc__))
    else:
        print(f"error: {_no_driver(driver)}", file=sys.stderr)
        sys.exit(2)


def _no_driver(word: str) -> str:
    if not word or word.startswith("-"):
        return f"name a driver first, one of {', '.join(DRIVERS)}."
    try:
        driver_settings(word)
    except UsageError as error:
        return str(error)
    return ""
