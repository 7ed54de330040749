"""Options as declared: scopes, defaults of learners, former names, combinations, help."""

import dataclasses

import absl.flags
import pytest

from experiments.completion.driver import CompletionSettings
from experiments.fewshot.checks import check_fewshot
from experiments.fewshot.driver import FewshotSettings
from experiments.flags.plan import resolve
from experiments.flags.settings import (
    SECTIONS,
    UsageError,
    check_combinations,
    declarations,
    define_flags,
    help_text,
    in_scope,
    learner_defaults,
    option,
    with_todays_names,
)
from experiments.flags.training import check_together
from experiments.pertask.options import PertaskSettings, settled
from experiments.pod.check import PodSettings
from experiments.regression.driver import RegressionSettings
from experiments.rl.options import RlSettings
from experiments.runtime.flag_sources import read_flags
from metajax.zoo.learners import LEARNERS

DRIVERS = [FewshotSettings, RegressionSettings, CompletionSettings, PodSettings]
HOST_OR_DISPLAY = (
    "workdir mode plan data_dir test_data_dir resident read_workers compilation_cache log_every "
    "skip_nonfinite memory_budget published published_by parameter_shards distributed coordinator "
    "num_processes process_id join_seconds skip_test track track_project"
).split()
TEST = (
    "eval_episodes eval_seed test_inner_steps test_queries one_query_at_a_time attack attack_epsilon "
    "attack_on test_dataset test_split test_invert min_images calibration_episodes unknown_ways"
).split()
OF_A_PROCESS = (
    "workdir data_dir test_data_dir split_file init_from compilation_cache coordinator process_id resident "
    "read_workers published published_by"
).split()
HOW_WELL = (
    "seed eval_seed split_seed eval_episodes valid_episodes steps meta_batch outer_optimizer outer_lr "
    "outer_schedule outer_lr_end clip patience eval_every checkpoint_every tasks_at_once queries_at_once "
    "adjoint implementation calibration_episodes"
).split()


def read(*flags, settings_class=FewshotSettings):
    values = absl.flags.FlagValues()
    define_flags(settings_class, values)
    return read_flags(settings_class, ["driver", *flags], values)


def test_scopes_are_those_that_runs_depend_on():
    declared = declarations(FewshotSettings)
    assert set(in_scope(FewshotSettings, "host", "display")) == set(HOST_OR_DISPLAY)
    assert set(in_scope(FewshotSettings, "test")) == set(TEST)
    assert {name for name in declared if not declared[name].shared} == set(OF_A_PROCESS)
    free = {name for name in declared if not declared[name].protocol}
    assert free == {*HOST_OR_DISPLAY, *HOW_WELL}


@pytest.mark.parametrize("settings_class", DRIVERS)
def test_every_option_has_a_section_and_words_and_combines_with_known_ones(settings_class):
    names = {*declarations(settings_class)}
    known = names | {name for each in DRIVERS for name in declarations(each)}
    for name, declared in declarations(settings_class).items():
        assert declared.section in SECTIONS and declared.help.strip(), name
        assert {*declared.only, *declared.never} <= known, name
        assert declared.needs is None or declared.needs in names, name
    dozen = [name for name, declared in declarations(settings_class).items() if declared.basic]
    assert 8 <= len(dozen) <= 17


@pytest.mark.parametrize("learner", sorted(LEARNERS))
def test_every_learner_alone_is_accepted_with_defaults_of_its_own(learner):
    for kind, settings_class in (("classes", FewshotSettings), ("values", RegressionSettings)):
        if kind not in LEARNERS[learner].predicts:
            continue
        settings = read(f"--learner={learner}", settings_class=settings_class)
        check_together(settings)
        own = LEARNERS[learner].defaults.get(kind, {})
        names = {field.name for field in dataclasses.fields(settings_class)}
        assert set(own) <= names, f"{learner} has defaults of no option"
        for name in set(own) - {"train_ways", "train_shots"}:
            assert getattr(settings, name) == own[name]
        plan = resolve(settings)
        assert set(plan.inner.own) <= set(LEARNERS[learner].options)


@pytest.mark.parametrize("learner", sorted(LEARNERS))
def test_an_option_of_a_learner_is_no_flag_of_a_driver(learner):
    for settings_class in (FewshotSettings, RegressionSettings, PertaskSettings, RlSettings):
        declared = declarations(settings_class)
        for name in LEARNERS[learner].options:
            assert learner in declared[name].only.get("learner", ()), (
                f"{name} of {learner} is a flag of {settings_class.__name__} already; name it otherwise"
            )


@pytest.mark.parametrize(
    "flags",
    [
        "--learner=maml_plus_plus --outer=es",
        "--learner=maml_plus_plus --attack=fgsm",
        "--learner=baseline --model=mlp",
        "--learner=reptile --outer=backprop --multi_step_loss=10 --inner_steps=3",
    ],
)
def test_defaults_of_a_learner_never_refuse_what_is_given(flags):
    settings = read(*flags.split())
    check_together(settings)
    check_fewshot(settings)


def test_defaults_that_follow_a_given_flag_are_left_out():
    assert read("--learner=meta_sgd", "--inner_steps=7").steps_at_test == 7
    assert read("--learner=protonet", "--train_ways=5").meta_batch == 16
    assert read("--learner=reptile", "--outer=backprop").outer_lr == 2e-3


def test_defaults_of_a_learner_follow_the_kind_of_the_targets():
    classes = read("--learner=cavia", settings_class=PertaskSettings)
    assert (classes.inner_lr, classes.inner_steps) == (5.0, 2)
    values = read("--learner=cavia", "--kind=values", settings_class=PertaskSettings)
    usual = PertaskSettings()
    assert (values.inner_lr, values.inner_steps) == (usual.inner_lr, usual.inner_steps)
    # Of a table whose kind is found when it is read, those for classes are taken back, and no others.
    given = read("--learner=cavia", "--inner_steps=7", settings_class=PertaskSettings)
    found = settled(given, {"kind": "values"})
    assert (found.inner_lr, found.inner_steps, found.kind) == (usual.inner_lr, 7, "values")
    assert settled(classes, {"kind": "binary"}).inner_lr == 5.0
    # Tasks from tables have no ways to train at, so they stay as many.
    assert read("--learner=protonet", settings_class=PertaskSettings).meta_batch == usual.meta_batch


def test_flags_win_over_defaults_of_the_learner():
    settings = read("--learner=cavia", "--inner_lr=0.7")
    assert (settings.inner_lr, settings.inner_steps) == (0.7, 2)
    assert settings.own_options == {"context_size": 100}
    assert read("--learner=imaml", "--strength=3").regularization == 3.0
    assert learner_defaults(FewshotSettings)["cavia"]["inner_lr"] == 5.0
    # Recorded as settings, so that a later default changes no run that has begun.
    assert (read("--learner=imaml").regularization, read("--learner=imaml").damping) == (0.5, 2.0)


@pytest.mark.parametrize(
    ("old", "name", "value"),
    [
        ("--beside_support", "one_query_at_a_time", True),
        ("--kernels=lax", "implementation", "lax"),
        ("--strength=3", "regularization", 3.0),
        ("--regularisation=3", "regularization", 3.0),
    ],
)
def test_former_names_work_and_warn(capsys, old, name, value):
    assert getattr(read(old), name) == value
    flag = old.partition("=")[0]
    assert f"warning: {flag} is now --{name}; the old name goes" in capsys.readouterr().err


def test_records_of_an_earlier_release_have_todays_names():
    record = {"beside_support": True, "strength": None, "regularisation": 2.0, "ways": 5}
    found = with_todays_names(FewshotSettings, record)
    assert found == {"one_query_at_a_time": True, "regularization": 2.0, "ways": 5}


@dataclasses.dataclass(frozen=True)
class Small:
    a: int = option(0, "A.", section="Run", neutral=(7,), only={"b": ("x",)})
    b: str = option("y", "B.", section="Run", basic=True)
    c: bool = option(False, "C.", section="Run", needs="a", never={"b": ("x",)})


def test_combinations_are_refused_with_both_values():
    for settings in (Small(), Small(a=7), Small(a=1, b="x"), Small(a=7, c=True)):
        check_combinations(settings)
    for settings, says in (
        (Small(a=1), "--a=1 does not go with --b=y; it is for x; leave out one of the two."),
        (Small(c=True), "--c=true needs --a."),
        (Small(a=1, b="x", c=True), "--c=true does not go with --b=x; leave out one of the two."),
    ):
        with pytest.raises(UsageError) as error:
            check_combinations(settings)
        assert str(error.value) == says


def test_help_shows_the_basic_options_and_helpfull_all():
    short, full = (help_text(Small, "Words.", full=full) for full in (False, True))
    assert "--b" in short and "--a" not in short and "1 of 3 options; --helpfull" in short
    assert "--a" in full and "--c" in full
    whole = help_text(FewshotSettings, "Words.", full=True)
    assert "cavia: --inner_steps=2 --test_inner_steps=2 --inner_lr=5.0" in whole


def test_an_unknown_section_or_scope_is_refused():
    with pytest.raises(ValueError, match="section is 'Elsewhere'"):
        option(1, "A.", section="Elsewhere")
    with pytest.raises(ValueError, match="scope is 'moon'"):
        option(1, "A.", section="Run", scope="moon")


def test_a_default_of_a_learner_gives_way_to_what_it_does_not_go_with():
    settings = read("--learner=imaml")
    assert settings.damping == LEARNERS["imaml"].defaults["classes"]["damping"]
    settings = read("--learner=imaml", "--solver=identity")
    check_together(settings)
    assert settings.damping is None and settings.own_options["damping"] == 0.0
    with pytest.raises(
        UsageError, match="--solver_steps=3 does not go with --solver=identity; it is for cg"
    ):
        check_together(read("--learner=imaml", "--solver=identity", "--solver_steps=3"))
