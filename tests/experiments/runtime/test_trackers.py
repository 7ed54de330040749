"""Trackers have each row once, and what they have is what metrics.csv has."""

import contextlib
import importlib.util
import json

import pytest
from PIL import Image

from experiments.flags.settings import UsageError
from experiments.runtime.files import WriteError
from experiments.runtime.metrics import MetricsLog, read_metrics
from experiments.runtime.observers import Observer, Observers, Run
from experiments.runtime.trackers.choose import choose_trackers
from experiments.runtime.trackers.once import Once
from experiments.runtime.trackers.tensorboard import TensorBoard
from helpers.events import events, shown


class Service:
    """A service in memory that fails at a step."""

    def __init__(self):
        self.runs, self.files, self.ends, self.fails_at = {}, [], [], None

    def begin(self, run, known):
        self.id = known if known in self.runs else f"run{len(self.runs)}"
        self.runs.setdefault(self.id, [])
        return self.id

    def scalars(self, step, split, values):
        if step == self.fails_at:
            raise ConnectionError("no route to host")
        self.runs[self.id].append({"step": step, "split": split, **values})

    def file(self, path, *, kind):
        self.files.append((path.name, kind))

    def end(self, *, finished):
        self.ends.append(finished)


def lead(workdir, observers, first, last, *, finished=False):
    """Leads a run from a checkpoint to a later step, as the loop does."""
    run = Run(workdir, {"inner_lr": 0.5, "track": "x", "own": None}, {"jax": "0.10"}, "accuracy")
    log = MetricsLog(workdir, resume_step=first)
    told = Observers(run, observers, may_stop=False)
    told.begin(first, lambda: read_metrics(workdir))
    with contextlib.closing(log):
        for step in range(first + 1, last + 1):
            rows = {"train": {"loss": 1 / step, "nonfinite": 0}}
            rows |= {"valid": {"accuracy": 0.1 * step}} if step % 2 == 0 else {}
            for split, row in rows.items():
                log.write(step, split, row)
                told.scalars(step, split, row)
    if finished:
        Image.new("RGB", (6, 4)).save(workdir / "curves.png")
        (workdir / "model").mkdir(exist_ok=True)
        (workdir / "model" / "bundle.json").write_text("{}")
        result = {"steps": last, "test_accuracy": 0.75, "ci95": 0.01, "test_seconds": 3.0}
        (workdir / "result.json").write_text(json.dumps(result))
        told.end(result)
    told.end(None)


TEST = {"step": 9, "split": "test", "accuracy": 0.75, "ci95": 0.01}


def tracker(service):
    return Once("fake", "Fake", service)


def test_a_run_that_was_killed_and_resumed_has_each_row_once(tmp_path):
    service = Service()
    for first, last in ((0, 6), (4, 5), (4, 9)):  # Killed at 6 and 5, each after a checkpoint at 4.
        lead(tmp_path, [tracker(service)], first, last, finished=last == 9)
    assert list(service.runs) == ["run0"]
    assert service.runs["run0"] == [*read_metrics(tmp_path), TEST]
    assert service.ends == [False, False, True]
    assert service.files == [
        ("curves.png", "picture"),
        ("metrics.csv", "table"),
        ("result.json", "result"),
        ("model", "bundle"),
    ]
    lead(tmp_path, [tracker(service)], 9, 9, finished=True)  # Tested again: nothing is sent.
    assert len(service.ends) == 3 and len(service.files) == 4
    lead(tmp_path, [tracker(service)], 0, 3)  # Begun anew, perhaps with other settings.
    assert service.runs["run1"] == read_metrics(tmp_path)


def test_what_a_service_missed_is_sent_when_it_is_back(tmp_path, capsys):
    service = Service()
    lead(tmp_path, [], 0, 4)  # It did not track yet.
    service.fails_at = 6
    lead(tmp_path, [tracker(service)], 4, 7)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: Fake failed (ConnectionError: no route to host); the run goes")
    assert "the same command" in line
    service.fails_at = None
    lead(tmp_path, [tracker(service)], 7, 9, finished=True)
    assert service.runs["run0"] == [*read_metrics(tmp_path), TEST]
    service.runs.clear()  # The server lost the run.
    (tmp_path / "trackers" / "fake.json").write_text('{"id": "run0", "steps": {}, "ended": false}')
    service.id = None
    lead(tmp_path, [tracker(service)], 9, 9)
    assert service.runs["run0"] == read_metrics(tmp_path)


def test_a_run_that_cannot_be_gone_on_with_is_sent_as_a_whole(tmp_path):
    class Offline(Service):
        def begin(self, run, known):
            super().begin(run, "")
            return ""

    service = Offline()
    lead(tmp_path, [tracker(service)], 0, 6)
    lead(tmp_path, [tracker(service)], 4, 9, finished=True)
    assert service.runs["run1"] == [*read_metrics(tmp_path), TEST]


@pytest.mark.parametrize(
    "content", ["", "[]", '{"id": 3}', '{"id": "run0", "steps": {"train": "x"}}']
)
def test_a_damaged_record_begins_a_new_run(tmp_path, content):
    service = Service()
    lead(tmp_path, [tracker(service)], 0, 4)
    (tmp_path / "trackers" / "fake.json").write_text(content)
    lead(tmp_path, [tracker(service)], 4, 5)
    assert service.runs["run1"] == read_metrics(tmp_path)


def test_an_observer_that_fails_is_dropped_alone_and_a_full_disk_ends_the_run(tmp_path, capsys):
    class Failing(Observer):
        def scalars(self, step, split, values):
            raise error

    service = Service()
    error = RuntimeError("mine")
    lead(tmp_path, [Failing(), tracker(service)], 0, 4)
    assert service.runs["run0"] == read_metrics(tmp_path)
    (line,) = capsys.readouterr().err.splitlines()
    assert "Failing failed (RuntimeError: mine); the run goes on without it." in line
    error = WriteError("disk full")
    with pytest.raises(WriteError):
        lead(tmp_path, [Failing()], 0, 4)


def test_tensorboard_gets_the_same_numbers_and_hides_what_is_redone(tmp_path):
    lead(tmp_path, [TensorBoard()], 0, 6)
    lead(tmp_path, [TensorBoard()], 4, 6, finished=True)
    found = shown(tmp_path)
    numbers = {key: value.simple_value for key, value in found.items()}
    rows = read_metrics(tmp_path)
    expected = {
        (f"{row['split']}/{name}", row["step"]): value
        for row in [*rows, {**TEST, "step": 6}]
        for name, value in row.items()
        if name not in ("step", "split")
    }
    assert numbers == pytest.approx(numbers | expected) and len(expected) == 17
    tags = [value.tag for event in events(tmp_path) for value in event.summary.value]
    assert tags.count("valid/accuracy") == 4  # Of steps 2, 4, 6 and again 6.
    image = found["curves", 6].image
    assert (image.width, image.height) == (6, 4)
    assert image.encoded_image_string == (tmp_path / "curves.png").read_bytes()


def test_tensorboard_gets_hyper_parameters_before_the_first_step(tmp_path):
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

    tracker = TensorBoard()
    tracker.begin(Run(tmp_path, {"inner_lr": 0.5, "plan": False, "own": None}, {}, "accuracy"))

    def read():
        found = (value for event in events(tmp_path) for value in event.summary.value)
        return {v.tag: HParamsPluginData.FromString(v.metadata.plugin_data.content) for v in found}

    found = read()
    given = found["_hparams_/session_start_info"].session_start_info.hparams
    assert (given["inner_lr"].number_value, given["plan"].bool_value) == (0.5, False)
    assert set(given) == {"inner_lr", "plan"}
    metrics = found["_hparams_/experiment"].experiment.metric_infos
    assert [each.name.tag for each in metrics] == ["valid/accuracy", "test/accuracy"]
    tracker.end({"steps": 3})
    assert read()["_hparams_/session_end_info"].session_end_info.status == 1  # success


def test_trackers_are_chosen_by_name(monkeypatch):
    assert choose_trackers("", project="p") == []
    assert len(choose_trackers(" tensorboard,tensorboard, ", project="p")) == 1
    with pytest.raises(UsageError, match="--track=wandbb is unknown; did you mean wandb"):
        choose_trackers("tensorboard,wandbb", project="p")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ImportError, match=r"--track=mlflow needs .*pip install 'metajax\[mlflow\]'"
    ):
        choose_trackers("mlflow", project="p")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    names = [each.name for each in choose_trackers("wandb,mlflow,trackio", project="p")]
    assert names == ["W&B", "MLflow", "Trackio"]  # Found without importing them.
