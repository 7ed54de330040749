"""Values that a command does not spell out: a recipe's published number, and those of the evaluated run."""

import json

import absl.flags
import pytest

from experiments.fewshot import driver as fewshot
from experiments.flags.settings import UsageError, define_flags
from experiments.runtime.flag_sources import read_flags
from helpers.driver_runs import ROOT

RECIPE = f"--flagfile={ROOT}/experiments/recipes/omniglot_5way_1shot_maml.flags"


def read(*flags):
    values = absl.flags.FlagValues()
    define_flags(fewshot.FewshotSettings, values)
    return read_flags(fewshot.FewshotSettings, ["driver", *map(str, flags)], values)


@pytest.mark.parametrize(
    ("flags", "published", "by"),
    [
        ("", 98.7, "Finn et al., 2017"),
        ("--seed=3 --workdir=x --log_every=3 --steps=9 --data_dir=y", 98.7, "Finn et al., 2017"),
        ("--parameter_shards=2 --eval_episodes=9 --outer_lr=1", 98.7, "Finn et al., 2017"),
        ("--shots=1", 98.7, "Finn et al., 2017"),
        (
            "--shots=5",
            None,
            "left out: 98.7 (Finn et al., 2017) is for --shots=1 and this run has 5",
        ),
        ("--ways=20 --shots=5", None, "--ways=5 and this run has 20, and 1 more differ"),
        ("--test_inner_steps=9", None, "--test_inner_steps=3 and this run has 9"),
        ("--test_queries=1", None, "--test_queries=15 and this run has 1"),
        ("--rotations=train", None, "--rotations=all and this run has train"),
        ("--split=lake", None, "--split=random and this run has lake"),
        ("--learner=fomaml", None, "--learner=maml and this run has fomaml"),
        ("--model=conv4", None, "--model=conv4_stride and this run has conv4"),
        ("--test_dataset=folder", None, "--test_dataset= and this run has folder"),
        ("--shots=5 --published=99.9 --published_by=us", 99.9, "us"),
        ("--shots=5 --published=98.7", 98.7, "Finn et al., 2017"),
    ],
)
def test_a_published_number_stays_with_its_protocol(flags, published, by):
    settings = read(RECIPE, *flags.split())
    assert settings.published == published
    assert settings.published_by.endswith(by)


def test_the_protocol_is_that_of_the_file_with_the_number(tmp_path):
    (tmp_path / "mine.flags").write_text("--shots=5\n")
    assert read(RECIPE, f"--flagfile={tmp_path / 'mine.flags'}").published is None
    # A flag before the recipe counts too, unless the recipe has it.
    assert read("--norm=layer", "--attack=pgd", RECIPE).published_by.endswith("has pgd")
    assert read("--shots=5", RECIPE).published == 98.7
    # Of several recipes the last one, whose number is as little one of the user's own.
    other = RECIPE.replace("5way", "20way")
    assert read(RECIPE, other).published == 95.8
    assert read(RECIPE, other, "--shots=7").published is None
    assert read(RECIPE, RECIPE, "--shots=5").published is None
    assert read(RECIPE, RECIPE, "--shots=5", "--published=99.9").published == 99.9


def test_an_evaluation_has_the_settings_of_its_run(tmp_path):
    recorded = {"learner": "protonet", "shots": 2, "test_queries": 3, "dataset": "omniglot"}
    recorded |= {"mode": "train", "log_every": 7}
    (tmp_path / "settings.json").write_text(json.dumps(recorded))
    flags = f"--workdir={tmp_path}", "--mode=evaluate", "--shots=1"
    settings = read(*flags)
    assert (settings.learner, settings.dataset, settings.test_queries) == (
        "protonet",
        "omniglot",
        3,
    )
    assert (settings.shots, settings.mode) == (1, "evaluate")
    assert settings.log_every == 50, "not of what a run computes"
    assert read(f"--workdir={tmp_path}").learner == "maml", "training has its own"
    (tmp_path / "settings.json").write_text("{")
    assert read(*flags).learner == "maml", "what is damaged is reported by whoever opens it"


def test_how_other_test_data_are_read_goes_with_them(tmp_path):
    recorded = {"test_dataset": "omniglot", "test_split": "lake", "test_invert": "no"}
    (tmp_path / "settings.json").write_text(json.dumps(recorded))

    def found(*flags):
        settings = read(f"--workdir={tmp_path}", "--mode=evaluate", *flags)
        return settings.test_dataset, settings.test_split, settings.test_invert

    assert found() == ("omniglot", "lake", "no")
    assert found("--test_dataset=folder") == ("folder", "", None)
    assert found("--test_dataset=") == ("", "", None)
    assert found("--test_dataset=folder", "--test_invert=yes") == ("folder", "", "yes")


@pytest.mark.parametrize(
    ("name", "value"),
    [("ways", "five"), ("steps", None), ("outer_lr", "x"), ("mix_classes", []), ("learner", 3)],
)
def test_a_recorded_value_that_no_flag_can_have_is_one_line(tmp_path, name, value):
    path = tmp_path / "settings.json"
    path.write_text(json.dumps({"norm": None, "ways": 4, "outer_lr": 1, name: value}))
    flags = f"--workdir={tmp_path}", "--mode=evaluate"
    with pytest.raises(UsageError) as error:
        read(*flags)
    assert f"{path} is damaged: {value!r} is no value of --{name}; use" in str(error.value)
    path.write_text(json.dumps({"norm": None, "ways": 4, "outer_lr": 1}))
    settings = read(*flags)
    assert (settings.norm, settings.ways, settings.outer_lr) == (None, 4, 1.0)
