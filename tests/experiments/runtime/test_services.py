"""W&B offline, MLflow on SQLite and Trackio's database hold each row of a run that was killed once."""

import contextlib
import json
import struct

import pytest

from experiments.runtime.metrics import MetricsLog, read_metrics
from experiments.runtime.observers import Observers, Run
from experiments.runtime.trackers.choose import choose_trackers


@pytest.fixture
def lead(tmp_path, monkeypatch):
    """Leads a run from a checkpoint to a later step; gives its work directory."""
    workdir = tmp_path / "run-1a2b"
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_INIT_TIMEOUT", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        monkeypatch.setenv(name, "5")

    def lead(name, first, last, *, finished=False):
        log = MetricsLog(workdir, resume_step=first)
        run = Run(workdir, {"inner_lr": 0.5}, {"dataset": "glyphs"}, "accuracy")
        told = Observers(run, choose_trackers(name, project="mine"), may_stop=False)
        told.begin(first, lambda: read_metrics(workdir))
        with contextlib.closing(log):
            for step in range(first + 1, last + 1):
                log.write(step, "train", {"loss": 1 / step})
                told.scalars(step, "train", {"loss": 1 / step})
        if finished:
            result = {"steps": last, "test_accuracy": 0.75}
            (workdir / "result.json").write_text(json.dumps(result))
            told.end(result)
        told.end(None)
        return workdir

    return lead


def killed_twice(lead, name):
    """Leads a run that is killed at steps 4 and 3, each after a checkpoint at 2, and goes on to 5."""
    lead(name, 0, 4)
    lead(name, 2, 3)
    return lead(name, 2, 5, finished=True)


LOSSES = [(step, 1 / step) for step in range(1, 6)]


def wandb_records(path):
    """Yields the records of W&B's file: blocks of 32 KiB, of parts with a checksum, a length and a kind."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, held = path.read_bytes(), 7, b""
    while place < len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, size, kind = struct.unpack("<IHB", data[place : place + 7])
        held += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            yield Record.FromString(held)
            held = b""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("key", ["", "a" * 40])
def test_wandb_without_key_or_server_writes_one_whole_run_to_send_later(
    lead, monkeypatch, tmp_path, capsys, key
):
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    workdir = killed_twice(lead, "wandb")
    lines = [line for line in capsys.readouterr().out.splitlines() if "wandb sync" in line]
    assert len(lines) == 3 and "it has the whole history" in lines[-1]
    (path,) = (workdir / "wandb" / lines[-1].rsplit("/", 1)[-1]).glob("*.wandb")
    rows, config = [], {}
    for record in wandb_records(path):
        items = {each.key or each.nested_key[0]: each.value_json for each in record.history.item}
        rows += [{k: json.loads(v) for k, v in items.items() if k[0] != "_"}] if items else []
        config |= {each.key: each.value_json for each in record.run.config.update}
    assert [(row["step"], row["train/loss"]) for row in rows[:5]] == LOSSES
    assert rows[5:] == [{"step": 5, "test/accuracy": 0.75}]
    assert config["inner_lr"] == "0.5" and config["dataset"] == '"glyphs"'


@pytest.mark.filterwarnings("ignore")
def test_mlflow_goes_on_with_one_run_on_sqlite(lead, monkeypatch, tmp_path):
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    killed_twice(lead, "mlflow")
    from mlflow import MlflowClient

    client = MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "run-1a2b")
    assert run.data.params == {"inner_lr": "0.5", "dataset": "glyphs"}
    found = client.get_metric_history(run.info.run_id, "train/loss")
    assert sorted((each.step, each.value) for each in found) == LOSSES
    assert run.data.metrics["test/accuracy"] == 0.75
    files = {each.path for each in client.list_artifacts(run.info.run_id)}
    assert files == {"metrics.csv", "result.json"}


@pytest.mark.filterwarnings("ignore")
def test_trackio_goes_on_with_one_run(lead, monkeypatch, tmp_path):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    killed_twice(lead, "trackio")
    (name,) = SQLiteStorage.get_runs("mine")
    rows = SQLiteStorage.get_logs("mine", name)
    assert [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row] == LOSSES
    assert [row["test/accuracy"] for row in rows if "test/accuracy" in row] == [0.75]
