"""Folders of few classes and few images: a refusal names all that is in the way, and flags that work."""

import dataclasses
import json
import re

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import settings as limits
from hypothesis import strategies as st
from PIL import Image

from experiments.completion import driver as completion
from experiments.fewshot import driver as fewshot
from experiments.fewshot.checks import check_fewshot
from experiments.fewshot.options import resolve_fewshot
from experiments.fewshot.sizes import check_sizes
from experiments.flags.settings import UsageError
from experiments.flags.training import check_together
from experiments.setup.images import read_images
from helpers.driver_runs import drive, undrawn, unlock
from metajax.data import sources, splits
from metajax.data.images import LabelledImages
from metajax.errors import DataError


def _load(counts, settings, given) -> sources.Splits:
    """What `sources.load` makes of classes of these sizes, without the files."""
    names = tuple(f"class {i:02}" for i in range(len(counts)))
    images = LabelledImages(
        np.zeros((sum(counts), 2, 2, 1), np.uint8), np.array(counts), names, ("",) * len(names)
    )
    policy = splits.random(least=settings.min_classes)
    if given:
        third = max(1, len(names) // 3)
        policy = splits.given(
            {"train": names[2 * third :], "valid": names[:third], "test": names[third : 2 * third]}
        )

    def divide(min_images):
        return splits.split_classes(images, policy, min_images=min_images)

    parts = {name: images.select(kept) for name, kept in divide(settings.min_images).items()}
    sizes = lambda least: {name: images.counts[list(i)] for name, i in divide(least).items()}  # noqa: E731
    return sources.Splits(**parts, description="", sizes=sizes)


def _refusal(counts, settings, given=False) -> str:
    try:
        check_together(settings)
        check_fewshot(settings)
        samplers = fewshot.make_samplers(resolve_fewshot(settings))
        check_sizes(settings, samplers, _load(counts, settings, given))
    except DataError as error:
        return str(error)
    return ""


def _remedies(message: str) -> list[dict[str, int]]:
    _, _, remedy = message.partition(": use ")
    return [
        {name: int(value) for name, value in re.findall(r"--(\w+)=(\d+)", flags)}
        for flags in remedy.split(", or ")
        if flags
    ]


def _settings(learner, sizes, rotations) -> fewshot.FewshotSettings:
    supervised, sequence = learner == "baseline", learner == "mann"
    if supervised:
        sizes = {k: v for k, v in sizes.items() if k in ("ways", "shots", "test_queries", "images")}
    else:
        sizes = {k: v for k, v in sizes.items() if k != "images"}
    if sizes.get("train_ways") and learner in ("maml", "mann"):
        sizes = sizes | {"train_ways": sizes["ways"]}
    if sequence:
        kept = ("ways", "shots", "train_ways")
        sizes = {k: v for k, v in sizes.items() if k in kept} | {"protocol": "sequence"}
    return fewshot.FewshotSettings(
        dataset="omniglot", learner=learner, rotations=rotations, model="mlp", **sizes
    )


small, maybe = st.integers(1, 9), st.none() | st.integers(1, 9)
episodes = st.fixed_dictionaries(
    {
        **{"ways": st.integers(2, 7), "shots": small, "queries": small, "test_queries": small},
        **{"train_ways": st.none() | st.integers(2, 9), "train_shots": maybe},
        **{"min_ways": maybe, "min_shots": maybe, "images": maybe, "min_images": st.integers(1, 2)},
    }
)


@limits(max_examples=150, deadline=None)
@given(
    counts=st.lists(st.integers(1, 14), min_size=3, max_size=16),
    sizes=episodes,
    learner=st.sampled_from(["maml", "protonet", "baseline", "mann"]),
    rotations=st.sampled_from(["none", "train", "all"]),
    given=st.booleans(),
)
def test_whatever_is_refused_the_remedy_is_accepted(counts, sizes, learner, rotations, given):
    settings = _settings(learner, sizes, rotations)
    try:
        message = _refusal(counts, settings, given)
    except UsageError:
        assume(False)
    for flags in _remedies(message):
        changed = dataclasses.replace(settings, **flags)
        assert _refusal(counts, changed, given) == "", (message, flags)
    if "each need" in message:  # then the smallest episodes do not fit either
        least = {**dict.fromkeys(sizes), "ways": 2, "queries": 1, "test_queries": 1, "images": 1}
        least["shots"] = 2 if learner == "mann" else 1
        for min_images in {settings.min_images, *counts}:
            tiny = _settings(
                learner, least | {"min_images": max(min_images, settings.min_images)}, rotations
            )
            assert _refusal(counts, tiny, given)


def _of_a_trained_run(sizes, **options) -> tuple[list[dict[str, int]], str]:
    """Remedies and message of a test on classes of these sizes, after training on large ones."""
    settings = fewshot.FewshotSettings(
        dataset="omniglot", mode="evaluate", workdir="nowhere", **options
    )
    train = _load([40] * 30, settings, True)

    def counts(least):
        kept = np.array([size for size in sizes if size >= least], np.int32)
        return {"train": train.train.counts, "valid": train.valid.counts, "test": kept}

    test = LabelledImages(
        np.zeros((sum(sizes), 2, 2, 1), np.uint8),
        np.array(sizes, np.int32),
        tuple(f"own {i}" for i in range(len(sizes))),
        ("",) * len(sizes),
    )
    images = train._replace(test=test, sizes=counts)
    with pytest.raises(DataError) as error:
        check_sizes(settings, fewshot.make_samplers(resolve_fewshot(settings)), images)
    return _remedies(str(error.value)), str(error.value)


def test_a_trained_run_is_offered_what_a_test_may_change():
    few, other = [4] * 6, {"test_dataset": "folder", "test_data_dir": "x"}
    five = {"learner": "protonet", "ways": 2, "shots": 5}
    assert _of_a_trained_run(few, **five, **other)[0] == [{"shots": 2, "test_queries": 2}]
    # On data of its own it keeps its shots, and all of its training images.
    found, message = _of_a_trained_run([*few, 20, 20], **five)
    assert found == [] and "keeps its --ways and --shots, so a test needs 2 classes" in message
    # The ways of a head bind, those of a metric do not.
    one = {"shots": 1, "test_queries": 3}
    found, message = _of_a_trained_run(few[:3], learner="maml", ways=5, **one, **other)
    assert found == [] and "keeps its --ways, so a test needs 5 classes or more, of 2" in message
    found, _ = _of_a_trained_run(few[:3], learner="protonet", ways=5, **one, **other)
    assert found == [{"ways": 3}]
    # Training had ways and shots of its own.
    trained = {"train_ways": 5, "train_shots": 5}
    found, _ = _of_a_trained_run(few[:3], learner="protonet", shots=5, **trained)
    assert found == [{"ways": 3, "shots": 2, "test_queries": 2}]
    assert _of_a_trained_run([*few, 20, 20], **five, **other)[0][0] == {"min_images": 20}


def test_a_test_with_rotations_divides_the_classes_as_the_training_did(tmp_path):
    (tmp_path / "settings.json").write_text('{"rotations": "train"}')
    options = {"workdir": str(tmp_path), "rotations": "all"}
    assert fewshot.FewshotSettings(**options, mode="evaluate").min_classes == 2
    assert fewshot.FewshotSettings(**options).min_classes == 1
    (tmp_path / "settings.json").write_text('{"rotations": "all"}')
    options["rotations"] = "train"
    assert fewshot.FewshotSettings(**options, mode="evaluate").min_classes == 1
    assert fewshot.FewshotSettings(**options).min_classes == 2


QUICK = ["--dataset=folder", "--model=mlp", "--learner=protonet", "--steps=2", "--meta_batch=2"]
QUICK += ["--valid_episodes=2", "--eval_episodes=3"]


def _folder(root, sizes):
    rng = np.random.default_rng(0)
    for name, size in sizes.items():
        (root / name).mkdir(parents=True)
        for number in range(size):
            pixels = rng.integers(0, 256, (4, 4), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


@undrawn()
def test_a_small_folder_runs_with_the_flags_that_its_refusal_names(tmp_path, capsys):
    root = _folder(tmp_path / "pictures", {**dict.fromkeys("abcdef", 12), "few": 3})
    flags = [*QUICK, f"--data_dir={root}", f"--workdir={tmp_path / 'run'}", "--shots=5"]
    with pytest.raises(DataError, match=r"5 ways are more .* 20 images per class, but") as error:
        drive(*flags)
    assert _remedies(str(error.value)) == [
        {"ways": 2, "shots": 1, "test_queries": 2},
        {"min_images": 12, "ways": 2, "test_queries": 7},  # which keeps the shots
    ]
    # Without the class of three images, all is as in a folder of six such classes.
    flags.append("--min_images=12")
    with pytest.raises(DataError) as error:
        drive(*flags)
    (found,) = _remedies(str(error.value))
    assert found == {"ways": 2, "test_queries": 7}
    assert drive(*flags, *(f"--{name}={value}" for name, value in found.items())) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["ways"], result["shots"], result["queries"]) == (2, 5, 7)
    assert "2 train, 2 valid, 2 test" in result["split"]
    unlock()


def test_too_few_classes_are_counted(tmp_path):
    root = _folder(tmp_path / "pictures", dict.fromkeys("abcde", 2))
    with pytest.raises(
        DataError, match="of 2 classes or more need 6 classes or more, and the data have 5"
    ):
        drive(*QUICK, f"--data_dir={root}", f"--workdir={tmp_path / 'run'}")


def test_other_test_classes_are_compared_in_one_unicode_form(tmp_path):
    composed, apart = "caf\u00e9", "cafe\u0301"
    training = _folder(tmp_path / "a", {f"train/{composed}": 1, "valid/b": 1, "test/c": 1})
    testing = _folder(tmp_path / "b", {apart: 1, "x": 1})
    settings = fewshot.FewshotSettings(
        dataset="folder", data_dir=str(training), test_dataset="folder", test_data_dir=str(testing)
    )
    with pytest.raises(
        UsageError, match="the same names as training classes of --dataset=folder, 'caf"
    ):
        read_images(settings)


@undrawn()
def test_completion_leaves_small_classes_out_too(tmp_path):
    root = _folder(tmp_path / "pictures", {**dict.fromkeys("abc", 3), "d": 1})
    settings = completion.CompletionSettings(dataset="folder", data_dir=str(root), min_images=2)
    images = read_images(settings)
    assert sorted(name for part in images[:3] for name in part.names) == ["a", "b", "c"]
    assert images.notes[-1] == "1 of 4 classes has fewer than 2 images, and is left out"
