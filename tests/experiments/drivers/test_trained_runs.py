"""A trained run is tested on other data than its own, and trained on."""

import functools
import json
import operator
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.fewshot import driver as fewshot
from experiments.flags.settings import UsageError
from experiments.runtime.checkpoints import FORMAT, FormatError
from experiments.runtime.data_record import read
from experiments.runtime.files import SettingsMismatch, read_settings
from experiments.runtime.workdir import tie_settings
from experiments.setup.images import read_images
from experiments.setup.init_from import start_from
from helpers.driver_runs import QUICK, drive, give_format, settings_of, undrawn, unlock


@pytest.fixture(scope="module")
@undrawn()
def trained(pictures, tmp_path_factory):
    """A run of a learner whose step sizes are learned, on grey pictures."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    assert fewshot.start(settings_of(pictures, workdir, learner="meta_sgd", outer_lr=0.01)) == 0
    unlock()
    return workdir


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Six classes of six pictures that are no one else's, in grey and the same in three equal channels."""
    root, rng = tmp_path_factory.mktemp("own"), np.random.default_rng(1)
    for name in range(6):
        pattern = rng.integers(0, 256, (4, 4)).repeat(4, 0).repeat(4, 1)
        for kind in ("grey", "colour"):
            (root / kind / f"own{name}").mkdir(parents=True)
        for number in range(6):
            noisy = np.clip(pattern + rng.normal(0, 60, (16, 16)), 0, 255).astype(np.uint8)
            grey = Image.fromarray(noisy)
            grey.save(root / "grey" / f"own{name}" / f"{number}.png")
            grey.convert("RGB").save(root / "colour" / f"own{name}" / f"{number}.png")
    return root


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the trained run, to work in."""
    yield shutil.copytree(trained, tmp_path / "run")
    unlock()


def evaluate(workdir: Path, *flags) -> dict:
    assert drive(f"--workdir={workdir}", "--mode=evaluate", *flags) == 0
    unlock()
    return json.loads((workdir / "evaluation" / "result.json").read_text())


def test_a_run_is_tested_on_a_folder_without_the_data_it_was_trained_on(
    run, own, pictures, capsys, monkeypatch
):
    titles = []
    monkeypatch.setattr(
        fewshot.pictures, "episodes_picture", lambda path, **given: titles.append(given["title"])
    )
    before = (run / "result.json").read_bytes()
    elsewhere = "--test_dataset=folder", f"--test_data_dir={own / 'colour'}"
    found = evaluate(run, *elsewhere)  # no --dataset, no --learner, no --data_dir
    out = " ".join(capsys.readouterr().out.split())
    assert found["test_dataset"] == f"folder:{own / 'colour'}" and found["test_split"] == "all"
    assert f"{pictures}, 16x16x1" in found["split"] and "13 train, 3 valid" in found["split"]
    assert f"tested on folder {own / 'colour'}, 16x16x1, split all" in found["split"]
    assert (
        "6 test classes (colour becomes grey in all 36 files)" in found["split"]
        and found["split"] in out
    )
    assert titles == [f"folder:{own / 'colour'}: unseen classes, 3-way 1-shot"]
    assert found["settings"]["learner"] == "meta_sgd" and found["transductive"] is False
    assert (run / "result.json").read_bytes() == before
    # The same pictures, normalised by statistics of training images that are read, and not recorded.
    (run / "data.json").unlink()
    with pytest.raises(UsageError, match="--dataset=folder needs --data_dir"):
        evaluate(run, *elsewhere)
    unlock()
    grey = "--test_dataset=folder", f"--test_data_dir={own / 'grey'}", f"--data_dir={pictures}"
    again = evaluate(run, *grey)
    assert again["test_accuracy"] == found["test_accuracy"]
    assert again["episodes_sha256"] == found["episodes_sha256"]
    assert found["ci95"] > 0, "accuracies of episodes differ"
    # An evaluation of something else is kept. Ways are bound to the network's last layer, shots to nothing.
    assert not (run / "evaluation-1").exists(), "it was the same again"
    assert evaluate(run, *grey, "--shots=2")["shots"] == 2
    kept = json.loads((run / "evaluation-1" / "result.json").read_text())
    assert kept["episodes_sha256"] == found["episodes_sha256"]
    with pytest.raises(SettingsMismatch, match=r"--ways: was 3, now 2.*Evaluating takes the"):
        evaluate(run, *grey, "--ways=2")


@pytest.mark.parametrize("number", [None, 99])
def test_a_run_of_another_version_is_refused_whatever_is_asked_of_it(
    run, own, pictures, tmp_path, number
):
    folder = give_format(run, number)
    kept = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    options = {"learner": "meta_sgd", "outer_lr": 0.01}
    elsewhere = tmp_path / "elsewhere"
    asked = [
        lambda: evaluate(run),
        lambda: evaluate(run, "--test_dataset=folder", f"--test_data_dir={own / 'grey'}"),
        lambda: fewshot.start(settings_of(pictures, run, **options)),
        lambda: fewshot.start(settings_of(pictures, run, mode="evaluate", **options)),
        lambda: fewshot.start(settings_of(pictures, run, **options | {"shots": 2})),
        lambda: fewshot.start(settings_of(pictures, elsewhere, init_from=str(run), **options)),
    ]
    found = "no format number" if number is None else f"format {number}"
    says = f"Checkpoint {folder} has {found}, and this version reads format {FORMAT} alone; start again in "
    for ask in asked:
        with pytest.raises(FormatError) as error:
            ask()
        assert str(error.value).startswith(says) and "\n" not in str(error.value)
        unlock()
    assert {path: path.read_bytes() for path in kept} == kept, "nothing is changed"


def test_a_run_of_another_version_is_one_line_of_the_command(run, pictures, forked):
    give_format(run, None)
    common = f"--data_dir={pictures}", f"--workdir={run}"
    flags = [f"--{name}={value}" for name, value in QUICK.items()]
    for asked, expected in [(["--mode=evaluate"], 2), ([*flags, "--learner=meta_sgd"], 1)]:
        status, _, err = forked(*common, *asked)
        assert status == expected, err
        assert "has no format number" in err and len(err.strip().splitlines()) == 1


def test_what_is_trained_on_is_no_test_class(run, own, pictures, tmp_path):
    with pytest.raises(UsageError, match="test classes of the same names as training classes"):
        evaluate(run, "--test_dataset=folder", f"--test_data_dir={pictures}")
    unlock()
    name = read(run).train.names[0]
    shutil.copytree(own / "grey", tmp_path / "mixed")
    shutil.copytree(pictures / name, tmp_path / "mixed" / "renamed")
    options = {"test_dataset": "folder", "test_data_dir": str(tmp_path / "mixed")}
    says = "NOT UNSEEN: these classes have the very images of training classes: 'renamed'"
    settings = settings_of(pictures, run, learner="meta_sgd", **options)
    assert says in read_images(settings).description
    recorded = settings_of("", run, learner="meta_sgd", mode="evaluate", **options)
    assert says in read_images(recorded).description


def test_statistics_are_those_of_the_training_images(trained, pictures):
    kept = read(trained)
    images = read_images(settings_of(pictures, trained))
    for split, found in (("train", kept.train), ("valid", kept.valid)):
        np.testing.assert_array_equal(found.histogram(), getattr(images, split).histogram())
        assert found.fingerprint() == getattr(images, split).fingerprint()
        assert found.names == getattr(images, split).names
    assert kept.description == images.description
    assert read(trained / "nowhere") is None


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("train", "counts", 0), 10**30),
        (("train", "counts", 0), 7),
        (("train", "shape", 0), float("inf")),
        (("train", "levels", 0, 0), -1),
        (("train", "levels", 0, 0), 10**6),
        (("train", "levels"), []),
        (("valid", "names"), None),
        (("form", "fit"), 7),
        (("form", "bits"), "q"),
        (("form", "invert"), "x"),
        (("form",), []),
    ],
)
def test_a_damaged_record_is_none(trained, tmp_path, keys, value):
    found = json.loads((trained / "data.json").read_text())
    # Without a digest, as of an earlier version, each part is checked by itself.
    found.pop("sha256", None)
    (tmp_path / "data.json").write_text(json.dumps(found))
    assert read(tmp_path).train.names == read(trained).train.names
    *path, last = keys
    functools.reduce(operator.getitem, path, found)[last] = value
    (tmp_path / "data.json").write_text(json.dumps(found))
    assert read(tmp_path) is None


def test_a_record_is_bound_to_its_digest(trained, tmp_path):
    found = json.loads((trained / "data.json").read_text())
    levels = found["train"]["levels"][0]
    assert levels[3] != levels[4]
    levels[3], levels[4] = levels[4], levels[3]  # as many pixels, and other statistics
    (tmp_path / "data.json").write_text(json.dumps(found))
    assert read(tmp_path) is None
    (tmp_path / "data.json").write_text("[" * 100_000)
    assert read(tmp_path) is None
    (tmp_path / "data.json").write_text("[]")
    assert read(tmp_path) is None


def test_the_encoder_of_a_run_of_the_same_split_is_taken_whatever_it_is_tested_on(trained):
    same = {**read_settings(trained), "test_dataset": "folder"}
    divided = "divided into other classes"

    def refused(**changed):
        with pytest.raises(UsageError) as error:
            start_from({}, str(trained), settings={**same, **changed})
        return str(error.value)

    assert "none of this network's parameters" in refused()  # the next check: {} has none
    assert divided in refused(data_sha256="0" * 64)
    assert divided in refused(data_sha256="0" * 64, dataset="omniglot")
    assert divided not in refused(data_sha256="0" * 64, dataset="omniglot", test_dataset="")


@undrawn()
def test_a_finished_run_is_trained_on_at_another_step_size(trained, pictures, tmp_path, capsys):
    longer = {"learner": "meta_sgd", "outer_lr": 0.02, "steps": 8}
    remedy = rf"--workdir=ANOTHER --init_from={trained} --init_head\.$"
    with pytest.raises(SettingsMismatch, match=remedy):
        fewshot.start(settings_of(pictures, trained, **longer))
    unlock()
    with pytest.raises(SettingsMismatch, match=r"to continue that run\.$"):
        fewshot.start(settings_of(pictures, trained, **{**longer, "augment": "flip"}))
    unlock()
    with pytest.raises(
        SettingsMismatch, match=r"to continue that run\.$"
    ):  # it has learned its own
        fewshot.start(settings_of(pictures, trained, **{**longer, "inner_lr": 0.2}))
    unlock()
    # At such a rate nothing moves: what is validated is what was taken.
    still = {"learner": "meta_sgd", "outer_lr": 1e-30, "steps": 1, "init_from": str(trained)}
    assert fewshot.start(settings_of(pictures, tmp_path, init_head=True, **still)) == 0
    unlock()
    assert f"starts from 12 arrays of {trained}" in " ".join(capsys.readouterr().out.split())
    source, found = (
        json.loads((workdir / "result.json").read_text()) for workdir in (trained, tmp_path)
    )
    for score in ("best_valid_accuracy", "test_accuracy"):
        assert found[score] == source[score]
    with pytest.raises(UsageError, match="--init_head=true needs --init_from"):
        settings_of(pictures, tmp_path, init_head=True)


def test_a_run_does_not_go_on_with_another_batch(tmp_path):
    hashes = ["a" * 64, "b" * 64, "c" * 64]
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)

    def go_on(fingerprint=hashes, **options):
        settings = settings_of("", tmp_path, learner="simpleshot", queries=5, **options)
        tie_settings(settings, tmp_path, ".".join(fingerprint))

    go_on(images=6)
    known = read_settings(tmp_path)
    assert known["images"] == 6 and known["data_sha256"] == ".".join(hashes[:2])
    assert known["test_data_sha256"] == hashes[2]
    go_on(images=6)
    # No checkpoint can be read that another run could start from.
    with pytest.raises(SettingsMismatch, match=r"--images: was 6, now 7.*continue that run\.$"):
        go_on(images=7)
    with pytest.raises(SettingsMismatch, match=r"other settings: the test images differ\. Use"):
        go_on([*hashes[:2], "d" * 64], images=6)


def test_what_differs_in_a_test_alone(tmp_path):
    hashes = ["a" * 64, "b" * 64, "c" * 64]
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)

    def tie(test="c" * 64, train="a" * 64, **options):
        settings = settings_of("", tmp_path, learner="protonet", rotations="all", **options)
        tie_settings(settings, tmp_path, ".".join([train, hashes[1], test]))

    tie()
    other = {"mode": "evaluate", "test_dataset": "omniglot", "test_split": "lake"}
    tie("d" * 64, **other, ways=2, shots=3, fit="pad", invert="yes", test_invert="no")
    for name, value in (("fit", "pad"), ("ways", 2), ("shots", 2)):
        with pytest.raises(SettingsMismatch, match=f"--{name}: was .*, now {value}"):
            tie(mode="evaluate", **{name: value})
    with pytest.raises(
        SettingsMismatch, match=r"settings: the training images differ\. Evaluating"
    ):
        tie("d" * 64, "d" * 64, **other)
    with pytest.raises(SettingsMismatch, match=r"images to test on are --test_dataset\.$"):
        tie("d" * 64, mode="evaluate")
    for rotations, fits in (("train", True), ("none", False)):
        settings = settings_of(
            "", tmp_path, learner="protonet", mode="evaluate", rotations=rotations
        )
        if fits:
            tie_settings(settings, tmp_path, ".".join(hashes))
        else:
            with pytest.raises(SettingsMismatch, match="--rotations: was all, now none"):
                tie_settings(settings, tmp_path, ".".join(hashes))
