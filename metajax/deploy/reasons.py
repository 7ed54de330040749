"""Reasons for a classifier's answer, and the page that shows them."""

import base64
import functools
import html
import io
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metajax import explain
from metajax.data import bundles
from metajax.deploy.pictures import ImageForm
from metajax.deploy.spec import LearnerSpec, make_learner_of
from metajax.learners.states import ABSENT
from metajax.types import Array, Batch, Learner, Meta

STEPS = 256
"""Gradients of an attribution."""
POWER = 4.0
"""Exponent of its parts, which norms of single pictures need next to the blank picture."""


class Example(NamedTuple):
    """An example that was learned, and what it did for an answer.

    Attributes:
      label: Class of the example.
      number: Place of the example among the examples of its class.
      influence: Probability of the answer, less the probability if this example had not been learned.
      pixels: Picture [H, W, C] uint8.
    """

    label: str
    number: int
    influence: float
    pixels: np.ndarray


class Reasons(NamedTuple):
    """Reasons for an answer.

    Attributes:
      label: Class that was answered.
      probability: Probability of that class.
      examples: All examples that were learned, the most helpful first.
      pixels: The picture in question [H, W, C] uint8.
      attribution: Shares of the pixels in the probability, [H, W]; they sum to the probability, less the
        probability for a picture of the mean color of the training.
      baseline: The probability for that mean picture.
    """

    label: str
    probability: float
    examples: tuple[Example, ...]
    pixels: np.ndarray
    attribution: np.ndarray
    baseline: float

    def save(self, path: str | Path) -> Path:
        """Writes a page with the picture, its attribution, and the examples with their influence.

        Args:
          path: File to write, .html.

        Returns:
          The path.

        Raises:
          DataError: If the file cannot be written.
        """
        return bundles.write_file(path, _page(self).encode())


def reasons_of(
    spec: LearnerSpec,
    form: ImageForm,
    meta: Meta,
    examples: dict[str, np.ndarray],
    pixels: np.ndarray,
    temperature: float,
) -> Reasons:
    """Explains the answer to one picture.

    Args:
      spec: Description of the learner.
      form: Form of the pictures.
      meta: Meta-parameters.
      examples: Pictures [n, H, W, C] uint8 by class, two classes or more.
      pixels: Picture in question [H, W, C] uint8.
      temperature: Divisor of the logits.

    Returns:
      The reasons.
    """
    counts = [len(pictures) for pictures in examples.values()]
    labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    support = np.concatenate(list(examples.values()))
    run = _compiled(spec.key(), form, len(counts))
    probabilities, influence, attribution, baseline = jax.tree.map(
        np.asarray, run(meta, support, labels, pixels, np.float32(temperature))
    )
    best = int(probabilities.argmax())
    names = list(examples)
    numbers = np.concatenate([np.arange(count) for count in counts])
    found = [
        Example(names[label], int(number), float(value), picture)
        for label, number, value, picture in zip(labels, numbers, influence, support, strict=True)
    ]
    found.sort(key=lambda example: -example.influence)
    return Reasons(
        names[best], float(probabilities[best]), tuple(found), pixels, attribution, float(baseline)
    )


@functools.lru_cache(maxsize=16)
def _compiled(spec_key: str, form: ImageForm, classes: int) -> Callable[..., tuple[Array, ...]]:
    """Compiles the explanation for a learner and a number of classes."""
    spec = LearnerSpec.of_key(spec_key)
    ways = classes if spec.any_ways else spec.ways
    learner = make_learner_of(spec, ways=ways, alone=True)
    key = jax.random.key(0)

    def probabilities(outputs: Array, temperature: Array) -> Array:
        logits = jnp.where(jnp.arange(ways) < classes, outputs / temperature, ABSENT)
        return jax.nn.softmax(logits, -1)[..., :classes]

    @jax.jit
    def run(meta: Meta, support: Array, labels: Array, pixels: Array, temperature: Array):
        batch = Batch(form.normalized(support), labels)
        image = form.normalized(pixels)
        fast = _adapted(learner, meta, batch, key)

        def answer(image: Array) -> Array:
            return probabilities(learner.predict(meta, fast, image[None])[0], temperature)

        whole = answer(image)
        best = whole.argmax()
        influence = explain.leave_one_out(
            learner,
            meta,
            key,
            batch,
            image[None],
            lambda outputs: probabilities(outputs, temperature)[:, best],
        )[0]
        blank = jnp.zeros_like(image)
        shares = explain.integrated_gradients(
            lambda image: answer(image)[best], image, blank, steps=STEPS, power=POWER
        )
        return whole, influence, shares.sum(-1), answer(blank)[best]

    return run


def _adapted(learner: Learner, meta: Meta, batch: Batch, key: Array):
    return learner.adapt(meta, learner.start(meta, key, batch), key, batch)


def _page(reasons: Reasons) -> str:
    """Writes the page in HTML, with its pictures inside."""
    largest = max(abs(example.influence) for example in reasons.examples) or 1.0
    rows = "".join(_row(example, largest) for example in reasons.examples)
    label = html.escape(reasons.label)
    share = reasons.probability - reasons.baseline
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Why {label}?</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 42rem; margin: 2rem auto; padding: 0 1rem }}
img {{ width: 9rem; image-rendering: pixelated; border: 1px solid #ccc }}
td img {{ width: 3rem }} td {{ padding: .2rem .6rem; vertical-align: middle }}
.bar {{ display: inline-block; height: .8rem }}
</style>
<h1>{label}, {reasons.probability:.1%}</h1>
<p><img alt="the picture" src="{_png(reasons.pixels)}">
<img alt="its attribution" src="{_png(_colored(reasons.attribution))}"></p>
<p>Red parts speak for the answer and blue parts against it. Together they make {share:+.1%}, the difference
to the answer for a picture of the training's mean color.</p>
<h2>Examples, the most helpful first</h2>
<p>The influence of an example is the probability of the answer, less what it would be if the example had
not been learned.</p>
<table>{rows}</table></html>
"""


def _row(example: Example, largest: float) -> str:
    width, color = (
        12 * abs(example.influence) / largest,
        "#c33" if example.influence > 0 else "#36c",
    )
    return (
        f'<tr><td><img alt="" src="{_png(example.pixels)}"></td><td>{html.escape(example.label)}</td>'
        f"<td>{example.influence:+.3f}</td>"
        f'<td><span class="bar" style="width:{width:.2f}rem;background:{color}"></span></td></tr>'
    )


def _colored(attribution: np.ndarray) -> np.ndarray:
    """Colors an attribution: red for positive, blue for negative, white for nothing."""
    strength = attribution / (np.abs(attribution).max() or 1.0)
    fade = 255 * (1 - np.abs(strength))
    red, blue = np.where(strength >= 0, 255, fade), np.where(strength <= 0, 255, fade)
    return np.stack([red, fade, blue], -1).astype(np.uint8)


def _png(pixels: np.ndarray) -> str:
    """Writes a picture into an address of data."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
