"""Pictures show what is right and what is wrong."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from experiments.reports import pictures
from experiments.runtime.metrics import MetricsLog


def pixels(path: Path, colour) -> int:
    """How many pixels of a PNG have a colour."""
    return int((np.abs(imread(path)[..., :3] - to_rgb(colour)).max(-1) < 0.01).sum())


def test_curves_show_both_splits(tmp_path):
    log = MetricsLog(tmp_path, resume_step=0)
    for step in range(1, 40):
        log.write(step, "train", {"loss": 10.0 / step**2, "accuracy": step / 40})
        if step % 10 == 0:
            log.write(step, "valid", {"loss": float("nan"), "accuracy": step / 50})
    log.close()
    path = pictures.curves(tmp_path, metric="accuracy", title="glyphs")
    assert path == tmp_path / "curves.png"
    image = imread(path)
    assert image.shape[0] > 300 and image.shape[1] > 2 * image.shape[0]  # Two panels.
    assert pixels(path, pictures.TRAIN) > 500 and pixels(path, pictures.VALID) > 100
    pictures.curves(tmp_path, metric="loss", title="one panel")
    assert imread(path).shape[1] < image.shape[1] * 0.7
    assert pictures.curves(tmp_path / "empty", metric="loss", title="no rows").exists()


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
    path = pictures.episodes_picture(tmp_path / "episodes.png", **episodes)
    all_right = pixels(path, pictures.RIGHT)
    assert all_right > 2000 and pixels(path, pictures.WRONG) == 0
    episodes["predictions"][0, 44] = 4  # The last query of class 2.
    pictures.episodes_picture(path, **episodes)
    assert pixels(path, pictures.RIGHT) / all_right == pytest.approx(0.9, abs=0.02)
    assert pixels(path, pictures.WRONG) / all_right == pytest.approx(0.1, abs=0.03)
    episodes["predictions"] = (episodes["query_labels"] + 1) % 5
    pictures.episodes_picture(path, **episodes)
    assert pixels(path, pictures.RIGHT) == 0
    assert pixels(path, pictures.WRONG) / all_right == pytest.approx(1.0, abs=0.2)


@pytest.mark.parametrize(("ways", "shots", "queries"), [(2, 1, 1), (5, 5, 15), (20, 5, 1)])
@pytest.mark.parametrize(("channels", "dtype"), [(1, np.float32), (3, np.uint8)])
def test_pictures_of_any_shape(tmp_path, ways, shots, queries, channels, dtype):
    episodes = tasks(3, ways, shots, queries, channels, dtype)
    episodes["predictions"][:, -1] = 0
    path = pictures.episodes_picture(tmp_path / "episodes.png", **episodes)
    # Three rows, each with one mistake and otherwise right.
    coloured = (np.abs(imread(path)[..., :3] - to_rgb(pictures.WRONG)).max(-1) < 0.01).any(axis=1)
    assert np.sum(np.diff(coloured.astype(int)) == 1) >= 3
    right = pixels(path, pictures.RIGHT) / pixels(path, pictures.WRONG)
    assert right == pytest.approx(min(10, ways * queries) - 1, rel=0.25)


def test_images_of_any_range_keep_their_order():
    dark, light = pictures._unit_images(np.full((1, 2, 2, 1), -2.0), np.full((1, 2, 2, 1), 3.0))
    assert (dark.max(), light.min()) == (0.0, 1.0)
    (half,) = pictures._unit_images(np.full((1, 2, 2, 1), 0.5, np.float32))
    assert half.max() == 0.5  # A range within [0, 1] is taken as it is.
    (full,) = pictures._unit_images(np.full((1, 2, 2, 3), 255, np.uint8))
    assert full.max() == 1.0


def test_queries_are_of_all_classes():
    labels = np.arange(5).repeat(15)
    chosen = pictures._choose_queries(labels, labels)
    np.testing.assert_array_equal(labels[chosen], [0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
    many = np.arange(20).repeat(2)
    assert len(set(many[pictures._choose_queries(many, many)])) == 10


def test_fits_show_each_step(tmp_path):
    import matplotlib

    grid = np.linspace(-5, 5, 50)
    truth = np.stack([np.sin(grid), np.cos(grid)])
    fits = np.stack([truth * s / 3 for s in range(4)], axis=1) + 0.3
    points = dict(support_x=np.zeros((2, 4, 1)), support_y=np.ones((2, 4, 1)))
    shapes = dict(truth=truth, fits=fits, title="sinusoids", **points)
    path = pictures.fits_picture(tmp_path / "fits.png", grid=grid, **shapes)
    for colour in matplotlib.colormaps["viridis_r"](np.linspace(0.15, 1.0, 4)):
        assert pixels(path, colour[:3]) > 100
    assert pixels(path, pictures.WRONG) > 30
    once = path.read_bytes()
    pictures.fits_picture(path, grid=np.stack([grid, grid]), **shapes)
    assert path.read_bytes() == once
