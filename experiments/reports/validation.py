"""The validation of a run that is not tested: what a search compares runs by."""

from pathlib import Path

from ..runtime import distributed
from ..runtime.files import write_json
from ..runtime.loop import Outcome
from ..setup.experiment import Setup, evaluation_key
from . import report, results

FILE, SCORES = "validation.json", "valid_scores.csv"


def begin(setup: Setup, workdir: Path | None) -> None:
    """Writes what is known before training: the score, its direction, and the hash of the episodes.

    Args:
      setup: The experiment on its devices.
      workdir: Folder of validation.json; None in all processes but the first.

    Raises:
      WriteError: If the disk does not accept it.
    """
    distributed.on_first(lambda: write_json(workdir / FILE, _facts(setup)))


def end(setup: Setup, workdir: Path | None, outcome: Outcome) -> dict[str, object]:
    """Scores the best checkpoint on the validation episodes, one by one; the first process writes.

    Args:
      setup: The experiment on its devices.
      workdir: Folder of validation.json and valid_scores.csv; None in all processes but the first.
      outcome: The end of the training.

    Returns:
      Fields of validation.json; none in all processes but the first.

    Raises:
      WriteError: If the disk does not accept them.
    """
    name, training = setup.experiment.score.name, setup.plan.training
    metrics = setup.experiment.scoring.metrics
    scores = setup.scorer("valid", training.valid_episodes)(outcome.best.first)
    progress, steps = outcome.progress, int(outcome.state.step)

    found: dict[str, object] = {}

    def write() -> None:
        results.write_scores(workdir / SCORES, scores)
        seconds = progress.train_seconds
        found.update(_facts(setup))
        found.update(
            {
                f"best_valid_{name}": progress.best_score,
                "ci95": results.summary(metrics, name, scores[name]).ci95,
                "best_step": progress.best_step,
                "steps": steps,
                "seed": training.seed,
                "wall_seconds": progress.wall_seconds,
                "train_tasks_per_second": steps * training.meta_batch / seconds
                if seconds
                else None,
                "versions": report.versions(),
            }
        )
        write_json(workdir / FILE, found)
        print(report.table(report.result_rows(found)), flush=True)

    distributed.on_first(write)
    return found


def _facts(setup: Setup) -> dict[str, object]:
    """Lists what is known of the validation before a run."""
    experiment, episodes = setup.experiment, setup.plan.training.valid_episodes
    digest = results.episodes_sha256(
        experiment.samplers["valid"],
        experiment.data["valid"],
        evaluation_key(setup.plan.test.eval_seed, "valid"),
        episodes,
        experiment.fingerprint,
    )
    return {
        "score": experiment.score.name,
        "higher_is_better": experiment.score.higher_is_better,
        "valid_episodes": episodes,
        "episodes_sha256": digest,
    }
