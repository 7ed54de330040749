"""The documentation: links, commands, flags and names in it exist, and the README's snippet runs."""

import dataclasses
import functools
import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
import unicodedata
import warnings
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

import metajax
from metajax import toys
from metajax.deploy import command

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
# Pages that the build writes, from what they are written from.
GENERATED = ("generated/api/index.md", "generated/flags/index.md", "generated/contributing.md")
GENERATED += ("generated/changelog.md",)
PAGES = sorted(p for p in DOCS.rglob("*.md") if not {"_build", "generated"} & set(p.parts))
ALL = [ROOT / "README.md", *PAGES]
KNOWN_FLAGS = {"flagfile", "help", "helpfull"}  # of every driver, and in no settings

sys.path.insert(0, str(DOCS / "_ext"))
import api  # noqa: E402
import flag_pages  # noqa: E402

each_page = pytest.mark.parametrize("page", ALL, ids=lambda page: str(page.relative_to(ROOT)))


def prose(page: Path) -> str:
    """Reads a page without its fenced blocks."""
    return re.sub(
        r"^(`{3,}).*?^\1\s*$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE
    )


def slug(heading: str) -> str:
    """Makes the anchor of a heading, as GitHub and MyST do."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    kept = (c for c in text if c in " -_" or unicodedata.category(c)[0] in "LN")
    return "".join(kept).replace(" ", "-")


@functools.cache
def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#{1,4} (.*)$", prose(page), re.MULTILINE)
    return {slug(heading) for heading in headings}


@each_page
def test_links_lead_somewhere(page):
    missing = []
    for target in re.findall(r"\]\(<?([^)\s>]+)>?\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if file.is_relative_to(DOCS) and file.relative_to(DOCS).as_posix() in GENERATED:
            continue
        if not file.is_file() or (anchor and anchor not in anchors(file)):
            missing.append(target)
    assert not missing


def test_every_page_is_in_the_table_of_contents():
    listed = re.findall(r"```\{toctree\}.*?```", (DOCS / "index.md").read_text("utf-8"), re.DOTALL)
    entries = {
        f"{line}.md" for block in listed for line in block.split("\n") if re.match(r"[\w/]+$", line)
    }
    pages = {page.relative_to(DOCS).as_posix() for page in PAGES} - {"index.md"}
    assert entries == pages | set(GENERATED)


def commands(page: Path) -> list[list[str]]:
    """Finds the commands `python -m ...` of a page, with their arguments, in blocks and in code spans."""
    text = page.read_text("utf-8").replace("\\\n", " ")
    found = []
    for block in re.findall(
        r"^```(?:bash|console|\{code-cell\})\n(.*?)^```", text, re.DOTALL | re.MULTILINE
    ):
        found += re.findall(r"python -m (\S.*)$", block, re.MULTILINE)
    for span in re.findall(r"(?<!`)`([^`]*python -m [^`]+)`(?!`)", text):
        found += [" ".join(span.split()).split("python -m ", 1)[1]]
    arguments = []
    for line in found:
        line = re.split(r" (?:&&|2>|#)", line)[0].rstrip('"')
        arguments.append(shlex.split(line.split(" && ")[0]))
    return arguments


@functools.cache
def flags_of(driver: str) -> set[str]:
    names = {flag.name for flag in flag_pages.flags_of(driver)}
    return names | {f"no{name}" for name in names} | KNOWN_FLAGS


@each_page
def test_commands_name_modules_and_flags(page):
    for module, *arguments in commands(page):
        module = in_checkout(module)
        with warnings.catch_warnings():
            warnings.simplefilter("error", DeprecationWarning)
            # Sphinx comes with the extra `docs`, which the tests need not have.
            assert module == "sphinx" or importlib.util.find_spec(module), module
        if module not in flag_pages.DRIVERS:
            continue
        given = {a.split("=")[0].removeprefix("--") for a in arguments if a.startswith("--")}
        known = flags_of(module)
        if module == "experiments.search" and arguments:  # the first names the driver
            known = known | flags_of(f"experiments.{arguments[0]}")
        assert given <= known, f"{module}: {sorted(given - known)}"


@each_page
def test_flags_in_the_text_are_some_drivers(page):
    known = set.union(*map(flags_of, flag_pages.DRIVERS)) | benchmark_flags() | command_flags()
    spans = re.findall(r"(?<!`)`([^`]+)`(?!`)", prose(page))
    spans = [span for span in spans if "-m sphinx" not in span and not span.startswith("pip ")]
    named = {flag for span in spans for flag in re.findall(r"(?:^|\s)--(\w+)", span)}
    assert named <= known, sorted(named - known)


@functools.cache
def command_flags() -> set[str]:
    """Finds the flags of `python -m metajax`."""
    (commands,) = (action.choices for action in command._parser()._actions if action.choices)
    options = [name for parser in commands.values() for name in parser._option_string_actions]
    return {name.removeprefix("--") for name in options}


@functools.cache
def benchmark_flags() -> set[str]:
    """Finds the flags that benchmarks declare, one way or the other, in their source."""
    text = "".join(path.read_text("utf-8") for path in (ROOT / "benchmarks").rglob("*.py"))
    return set(re.findall(r"--(\w+)", text))


@each_page
def test_names_of_metajax_resolve(page):
    names = set(re.findall(r"(?<![\w/.-])metajax(?:\.[A-Za-z_]\w*)+", page.read_text("utf-8")))
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        for name in sorted(names):
            resolve(name)


def in_checkout(name: str) -> str:
    """Names a module as the checkout does, which has the drivers next to metajax and not in it."""
    return re.sub(r"^metajax\.experiments\b", "experiments", name)


def resolve(name: str) -> object:
    """Imports a dotted name; attributes of a class may be fields without a default."""
    parts = in_checkout(name).split(".")
    value = importlib.import_module(parts[0])
    for depth, part in enumerate(parts[1:], 2):
        fields = (
            [f.name for f in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else []
        )
        if part in fields:
            return None
        try:
            value = getattr(value, part)
        except AttributeError:
            try:
                value = importlib.import_module(".".join(parts[:depth]))
            except ImportError:
                raise AssertionError(f"{name} does not exist") from None
    return value


def test_old_names_are_found_out():
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        with pytest.raises(DeprecationWarning, match="the old name goes"):
            resolve("metajax.closed_form")
    with pytest.raises(AssertionError, match="does not exist"):
        resolve("metajax.learners.nonsense")


def test_the_snippet_of_the_readme_runs():
    _, snippet = python_blocks(ROOT / "README.md")
    # Pasted into a fresh interpreter, where warnings are seen too.
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", "-c", snippet],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert not done.returncode, done.stderr
    assert 0 < float(done.stdout) < 5


def test_the_readme_learns_symbols(tmp_path, monkeypatch, capsys):
    pytest.importorskip("safetensors")
    image = pytest.importorskip("PIL.Image")
    monkeypatch.chdir(tmp_path)
    for name, rows in (("bar", slice(25, 35)), ("box", slice(10, 50))):
        pixels = np.full((60, 60), 255, np.uint8)
        pixels[rows, 10:50] = 0
        (tmp_path / "symbols" / name).mkdir(parents=True)
        image.fromarray(pixels).save(tmp_path / "symbols" / name / "1.png")
    image.fromarray(np.roll(pixels, 3, 0)).save(tmp_path / "new.png")
    snippet, _ = python_blocks(ROOT / "README.md")
    exec(snippet, {})
    assert "label='box'" in capsys.readouterr().out
    assert (tmp_path / "why.html").exists() and metajax.load("mine").labels == ("bar", "box")


def test_the_readme_is_short_and_keeps_its_commands():
    lines = (ROOT / "README.md").read_text("utf-8").split("\n")
    assert len(lines) < 80
    start = "python -m venv .venv && . .venv/bin/activate && pip install -r requirements.txt && "
    assert [line.removeprefix(start) for line in lines if line.startswith(start)] == [
        "python -m experiments.fewshot",
        "python -m pytest",
    ]


def test_the_example_of_rows_learns():
    text = (DOCS / "howto" / "rows.md").read_text("utf-8")
    cells = re.findall(r"^```\{code-cell\}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    names = {}
    exec(cells[0], names)
    losses = names["metrics"]["loss"]
    assert losses.shape == (100,) and losses[-20:].mean() < 0.6 * losses[:5].mean()


def python_blocks(page: Path) -> list[str]:
    text = page.read_text("utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@each_page
def test_blocks_of_python_compile(page):
    for block in python_blocks(page):
        compile(block, str(page), "exec")


@pytest.mark.parametrize(
    "page", ["concepts/training", "howto/estimators", "howto/adversarial", "howto/sequences"]
)
def test_blocks_that_take_names_for_granted_run(page):
    model, loss = toys.toy_model(3), metajax.cross_entropy
    rule = optax.sgd(0.1)
    episode = toys.toy_episode(jax.random.key(0))
    learner = metajax.maml(model, loss, rule=rule, steps=5)
    objective = metajax.query_objective(learner, loss)

    def sample(data, key):
        return toys.toy_episode(key)

    def scores(meta, data):
        return objective(meta, jax.random.key(2), episode)[1]["loss"]

    names = {"jax": jax, "metajax": metajax, "optax": optax, "loss": loss, "sample": sample}
    names |= {"learner": learner, "one_step": metajax.maml(model, loss, rule=rule), "data": None}
    names |= {"inputs": episode.support.inputs, "optimizer": optax.adam(0.01), "scores": scores}
    names |= {
        "meta": learner.init(jax.random.key(1), episode.support.inputs),
        "like": episode.support,
    }
    names |= {"key": jax.random.key(3), "stream": [episode.support, episode.query]}
    meta_grad = metajax.backprop(objective)
    names["step"] = metajax.make_step(meta_grad, names["optimizer"], sample, num_tasks=2)
    for block in python_blocks(DOCS / f"{page}.md"):
        exec(block, names)
    if "attack" in names:
        value, metrics = names["objective"](names["meta"], names["key"], episode)
        assert value > 0 and metrics["loss"] > 0
    if "histories" in names:
        assert names["histories"].evaluated.shape == (4, 10)
    if page == "howto/estimators":
        state = metajax.init_state(names["meta"], names["optimizer"], names["key"])
        assert names["step"](state, None)[1]["loss"] > 0


def test_every_exported_name_has_a_place_in_the_reference():
    pages = api.pages()
    for room in api.rooms():
        page = pages[room.replace(".", "_")]
        found = set(re.findall(r"^:{5,}\{py:\w+\} (\w+)", page, re.MULTILINE))
        assert f"{{py:module}} {room}\n" in page and found == set(api.exports(room))
    assert set(api.homes()) == set(metajax.__all__)


def test_every_flag_has_a_place_in_the_reference():
    for driver in flag_pages.DRIVERS:
        page = flag_pages.driver_page(driver)
        flags = flag_pages.flags_of(driver)
        assert flags and all(f"`--{flag.name}`" in page and flag.help for flag in flags)


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        (
            "Adds.\n\nArgs:\n  a: Number\n    of things.\n  b: <b>.",
            "- **`a`**: Number of things.\n- **`b`**: \\<b>.",
        ),
        ("Adds.\n\nExample:\n  >>> 1 + 1\n  2", "```pycon\n>>> 1 + 1\n2\n```"),
        ("Adds.\n\nReference: A et al.,\n  2017.", "**Reference**: A et al., 2017."),
        ("Adds:\n\n    x = [1]\n\nThen.", "```python\nx = [1]\n```"),
    ],
)
def test_docstrings_become_markdown(docstring, expected):
    assert expected in api.markdown(docstring)
