"""Metrics survive interruption, pictures show what is right and wrong, and tables read well."""

import struct
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from experiments import report


def write_steps(workdir, first, last, *, resume_step):
    log = report.MetricsLog(workdir, resume_step=resume_step)
    for step in range(first, last + 1):
        log.write(step, "train", {"loss": np.float32(1 / step), "nonfinite": 0})
        if step % 2 == 0:
            log.write(step, "valid", {"loss": 0.1 + 0.2 * step, "accuracy": np.nan})
    return log


def events(workdir: Path):
    """Reads TensorBoard's records: length, its checksum, the event, its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted((workdir / "tensorboard").iterdir()):  # TensorBoard's own order.
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            yield Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def test_rows_read_back(tmp_path):
    write_steps(tmp_path, 1, 2, resume_step=0).close()
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines[0] == "step,split,loss,nonfinite,accuracy"
    assert lines[1:3] == ["1,train,1.0,0,", "2,train,0.5,0,"]
    first, _, last = report.read_metrics(tmp_path)
    assert first == {"step": 1, "split": "train", "loss": 1.0, "nonfinite": 0.0}
    assert last["split"] == "valid" and last["loss"] == 0.1 + 0.2 * 2
    assert np.isnan(last["accuracy"])
    assert report.read_metrics(tmp_path / "elsewhere") == []


@pytest.mark.parametrize("torn", ["", "7,tra", "7,train,0.14", '7,train,"'])
def test_a_resumed_log_equals_an_uninterrupted_one(tmp_path, torn):
    write_steps(tmp_path / "whole", 1, 9, resume_step=0).close()
    killed = write_steps(tmp_path / "cut", 1, 6, resume_step=0)  # Rows are on disk unasked.
    with (tmp_path / "cut" / "metrics.csv").open("a") as file:
        file.write(torn)
    assert len(report.read_metrics(tmp_path / "cut")) == 9
    killed.close()
    write_steps(tmp_path / "cut", 5, 9, resume_step=4).close()
    whole, cut = ((tmp_path / run / "metrics.csv").read_bytes() for run in ("whole", "cut"))
    assert cut == whole
    write_steps(tmp_path / "cut", 1, 9, resume_step=0).close()  # Begun anew: nothing old stays.
    assert (tmp_path / "cut" / "metrics.csv").read_bytes() == whole


def test_a_damaged_row_is_named(tmp_path):
    write_steps(tmp_path, 1, 3, resume_step=0).close()
    path = tmp_path / "metrics.csv"
    path.write_text(path.read_text().replace("2,train", "?,train"))
    with pytest.raises(ValueError, match=r"Line 3 of .* is damaged; delete that line"):
        report.read_metrics(tmp_path)


def test_tensorboard_gets_the_same_numbers_and_hides_what_is_redone(tmp_path):
    write_steps(tmp_path, 1, 6, resume_step=0).close()
    write_steps(tmp_path, 5, 6, resume_step=4).close()
    shown = {}
    for event in events(tmp_path):
        if event.HasField("session_log"):  # TensorBoard's own rule: drop this step and all after.
            shown = {key: value for key, value in shown.items() if key[1] < event.step}
            assert not {step for _, step in shown} - {1, 2, 3, 4}
        for value in event.summary.value:
            assert (value.tag, event.step) not in shown
            shown[value.tag, event.step] = value.simple_value
    assert {step for tag, step in shown if tag == "train/loss"} == {1, 2, 3, 4, 5, 6}
    assert shown["train/loss", 4] == 0.25 and shown["valid/loss", 6] == pytest.approx(1.3)


def pixels(path: Path, colour) -> int:
    """How many pixels of a PNG have a colour."""
    return int((np.abs(imread(path)[..., :3] - to_rgb(colour)).max(-1) < 0.01).sum())


def test_curves_show_both_splits(tmp_path):
    log = report.MetricsLog(tmp_path, resume_step=0)
    for step in range(1, 40):
        log.write(step, "train", {"loss": 10.0 / step**2, "accuracy": step / 40})
        if step % 10 == 0:
            log.write(step, "valid", {"loss": float("nan"), "accuracy": step / 50})
    log.close()
    path = report.curves(tmp_path, metric="accuracy", title="glyphs")
    assert path == tmp_path / "curves.png"
    image = imread(path)
    assert image.shape[0] > 300 and image.shape[1] > 2 * image.shape[0]  # Two panels.
    assert pixels(path, report.TRAIN) > 500 and pixels(path, report.VALID) > 100
    report.curves(tmp_path, metric="loss", title="one panel")
    assert imread(path).shape[1] < image.shape[1] * 0.7
    assert report.curves(tmp_path / "empty", metric="loss", title="no rows").exists()


def tasks(num_tasks, ways, shots, queries, channels=1, dtype=np.uint8):
    """Grey images, since only frames and captions shall be coloured; every answer is right."""
    support = np.tile(np.arange(ways).repeat(shots), (num_tasks, 1))
    query = np.tile(np.arange(ways).repeat(queries), (num_tasks, 1))
    images = [np.full((*labels.shape, 8, 8, channels), 128, dtype) for labels in (support, query)]
    return dict(
        support_images=images[0],
        support_labels=support,
        query_images=images[1],
        query_labels=query,
        predictions=query.copy(),
        title="glyphs",
    )


def test_one_mistake_in_75_answers_is_shown_among_10(tmp_path):
    episodes = tasks(1, 5, 1, 15)
    path = report.episodes_picture(tmp_path / "episodes.png", **episodes)
    all_right = pixels(path, report.RIGHT)
    assert all_right > 2000 and pixels(path, report.WRONG) == 0
    episodes["predictions"][0, 44] = 4  # The last query of class 2.
    report.episodes_picture(path, **episodes)
    assert pixels(path, report.RIGHT) / all_right == pytest.approx(0.9, abs=0.02)
    assert pixels(path, report.WRONG) / all_right == pytest.approx(0.1, abs=0.03)
    episodes["predictions"] = (episodes["query_labels"] + 1) % 5
    report.episodes_picture(path, **episodes)
    assert pixels(path, report.RIGHT) == 0
    assert pixels(path, report.WRONG) / all_right == pytest.approx(1.0, abs=0.2)


@pytest.mark.parametrize(("ways", "shots", "queries"), [(2, 1, 1), (5, 5, 15), (20, 5, 1)])
@pytest.mark.parametrize(("channels", "dtype"), [(1, np.float32), (3, np.uint8)])
def test_pictures_of_any_shape(tmp_path, ways, shots, queries, channels, dtype):
    episodes = tasks(3, ways, shots, queries, channels, dtype)
    episodes["predictions"][:, -1] = 0
    path = report.episodes_picture(tmp_path / "episodes.png", **episodes)
    # Three rows, each with one mistake and otherwise right.
    coloured = (np.abs(imread(path)[..., :3] - to_rgb(report.WRONG)).max(-1) < 0.01).any(axis=1)
    assert np.sum(np.diff(coloured.astype(int)) == 1) >= 3
    right = pixels(path, report.RIGHT) / pixels(path, report.WRONG)
    assert right == pytest.approx(min(10, ways * queries) - 1, rel=0.25)


def test_images_of_any_range_keep_their_order():
    dark, light = report._unit_images(np.full((1, 2, 2, 1), -2.0), np.full((1, 2, 2, 1), 3.0))
    assert (dark.max(), light.min()) == (0.0, 1.0)
    (half,) = report._unit_images(np.full((1, 2, 2, 1), 0.5, np.float32))
    assert half.max() == 0.5  # A range within [0, 1] is taken as it is.
    (full,) = report._unit_images(np.full((1, 2, 2, 3), 255, np.uint8))
    assert full.max() == 1.0


def test_queries_are_of_all_classes():
    labels = np.arange(5).repeat(15)
    chosen = report._choose_queries(labels, labels)
    np.testing.assert_array_equal(labels[chosen], [0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
    many = np.arange(20).repeat(2)
    assert len(set(many[report._choose_queries(many, many)])) == 10


def test_fits_show_each_step(tmp_path):
    import matplotlib

    grid = np.linspace(-5, 5, 50)
    truth = np.stack([np.sin(grid), np.cos(grid)])
    fits = np.stack([truth * s / 3 for s in range(4)], axis=1) + 0.3
    points = dict(support_x=np.zeros((2, 4, 1)), support_y=np.ones((2, 4, 1)))
    shapes = dict(truth=truth, fits=fits, title="sinusoids", **points)
    path = report.fits_picture(tmp_path / "fits.png", grid=grid, **shapes)
    for colour in matplotlib.colormaps["viridis_r"](np.linspace(0.15, 1.0, 4)):
        assert pixels(path, colour[:3]) > 100
    assert pixels(path, report.WRONG) > 30
    once = path.read_bytes()
    report.fits_picture(path, grid=np.stack([grid, grid]), **shapes)
    assert path.read_bytes() == once


RESULT = {
    "dataset": "glyphs",
    "ways": 5,
    "test_accuracy": 0.97314,
    "ci95": 0.0035,
    "episodes": 1000,
    "episodes_sha256": "0123456789abcdef" * 4,
    "transductive": True,
    "seed": 123456,
    "steps": 60_000,
    "wall_seconds": 372.0,
    "compile_seconds": 2.345,
    "train_tasks_per_second": 1234.56,
    "peak_memory_bytes": 3 * 2**29,
    "published": 98.7,
    "published_by": "MAML",
    "skipped": None,
    "settings": {"inner_lr": 0.4},
    "versions": {"jax": "0.10.2", "device": "cpu x 2"},
}


def test_results_in_words():
    assert report.result_rows(RESULT) == [
        ("dataset", "glyphs"),
        ("ways", "5"),
        ("test accuracy", "97.31% +- 0.35"),
        ("episodes", "1,000"),
        ("episodes' hash", "0123456789ab"),
        ("transductive", "yes"),
        ("seed", "123456"),
        ("steps", "60,000"),
        ("wall time", "6.2 min"),
        ("compile time", "2.3 s"),
        ("training speed", "1,234.6 tasks/s"),
        ("peak memory", "1.50 GiB"),
        ("published", "98.7% (MAML)"),
        ("versions", "jax 0.10.2, device cpu x 2"),
    ]
    steps = [{"step": 0, "mse": 3.21, "ci95": 0.1}, {"step": 1, "mse": 0.5, "ci95": 0.1}]
    regression = {"test_mse": 0.04321, "ci95": 0.0051, "published": 0.05, "test_mse_by_step": steps}
    assert report.result_rows({**regression, "wall_seconds": 7200, "peak_memory_bytes": 2**28}) == [
        ("test MSE", "0.04321 +- 0.0051"),
        ("published", "0.05"),
        ("test MSE by step", "0: 3.21, 1: 0.5"),
        ("wall time", "2.00 h"),
        ("peak memory", "256 MiB"),
    ]


def test_tables_line_up():
    rows = [("a", "1"), ("long name", "word " * 30), ("b", "")]
    lines = report.table(rows).split("\n")
    assert lines[0] == "a          1" and lines[1].startswith("long name  word")
    assert lines[2].startswith(" " * 11 + "word") and lines[-1] == "b"
    assert max(map(len, lines)) <= 11 + 76 and report.table([]) == ""


def test_peak_memory_is_in_bytes(monkeypatch):
    class Device:
        def __init__(self, stats):
            self.memory_stats = lambda: stats

    monkeypatch.setattr(
        jax, "local_devices", lambda: [Device({"peak_bytes_in_use": b}) for b in (5, 9)]
    )
    assert report.peak_memory_bytes() == 9
    monkeypatch.setattr(jax, "local_devices", lambda: [Device(None), Device({})])
    peak = report.peak_memory_bytes()
    assert 2**25 < peak < 2**40
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text()
        high = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        assert peak == pytest.approx(int(high.split()[1]) * 1024, rel=0.1)


def test_versions_name_what_is_installed():
    found = report.versions()
    assert found["jax"] == jax.__version__ and found["numpy"] == np.__version__
    assert found["python"] == sys.version.split()[0]
    assert f"{jax.default_backend()}" in found["device"]
    assert f" x {jax.device_count()}" in found["device"]
    assert all(isinstance(value, str) and value for value in found.values())
