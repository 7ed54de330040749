"""The package as a whole: its size, its example, what an import loads, and old names."""

import doctest
import importlib
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import metajax
from metajax import renamed

# Public names of the modules of 0.1 that were split; each must still be found under the old module.
OLD_NAMES = {
    "metajax.evolution": "PesMemory evolution pes",
    "metajax.metagrad": "EstimateFn backprop mean_over_tasks means reptile scheduled switch_at",
    "metajax.objectives": "adapt_to_task annealed_weights multi_step_objective query_objective query_outputs",
    "metajax.sharding": "BOTH LEAST_DIVIDED SHARDS TASKS AnyMetaGrad divided draw_over_tasks fetch "
    "over_episodes over_tasks place replicated shardings task_mesh",
    "metajax.train": "DrawFn EvaluateFn History RunFn SampleFn StepFn TrainState draw_tasks init_state "
    "make_evaluate make_run make_step many_steps map_by_task running_averages skip_nonfinite steps_up_to",
}


@pytest.fixture
def caught():
    """Records warnings instead of raising them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught


def messages(caught):
    return [str(one.message) for one in caught if one.category is DeprecationWarning]


def test_the_namespace_stays_small():
    assert len(metajax.__all__) <= 51
    assert sorted(set(metajax.__all__)) == metajax.__all__


def test_the_example_of_the_package_runs():
    found = doctest.testmod(metajax)
    assert found.attempted > 10 and not found.failed


def test_importing_metajax_leaves_optional_packages_out():
    code = "import sys, metajax; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    loaded = set(done.stdout.split())
    assert not loaded & {f"metajax.{room}" for room in ("models", "toys", "zoo")}
    assert set(metajax._ROOMS) <= set(dir(metajax))


@pytest.mark.parametrize("old", renamed.ATTRIBUTES)
def test_old_attributes_are_found_and_name_the_new_ones(old, caught):
    new = renamed.ATTRIBUTES[old]
    value = getattr(metajax, old)
    assert messages(caught) == [
        f"metajax.{old} is now {new}; the old name goes with the next release."
    ]
    home, _, name = new.rpartition(".")
    assert value is getattr(importlib.import_module(home), name)


def test_the_warning_of_an_old_attribute_is_at_the_line_that_uses_it(caught):
    assert metajax.averaged is metajax.learners.model_soup
    assert metajax.models.build is metajax.zoo.build_model
    assert [warning.filename for warning in caught] == [__file__] * 2


@pytest.mark.parametrize("old", renamed.MODULE_ATTRIBUTES)
def test_old_modules_have_the_old_names_of_renamed_attributes(old, caught):
    module = importlib.import_module(f"metajax.{old}")
    for name, new in renamed.MODULE_ATTRIBUTES[old].items():
        home, _, attribute = new.rpartition(".")
        assert getattr(module, name) is getattr(importlib.import_module(home), attribute)


def test_an_old_module_replaces_no_function_of_its_name(caught):
    sys.modules.pop("metajax.learners.ensemble", None)
    importlib.import_module("metajax.learners.ensemble")
    assert callable(metajax.learners.ensemble)
    assert metajax.scoring is metajax.objectives.scoring


@pytest.mark.parametrize("old", renamed.MODULES)
def test_old_modules_are_found_and_name_the_new_ones(old, caught):
    new = f"metajax.{renamed.MODULES[old]}"
    sys.modules.pop(f"metajax.{old}", None)  # imported before, it would not warn again
    module = importlib.import_module(f"metajax.{old}")
    assert f"metajax.{old} is now {new}; the old name goes with the next release." in messages(
        caught
    )
    assert module is importlib.import_module(new)
    assert module.__name__ == new and module.__spec__.name == new


@pytest.mark.parametrize("module", OLD_NAMES)
def test_old_modules_have_their_old_names(module, caught):
    found = importlib.import_module(module)
    assert all(hasattr(found, name) for name in OLD_NAMES[module].split())


def test_an_evaluation_under_its_old_name_names_the_new_module(caught):
    assert metajax.train.make_evaluate is metajax.make_evaluate
    new = "metajax.evaluate.make_evaluate"
    assert messages(caught) == [
        f"metajax.train.make_evaluate is now {new}; the old name goes with the next release."
    ]


def test_rules_are_a_package_of_their_short_name():
    assert importlib.import_module("metajax.rules") is metajax.rules is metajax.inner.rules


def test_unknown_attributes_are_errors():
    with pytest.raises(AttributeError, match="module 'metajax' has no attribute 'mmaml'"):
        _ = metajax.mmaml
    with pytest.raises(AttributeError, match=r"'metajax\.train' has no attribute 'mmaml'"):
        _ = metajax.train.mmaml
