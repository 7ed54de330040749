"""The language of docstrings, and the examples in them."""

import doctest
import importlib
import re
import sys
import textwrap
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from helpers import language

ROOT = Path(__file__).parents[1]
FOLDERS = ("metajax", "experiments", "benchmarks")
ROOMS = (
    *("metajax.baselines", "metajax.data.features"),
    *("metajax", "metajax.data", "metajax.data.tables", "metajax.episodes", "metajax.inner"),
    "metajax.inner.rules",
    *(
        "metajax.learners",
        "metajax.losses",
        "metajax.metagrads",
        "metajax.metrics",
        "metajax.models",
    ),
    *("metajax.nn", "metajax.objectives", "metajax.sharding", "metajax.train", "metajax.toys"),
    *(
        "metajax.trees",
        "metajax.zoo",
        "metajax.rl",
        "metajax.rl.envs",
        "metajax.rl.solve",
        "metajax.rl.strategies",
    ),
)
# What an example may use without an import.
NAMES = {"jax": jax, "jnp": jnp, "np": np, "optax": optax, "metajax": metajax}


def exported(room: str) -> dict[str, object]:
    """Names that a room exports."""
    module = importlib.import_module(room)
    names = getattr(module, "__all__", None)
    if names is None:
        own = {n: v for n, v in vars(module).items() if getattr(v, "__module__", "") == room}
        names = [name for name in own if not name.startswith("_")]
    return {name: getattr(module, name) for name in names}


def unfinished(complaints: list[str]) -> str:
    """Lists complaints, one a line."""
    return "\n" + "\n".join(complaints)


@pytest.mark.parametrize("folder", FOLDERS)
def test_docstrings_and_comments_keep_the_rules(folder):
    complaints = [
        c for path in sorted((ROOT / folder).rglob("*.py")) for c in language.check_file(path)
    ]
    assert not complaints, unfinished(complaints)


@pytest.mark.parametrize("room", ROOMS)
def test_exported_functions_have_arguments_results_and_an_example(room):
    found = [
        c for name, value in exported(room).items() for c in language.check_export(name, value)
    ]
    assert not found, unfinished(found)


# What `metajax` itself exports is from the other rooms.
@pytest.mark.parametrize("room", [room for room in ROOMS if room != "metajax"])
def test_examples_run(room):
    finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner(verbose=False)
    for name, value in exported(room).items():
        for test in finder.find(value, name, module=False, globs=dict(NAMES)):
            test.globs |= {name: value}
            assert runner.run(test).failed == 0, f"the example of {name} failed"


def test_the_example_of_contributing_keeps_the_rules_and_its_test_passes(tmp_path, monkeypatch):
    page = (ROOT / "CONTRIBUTING.md").read_text()
    _, _, section = page.partition("## Add a learner")
    learner, entry, test = (
        textwrap.dedent(block) for block in re.findall(r"```python\n(.*?)```", section, re.S)
    )
    path = tmp_path / "biases.py"
    path.write_text(learner)
    assert not language.check_file(path)
    names: dict = {}
    exec(learner, names)
    assert "of_network(bias_tuning)" in entry and "option(bool" in entry
    module = types.ModuleType("metajax.learners.gradient.biases")
    module.bias_tuning = names["bias_tuning"]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(test, found := {})
    found["test_biases_and_the_head_move_and_nothing_else"]()


def test_the_rules_catch_what_they_are_for():
    bad = '''
def f(x):
    """What is told of x.

    Args:
      x: of any kind.
    """
'''
    tree = language.ast.parse(bad)
    ((node, text, _), *_) = language.docstrings(tree)
    complaints = [
        c for _, c in [*language.check_docstring(node, text), *language.check_dialect(text)]
    ]
    assert len(complaints) == 3
