"""Bundles that come with metajax, and runs of one-shot classification."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

import metajax
from metajax import deploy
from metajax.deploy.command import main
from metajax.deploy.shipped import find_bundle
from metajax.errors import DataError

pytest.importorskip("safetensors")

SHAPES = ("circle", "cross", "square", "triangle", "zigzag")


def symbol(name, random, side=60):
    """Draws a shape in black ink on white paper, at a random place and size."""
    image = Image.new("L", (side, side), 255)
    pen = ImageDraw.Draw(image)
    size, x, y = random.uniform(14, 20), *random.uniform(26, 34, 2)
    corners = {
        "square": [(-1, -1), (1, -1), (1, 1), (-1, 1), (-1, -1)],
        "triangle": [(0, -1), (1, 1), (-1, 1), (0, -1)],
        "zigzag": [(-1, -1), (-0.5, 1), (0, -1), (0.5, 1), (1, -1)],
    }
    if name == "circle":
        pen.ellipse([x - size, y - size, x + size, y + size], outline=0, width=4)
    elif name == "cross":
        pen.line([x - size, y, x + size, y], fill=0, width=4)
        pen.line([x, y - size, x, y + size], fill=0, width=4)
    else:
        pen.line([(x + size * a, y + size * b) for a, b in corners[name]], fill=0, width=4)
    return image


def symbols(count, seed):
    """Draws shapes as arrays by name."""
    random = np.random.default_rng(seed)
    return {name: [np.asarray(symbol(name, random)) for _ in range(count)] for name in SHAPES}


@pytest.fixture(scope="module")
def model():
    return metajax.load("glyphs")


def test_it_learns_drawn_symbols_from_one_example_each(model):
    learned = model.learn(symbols(1, seed=0))
    found = learned.evaluate(symbols(10, seed=1))
    assert found.examples == 50 and found.accuracy >= 0.9  # chance is 0.2
    every = [picture for pictures in symbols(3, seed=2).values() for picture in pictures]
    alone = np.concatenate([learned.probabilities([picture]) for picture in every])
    np.testing.assert_allclose(alone, learned.probabilities(every), atol=1e-6)


def test_its_files_are_small_and_say_what_it_is(model):
    files = list(find_bundle("glyphs").iterdir())
    assert sum(file.stat().st_size for file in files) <= 600_000
    facts, spec = model.bundle.training, model.bundle.spec
    assert spec.learner == "protonet" and not spec.sees_the_batch and model.labels == ()
    card = (find_bundle("glyphs") / "README.md").read_text()
    assert f"{100 * facts['test_accuracy']:.2f} ± {100 * facts['ci95']:.2f}" in card
    assert facts["split"].startswith("symbols, of glyphs and omniglot")


def test_a_folder_comes_before_a_name(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model.learn(symbols(1, seed=0)).save("glyphs")
    assert metajax.load("glyphs").labels == SHAPES
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match=r"other is no bundle: it has no model\.json\. A run"):
        metajax.load("other")
    with pytest.raises(DataError, match=r"nowhere is no bundle.* one of: 'glyphs'$"):
        metajax.load("nowhere")
    assert deploy.shipped_names() == ("glyphs",)


def lay_out(root, runs=2):
    """Writes runs as Lake did, with each class's question under another number than its example."""
    random = np.random.default_rng(3)
    for run in (f"run{number:02}" for number in range(1, runs + 1)):
        (root / run / "training").mkdir(parents=True)
        (root / run / "test").mkdir()
        order, lines = random.permutation(len(SHAPES)), []
        for number, name in enumerate(SHAPES, 1):
            symbol(name, random).save(root / run / "training" / f"class{number:02}.png")
        for item, number in enumerate(order, 1):
            symbol(SHAPES[number], random).save(root / run / "test" / f"item{item:02}.png")
            lines.append(f"{run}/test/item{item:02}.png {run}/training/class{number + 1:02}.png")
        (root / run / "class_labels.txt").write_text("\n".join(lines) + "\n")
    return root


def test_runs_are_answered_as_by_hand(model, tmp_path, capsys):
    root = lay_out(tmp_path)
    shares = []
    for run in ("run01", "run02"):
        lines = (root / run / "class_labels.txt").read_text().split("\n")[:-1]
        pairs = [line.split() for line in lines]
        given = {
            example: [root / example] for _, example in sorted(pairs, key=lambda pair: pair[1])
        }
        answers = model.learn(given).predict([root / question for question, _ in pairs])
        rights = [answer.label == pair[1] for answer, pair in zip(answers, pairs, strict=True)]
        shares.append(np.mean(rights))
    found = deploy.evaluate_runs(model.learn(symbols(1, seed=0)), root)
    assert list(found.by_run.values()) == shares and found.questions == 10
    assert found.accuracy == pytest.approx(np.mean(shares)) and found.accuracy >= 0.8
    assert main(["evaluate", "glyphs", str(root)]) == 0
    said = capsys.readouterr().out
    assert f"accuracy  {found.accuracy:.2%}" in said and "over 2 runs of 10 questions" in said


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("run01/test/item01.png", "line 1: run01/test/item01.png is no question and its example"),
        ("run01/../x.png run01/training/class01.png", "x.png is not in run01"),
        ("/etc/passwd run01/training/class01.png", "/etc/passwd is not in run01"),
        ("run01/test/item01.png run01/training/none.png", "none.png is not a readable image"),
        ("", "has no questions"),
        (2 * "run01/test/item01.png run01/training/class01.png\n", "line 2: .* is asked twice"),
    ],
)
def test_damaged_runs_are_one_line(model, tmp_path, labels, message):
    root = lay_out(tmp_path, runs=1)
    (root / "run01" / "class_labels.txt").write_text(labels)
    with pytest.raises(DataError, match=message) as error:
        deploy.evaluate_runs(model, root)
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match="has no runs"):
        deploy.evaluate_runs(model, tmp_path / "run01")
