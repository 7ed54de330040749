"""The services that keep runs elsewhere: W&B, MLflow and Trackio, each by its own environment variables."""

import os
import shlex
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files import one_line
from ..observers import Run

# Seconds and tries where nothing answers: a run does not wait for a network. Variables that are set win.
PATIENCE = {
    "WANDB_INIT_TIMEOUT": "30",
    "WANDB_FINISH_TIMEOUT": "60",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
}
_MOST_PARAMS = 100  # of a request to MLflow
_LONGEST_PARAM = 500  # characters, which every store of MLflow takes


def _be_patient() -> None:
    """Limits the time that services wait."""
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)


def _config(run: Run) -> dict[str, Any]:
    """Returns the facts and options of a run; options win."""
    return {**run.facts, **run.settings}


class Wandb:
    """W&B: `WANDB_API_KEY`, `WANDB_MODE`, `WANDB_ENTITY` and its other variables.

    Args:
      project: Name of the project.
    """

    def __init__(self, project: str):
        self._project = project

    def begin(self, run: Run, known: str) -> str:
        """Goes on with a run, or begins one; offline if there is no key, or no answer.

        Args:
          run: The run.
          known: Identifier of the run on the server; "" for none.

        Returns:
          Identifier, "" of a run offline: one that is resumed cannot be continued, and begins anew.
        """
        _be_patient()
        import wandb

        mode = os.environ.get("WANDB_MODE")
        try:
            if mode is None and not wandb.login(prompt=False):
                mode = "offline"
            self._run = self._begun(wandb, run, mode, known)
        except wandb.errors.Error as error:  # no answer, or a key that is not accepted
            print(f"warning: W&B cannot be reached: {one_line(error)}", file=sys.stderr)
            self._run = self._begun(wandb, run, "offline", "")
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")
        self._workdir, self._last, self._image = run.workdir, run.step, wandb.Image
        if not self._run.offline:
            print(f"W&B shows this run at {self._run.url}", flush=True)
            return self._run.id
        # In front of the progress bar, as other lines of the plan.
        folder = shlex.quote(str(Path(self._run.dir).parent))
        whole = "; it has the whole history" if run.step else ""
        print(f"W&B is offline{whole}. To send this run later: wandb sync {folder}", flush=True)
        return ""

    def _begun(self, wandb: Any, run: Run, mode: str | None, known: str) -> Any:
        return wandb.init(
            project=self._project,
            name=run.workdir.name,
            dir=str(run.workdir),
            config=_config(run),
            mode=mode,
            id=known if known and mode != "offline" else None,
            resume="allow",
            settings=wandb.Settings(console="off", silent=True),
        )

    def scalars(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Logs a row; `step` is the axis, as W&B's own step cannot go back."""
        self._last = step
        self._run.log({"step": step, **{f"{split}/{name}": v for name, v in values.items()}})

    def file(self, path: Path, *, kind: str) -> None:
        """Logs a picture, a bundle as an artifact, or saves a file."""
        if kind == "picture":
            self._run.log({"step": self._last, path.stem: self._image(str(path))})
        elif kind == "bundle":
            self._run.log_artifact(str(path), name=f"model-{self._run.id}", type="model")
        else:
            self._run.save(str(path), base_path=str(self._workdir), policy="now")

    def end(self, *, finished: bool) -> None:
        """Waits for what is being sent, and closes the run."""
        self._run.finish(exit_code=0 if finished else 1)


class Mlflow:
    """MLflow: `MLFLOW_TRACKING_URI` and its other variables; without one, the file `mlflow.db` here.

    Args:
      project: Name of the experiment.
    """

    def __init__(self, project: str):
        self._project = project

    def begin(self, run: Run, known: str) -> str:
        """Goes on with a run, or begins one.

        Args:
          run: The run.
          known: Identifier of the run; "" for none.

        Returns:
          Identifier of the run.
        """
        _be_patient()
        from mlflow import MlflowClient
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException

        self._client, self._id = MlflowClient(), ""
        if known:
            try:
                self._client.update_run(known, status="RUNNING")
                self._id = known
                return known
            except MlflowException:  # deleted, or of another server
                pass
        experiment = self._client.get_experiment_by_name(self._project)
        number = (
            experiment.experiment_id
            if experiment
            else self._client.create_experiment(self._project)
        )
        made = self._client.create_run(number, run_name=run.workdir.name)
        self._id = made.info.run_id
        params = [Param(name, str(v)[:_LONGEST_PARAM]) for name, v in _config(run).items()]
        for first in range(0, len(params), _MOST_PARAMS):
            self._client.log_batch(self._id, params=params[first : first + _MOST_PARAMS])
        return self._id

    def scalars(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Logs a row."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(f"{split}/{name}", v, now, step) for name, v in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def file(self, path: Path, *, kind: str) -> None:
        """Logs an artifact."""
        if kind == "bundle":
            self._client.log_artifacts(self._id, str(path), artifact_path=path.name)
        else:
            self._client.log_artifact(self._id, str(path))

    def end(self, *, finished: bool) -> None:
        """Closes the run."""
        self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED")


class Trackio:
    """Trackio: `TRACKIO_SPACE_ID` or `TRACKIO_SERVER_URL`; without them, a database of this user.

    Args:
      project: Name of the project.
    """

    def __init__(self, project: str):
        self._project = project

    def begin(self, run: Run, known: str) -> str:
        """Goes on with a run, or begins one.

        Args:
          run: The run.
          known: Name of the run; "" for none.

        Returns:
          Name of the run, which is its identifier.
        """
        import trackio

        name = known or f"{run.workdir.name}-{uuid.uuid4().hex[:8]}"
        self._run = trackio.init(
            project=self._project,
            name=name,
            config=_config(run),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        self._last, self._image, self._finish = run.step, trackio.Image, trackio.finish
        return name

    def scalars(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Logs a row."""
        self._last = step
        self._run.log({f"{split}/{name}": v for name, v in values.items()}, step=step)

    def file(self, path: Path, *, kind: str) -> None:
        """Logs a picture, or another file as an artifact."""
        if kind == "picture":
            self._run.log({path.stem: self._image(path)}, step=self._last)
        else:
            self._run.log_artifact(path, type=kind)

    def end(self, *, finished: bool) -> None:
        """Waits for what is being sent, and closes the run."""
        del finished
        self._finish()  # of the run that `trackio.init` began; else it would be closed again at exit
