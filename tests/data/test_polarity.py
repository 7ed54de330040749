"""Polarity of images: read as asked, reported in the plan and the result, and warned about."""

import numpy as np
import pytest
from PIL import Image

from experiments.completion import driver as completion
from experiments.fewshot import driver as fewshot
from experiments.reports.image_notes import describe
from helpers.driver_runs import settings_of
from metajax.data import sources
from metajax.data.files.decoding import Form
from metajax.data.images import LabelledImages

INK = 0.1  # of the pixels


def labelled(pixels: np.ndarray) -> LabelledImages:
    return LabelledImages(pixels, np.array([len(pixels)], np.int32), ("a",), ("",))


def drawn(number: int = 50, *, ink: int, paper: int) -> np.ndarray:
    strokes = np.random.default_rng(0).random((number, 8, 8, 1)) < INK
    return np.where(strokes, ink, paper).astype(np.uint8)


@pytest.fixture(scope="module")
def characters(tmp_path_factory):
    """Writes six classes of black ink on white paper, like the files of Omniglot, two per split."""
    root = tmp_path_factory.mktemp("characters")
    rng = np.random.default_rng(0)
    for name in ("train/a", "train/b", "valid/c", "valid/d", "test/e", "test/f"):
        (root / name).mkdir(parents=True)
        pattern = rng.random((12, 10)) < INK
        for number in range(6):
            strokes = pattern ^ (rng.random((12, 10)) < 0.02)
            Image.fromarray(~strokes).save(root / name / f"{number}.png")
    return root


def warnings(*, train, test, **forms) -> list[str]:
    splits = sources.Splits(train, train, test, "pictures", **forms)
    return [line for name, line in describe(splits).rows if name == "warning"]


def test_swapped_polarity_is_warned_of():
    light, dark = (labelled(drawn(ink=i, paper=p)) for i, p in ((255, 0), (0, 255)))
    (line,) = warnings(train=light, test=dark, test_form=Form())
    assert line == (
        "the test images have a mean brightness of 0.90, and the training images of 0.10 +- 0.30; if their "
        "dark and light are changed over, use --test_invert=yes"
    )
    (line,) = warnings(train=light, test=dark, test_form=Form(invert=True))
    assert line.endswith("--test_invert=no")
    assert warnings(train=light, test=light, test_form=Form(invert=True)) == []
    # Of one data set all would be inverted together.
    (line,) = warnings(train=light, test=dark)
    assert "invert" not in line


def test_brightness_that_inversion_would_not_mend_is_warned_of_without_it():
    dark, darker = (
        labelled(np.random.default_rng(0).integers(low, low + 40, (9, 8, 8, 3)).astype(np.uint8))
        for low in (100, 10)
    )
    (line,) = warnings(train=dark, test=darker, test_form=Form())
    assert "0.12, and the training images of 0.47 +- 0.05" in line and "invert" not in line


def test_photographs_of_two_kinds_are_not_warned_of():
    rng = np.random.default_rng(0)
    some, others = (
        labelled(np.clip(rng.normal(mean, 65, (99, 8, 8, 3)), 0, 255).astype(np.uint8))
        for mean in (110, 145)
    )
    assert warnings(train=some, test=others) == []


def test_equal_pixels_are_warned_of():
    constant = labelled(np.full((1500, 8, 8, 3), 7, np.uint8))
    usual = labelled(drawn(ink=255, paper=0))
    assert warnings(train=usual, test=constant) == [
        "all pixels of the test images are equal; look at the files"
    ]
    assert len(warnings(train=constant, test=usual)) == 2  # of train and valid
    # One image that is not among those looked at first.
    constant.images[1] += 1
    assert warnings(train=usual, test=constant) == []


def test_options_reach_the_pixels_the_plan_and_the_result(characters, tmp_path):
    options = {"ways": 2, "queries": 1, "test_queries": 1, "image_size": 8, "fit": "pad"}
    experiments = {
        invert: fewshot.build(settings_of(characters, tmp_path, invert=invert, **options))
        for invert in ("auto", "yes", "no")
    }
    means = {name: found.data["train"].constants.mean.item() for name, found in experiments.items()}
    assert means["auto"] == means["no"] > 0.8
    assert means["yes"] == pytest.approx(1 - means["no"], abs=1e-6)
    announcement, facts = dict(experiments["yes"].announcement), experiments["yes"].facts
    assert announcement["polarity"] == "inverted"
    assert (
        announcement["note"]
        == "all 36 files not square: each is padded to a square by its mean colour"
    )
    assert facts["inverted"] and facts["fit"] == "pad" and facts["notes"] == announcement["note"]
    assert dict(experiments["no"].announcement)["polarity"] == "as in the files"
    settings = completion.CompletionSettings(
        dataset="folder", data_dir=str(characters), invert="yes", image_size=8, points=5, fit="pad"
    )
    completed = completion.build(settings)
    assert completed.data["train"].constants.mean.item() == means["yes"]
    assert completed.facts["inverted"] and ("polarity", "inverted") in completed.announcement
