"""Image completion through its driver, on colour pictures so small that a second trains on them."""

import json

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from PIL import Image

from experiments.completion import driver as completion
from experiments.reports import pictures
from helpers.driver_runs import drive, rows, unlock

SMALL = (
    "--dataset=folder --hidden=16,16 --points=20 --queries=16 --meta_batch=4 --steps=60 --eval_every=30 "
    "--log_every=30 --valid_episodes=8 --eval_episodes=12 --outer_lr=0.01"
).split()


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """Ten classes of three 6 x 6 pictures: half is of one colour, half of another."""
    root, rng = tmp_path_factory.mktemp("colours"), np.random.default_rng(0)
    for name in range(10):
        (root / f"class{name}").mkdir()
        for number in range(3):
            halves = rng.integers(0, 256, (2, 1, 3), np.uint8)
            Image.fromarray(halves.repeat(3, 0).repeat(6, 1)).save(
                root / f"class{name}" / f"{number}.png"
            )
    return root


def complete(*flags):
    return drive(*SMALL, *flags, driver=completion, settings_class=completion.CompletionSettings)


def test_training_raises_the_likelihood_of_images_of_unseen_classes(
    colours, tmp_path, capsys, monkeypatch, request
):
    shown, draw = {}, pictures.completions_picture
    monkeypatch.setattr(
        pictures,
        "completions_picture",
        lambda path, **given: shown.update(given) or draw(path, **given),
    )
    assert complete("--learner=anp", f"--data_dir={colours}", f"--workdir={tmp_path}") == 0
    unlock()
    result = json.loads((tmp_path / "result.json").read_text())
    valid = [row for row in rows(tmp_path / "metrics.csv") if row["split"] == "valid"]
    values = [float(row["log_likelihood"]) for row in valid]
    assert values[0] < values[-1] == result["best_valid_log_likelihood"]
    # A distribution of the least deviation that hits every pixel has 3.69 nats a value, of three a pixel.
    assert -3 < result["test_log_likelihood"] < 3 * 3.69
    assert result["queries"] == 36 and not result["transductive"]
    assert {"ci95", "mse_ci95", "calibration_error"} < set(result)
    assert 0.5 < result["covered_by_90_percent"] <= 1
    for metric in ("log_likelihood", "mse"):
        by_points = {row["points"]: row[metric] for row in result[f"test_{metric}_by_points"]}
        assert set(by_points) == {10, 20, 30}, "those below 36 pixels, and --points"
        assert by_points[20] == pytest.approx(result[f"test_{metric}"], rel=1e-4)
    np.testing.assert_array_equal(shown["seen"].sum((2, 3)), [[10] * 4, [20] * 4, [30] * 4])
    assert (shown["truth"][:, :3] == shown["truth"][:, :1, :1]).all(), (
        "the upper half is one colour"
    )
    image = imread(tmp_path / "completions.png")[..., :3]
    assert (np.abs(image - pictures.UNSEEN).max(-1) < 0.01).sum() > 5000
    line = imread(tmp_path / "calibration.png")[..., :3]
    assert (np.abs(line - to_rgb(pictures.RIGHT)).max(-1) < 0.01).sum() > 100
    out = " ".join(capsys.readouterr().out.split())
    assert f"log likelihood {result['test_log_likelihood']:.4g} +- {result['ci95']:.4g}" in out
    assert f"MSE {result['test_mse']:.4g} +- {result['mse_ci95']:.4g}" in out
    # On other images, and without those it was trained on.
    grey = request.getfixturevalue("pictures")
    flags = (
        f"--workdir={tmp_path}",
        "--mode=evaluate",
        "--test_dataset=folder",
        f"--test_data_dir={grey}",
    )
    assert drive(*flags, driver=completion, settings_class=completion.CompletionSettings) == 0
    unlock()
    evaluated = json.loads((tmp_path / "evaluation" / "result.json").read_text())
    assert (evaluated["test_split"], evaluated["learner"]) == ("all", "anp")
    assert "6x6x3, split all: 0 train, 0 valid, 20 test classes (grey" in evaluated["split"]
    assert shown["title"].startswith(f"folder:{grey}: images of unseen classes")
    channels = shown["truth"]
    np.testing.assert_array_equal(channels, channels[..., :1].repeat(3, -1))
    assert evaluated["best_valid_log_likelihood"] == result["best_valid_log_likelihood"]


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("--learner=maml", "--learner=maml gives no distributions of pixels; use cnp or anp"),
        ("--learner=cpn", "--learner=cpn is unknown; did you mean cnp"),
        ("--min_points=21", "--min_points=21 is more than --points=20"),
        ("--hidden=8,wide", "--hidden=8,wide is not a list of positive widths"),
        ("--points=37", "37 points are more than the 36 pixels of a 6 x 6 image"),
        ("--split=file", "--split=file needs --split_file"),
        ("--heads=4", "--heads=4 does not go with --learner=cnp"),
    ],
)
def test_bad_flags_are_one_line(colours, tmp_path, flag, says):
    with pytest.raises(ValueError) as error:
        complete(f"--data_dir={colours}", f"--workdir={tmp_path}", flag)
    assert says in str(error.value) and len(str(error.value).splitlines()) == 1
