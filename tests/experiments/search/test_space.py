"""The text of --search, and the flags of trials that follow from it."""

import pytest
from absl import flags

from experiments.fewshot.options import FewshotSettings
from experiments.flags.settings import UsageError, declarations, define_flags
from experiments.runtime.flag_sources import read_flags
from experiments.search.options import DRIVERS, SearchSettings, driver_settings, search_settings
from experiments.search.space import Choice, Range, read_space
from experiments.search.trial_flags import asks, flags_of, make_base, settings_of, trial_flags


def base_of(*given):
    made, values = search_settings("fewshot"), flags.FlagValues()
    define_flags(made, values)
    settings = read_flags(made, ["search", "--workdir=/nowhere", *given], values)
    space = read_space(settings.search, FewshotSettings)
    return make_base("fewshot", FewshotSettings, settings, space)


def test_ranges_and_lists_have_the_types_of_their_options():
    space = read_space(
        "inner_lr=log:0.05..2; inner_steps = 1..5;meta_batch=log:1..64;learner=maml, anil;"
        "outer_lr=1e-3,2e-3;init_from=a,b|c",
        FewshotSettings,
    )
    assert space == {
        "learner": Choice(("maml", "anil")),
        "inner_lr": Range(0.05, 2.0, log=True, whole=False),
        "inner_steps": Range(1, 5, log=False, whole=True),
        "meta_batch": Range(1, 64, log=True, whole=True),
        "outer_lr": Choice((1e-3, 2e-3)),
        "init_from": Choice(("a,b", "c")),
    }
    assert next(iter(space)) == "learner"  # before the options that only some learners have


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("inner_lrr=1..2", "inner_lrr is no option; did you mean inner_lr"),
        ("inner_lr=log:0..1", "a log: range needs numbers above 0"),
        ("inner_lr=-1..1", "inner_lr=-1.0 is too small; use more than 0"),
        ("inner_lr=0.1..inf", "is not a finite number"),
        ("inner_steps=0.5..2", "inner_steps=0.5 is not an integer"),
        ("inner_lr=5..1", "write the smaller number first"),
        ("inner_lr=a..1", "inner_lr=a is not a number"),
        ("learner=maml,mamml", "learner=mamml is unknown; did you mean maml"),
        ("learner=maml", "has one value; give --learner=maml"),
        ("inner_lr=0.1,0.1", "has a value twice"),
        ("learner=1..2", "its values are no numbers; list values"),
        ("inner_lr=1..2;inner_lr=1..3", "inner_lr is there twice"),
        ("freeze=yes,no", "freeze=yes is not true or false"),
        ("inner_lr", "names no values; write such as"),
        ("", "--search is empty"),
        ("ways=2..5", "ways has to be the same in all trials"),
        ("seed=1..5", "seed has to be the same in all trials"),
        ("test_queries=1..5", "test_queries has to be the same in all trials"),
        ("dataset=glyphs,omniglot", "dataset has to be the same in all trials"),
    ],
)
def test_a_wrong_search_is_one_line(text, words):
    with pytest.raises(UsageError, match=words) as error:
        read_space(text, FewshotSettings)
    assert "\n" not in str(error.value)


def test_inner_steps_at_test_may_be_searched():
    assert read_space("test_inner_steps=1..3", FewshotSettings)["test_inner_steps"].whole


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--search=rank=1..8"], "rank does not go with --learner=maml; it is for lora"),
        (["--search=freeze=true,false"], "freeze needs --init_from"),
        (["--search=inner_lr=1..2", "--rank=4"], "--rank=4 does not go with --learner=maml"),
        (["--search=rank=1..8;learner=maml,anil"], "rank does not go with --learner=maml, anil"),
    ],
)
def test_options_that_go_with_nothing_are_refused_before_a_trial(given, words):
    with pytest.raises(UsageError, match=words):
        base_of(*given)


def test_a_learner_is_asked_only_for_options_that_it_has():
    base = base_of(
        "--search=inner_lr=0.1..1;scale=1..4;outer_lr=1e-3..1e-2;learner=maml,protonet",
        *("--inner_steps=3", "--inner_optimizer=sgd", "--ways=4"),
    )
    asked = {
        learner: [name for name in base.space if asks(base, {"learner": learner}, name)]
        for learner in ("maml", "protonet")
    }
    assert asked == {
        "maml": ["learner", "inner_lr", "outer_lr"],
        "protonet": ["learner", "scale", "outer_lr"],
    }
    # The command's flags that another learner has are left out, and its own default is in force.
    assert "--inner_steps=3" in flags_of(base, {"learner": "maml"})
    flags_of_protonet = flags_of(base, {"learner": "protonet"})
    assert "--ways=4" in flags_of_protonet
    assert "--inner_steps=3" not in flags_of_protonet
    assert settings_of(base, {"learner": "maml"}).inner_steps == 3


def test_trials_are_shorter_and_validate_several_times():
    base = base_of("--search=inner_lr=0.1..1", "--steps=100", "--trial_steps=50")
    assert {"--steps=50", "--eval_every=10", "--inner_lr=0.30000000000000004"} <= {
        *trial_flags(base, {"inner_lr": 0.1 + 0.2})
    }
    last = flags_of(base, {"inner_lr": 0.5}, steps=base.steps)
    assert "--steps=100" in last
    assert not any(flag.startswith("--eval_every") for flag in last)
    given = base_of("--search=inner_lr=0.1..1", "--steps=100", "--eval_every=25")
    assert "--eval_every=25" in trial_flags(given, {"inner_lr": 0.5})


@pytest.mark.parametrize("driver", DRIVERS)
def test_no_driver_has_a_flag_of_the_search(driver):
    assert not {*declarations(SearchSettings)} & {*declarations(driver_settings(driver))}


def test_an_unknown_driver_is_one_line():
    with pytest.raises(UsageError, match="fewshoot is no driver; did you mean fewshot"):
        driver_settings("fewshoot")
