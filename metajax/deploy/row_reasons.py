"""Reasons for a classifier's answer to a text or a row of a table, and the page that shows them."""

import functools
import html
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metajax import explain
from metajax.data import bundles
from metajax.deploy.compiled import adapt_to, answers_of
from metajax.deploy.rows import RowForm
from metajax.deploy.spec import LearnerSpec, make_learner_of
from metajax.errors import DataError
from metajax.learners.states import ABSENT
from metajax.types import Array, Batch, Meta, Tree

MOST_WORDS = 500
"""Most words of a text whose shares are computed."""

_WORD = re.compile(r"\S+")


class RowExample(NamedTuple):
    """A row that was learned, and what it did for an answer.

    Attributes:
      label: Class of the example.
      number: Place of the example among the examples of its class.
      influence: Probability of the answer, less the probability if this example had not been learned.
      row: Values by column.
    """

    label: str
    number: int
    influence: float
    row: Mapping[str, Any]


class Part(NamedTuple):
    """A word of a text, or the value of a column, and what it did for an answer.

    Attributes:
      column: Column.
      value: The word, or the value.
      share: Probability of the answer, less the probability without the word or with the value missing.
    """

    column: str
    value: Any
    share: float


class RowReasons(NamedTuple):
    """Reasons for an answer to a row.

    Attributes:
      label: Class that was answered.
      probability: Probability of that class.
      examples: All examples that were learned, the most helpful first.
      parts: Words and values of the row in their order; molecules have none.
    """

    label: str
    probability: float
    examples: tuple[RowExample, ...]
    parts: tuple[Part, ...]

    def save(self, path: str | Path) -> Path:
        """Writes a page with the row, its parts, and the examples with their influence.

        Args:
          path: File to write, .html.

        Returns:
          The path.

        Raises:
          DataError: If the file cannot be written.
        """
        return bundles.write_file(path, _page(self).encode())


def row_reasons_of(
    spec: LearnerSpec,
    form: RowForm,
    meta: Meta,
    examples: Mapping[str, np.ndarray],
    row: Mapping[str, Any],
    temperature: float,
) -> RowReasons:
    """Explains the answer to one row.

    Args:
      spec: Description of the learner.
      form: Form of the rows.
      meta: Meta-parameters.
      examples: Rows by class, as `RowForm.read` returns them, two classes or more.
      row: Row in question, as `RowForm.read` returns it.
      temperature: Divisor of the logits.

    Returns:
      The reasons.

    Raises:
      DataError: If a text has more than MOST_WORDS words.
    """
    learner, fast = adapt_to(spec, form, meta, examples)
    named = _without_each(form, row)
    rows = np.empty(1 + len(named), object)
    rows[:] = [row, *(other for _, _, other in named)]
    classes, names = len(examples), list(examples)
    found = answers_of(
        learner, meta, fast, form.features(rows), classes=classes, temperature=temperature
    )
    best = int(found[0].argmax())
    parts = [
        Part(column, value, float(found[0, best] - without[best]))
        for (column, value, _), without in zip(named, found[1:], strict=True)
    ]
    kept = np.concatenate(list(examples.values()))
    labels = np.repeat(np.arange(classes, dtype=np.int32), [len(e) for e in examples.values()])
    numbers = np.concatenate([np.arange(len(each)) for each in examples.values()])
    run = _influences(spec.key(), form, classes)
    influence = run(meta, form.features(kept), labels, form.features(rows[:1]), temperature, best)
    shown = [
        RowExample(names[label], int(number), float(value), each)
        for label, number, value, each in zip(
            labels, numbers, np.asarray(influence), kept, strict=True
        )
    ]
    shown.sort(key=lambda example: -example.influence)
    return RowReasons(names[best], float(found[0, best]), tuple(shown), tuple(parts))


def _without_each(
    form: RowForm, row: Mapping[str, Any]
) -> list[tuple[str, Any, Mapping[str, Any]]]:
    """Lists columns, their words or values, and the row without that word or value."""
    found, recipe = [], form.recipe
    for name in recipe.text:
        words = list(_WORD.finditer(row[name]))
        if len(words) > MOST_WORDS:
            raise DataError(
                f"the text has {len(words):,} words, and {MOST_WORDS} are the most that are explained; "
                "shorten it"
            )
        for word in words:
            rest = row[name][: word.start()] + row[name][word.end() :]
            found.append((name, word[0], {**row, name: " ".join(rest.split())}))
    for name in (*recipe.numbers, *recipe.categories):
        if row[name] not in (None, ""):
            found.append((name, row[name], {**row, name: None if name in recipe.numbers else ""}))
    return found


@functools.lru_cache(maxsize=16)
def _influences(spec_key: str, form: RowForm, classes: int) -> Callable[..., Array]:
    """Compiles the influence of the examples for a learner and a number of classes."""
    spec = LearnerSpec.of_key(spec_key)
    ways = classes if spec.any_ways else spec.ways
    learner = make_learner_of(spec, ways=ways, alone=True, about=form.about)

    @jax.jit
    def run(
        meta: Meta, support: Tree, labels: Array, row: Tree, temperature: Array, best: Array
    ) -> Array:
        def score(outputs: Array) -> Array:
            logits = jnp.where(jnp.arange(ways) < classes, outputs / temperature, ABSENT)
            return jax.nn.softmax(logits, -1)[:, best]

        batch = Batch(form.inputs(support), labels)
        key = jax.random.key(0)
        return explain.leave_one_out(learner, meta, key, batch, form.inputs(row), score)[0]

    return run


def _page(reasons: RowReasons) -> str:
    """Writes the page in HTML."""
    label = html.escape(reasons.label)
    largest = max((abs(part.share) for part in reasons.parts), default=0) or 1.0
    columns: dict[str, list[str]] = {}
    for part in reasons.parts:
        columns.setdefault(part.column, []).append(_mark(part, largest))
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{' '.join(marks)}</td></tr>"
        for name, marks in columns.items()
    )
    examples = "".join(
        f"<tr><td>{html.escape(e.label)}</td><td>{e.influence:+.3f}</td>"
        f"<td>{html.escape(in_words(e.row))}</td></tr>"
        for e in reasons.examples
    )
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Why {label}?</title>
<style>
body {{ font: 16px/1.6 system-ui, sans-serif; max-width: 42rem; margin: 2rem auto; padding: 0 1rem }}
td, th {{ padding: .2rem .6rem; text-align: left; vertical-align: top }}
mark {{ padding: .1rem .2rem; border-radius: .2rem }}
</style>
<h1>{label}, {reasons.probability:.1%}</h1>
<table>{rows}</table>
<p>Red words and values speak for the answer and blue ones against it: the share of each is the probability of
the answer, less what it would be without the word, or with the value missing.</p>
<h2>Examples, the most helpful first</h2>
<p>The influence of an example is the probability of the answer, less what it would be if the example had
not been learned.</p>
<table>{examples}</table></html>
"""


def in_words(row: Mapping[str, Any]) -> str:
    """Writes a row in one line: a text by itself, several columns with their names.

    Args:
      row: Values by column.

    Returns:
      The line.

    Example:
      >>> in_words({"message": "lost card"}), in_words({"age": 3.0, "job": ""})
      ('lost card', 'age 3, job -')
    """
    if len(row) == 1:
        return str(next(iter(row.values())))

    def written(value: Any) -> str:
        return f"{value:g}" if isinstance(value, float) else str(value or "-")

    return ", ".join(f"{name} {written(value)}" for name, value in row.items())


def _mark(part: Part, largest: float) -> str:
    """Writes a word or a value with the color of its share."""
    color = "200,40,40" if part.share > 0 else "40,90,200"
    strength = 0.6 * abs(part.share) / largest
    text = html.escape(in_words({"": part.value}))
    return f'<mark style="background:rgba({color},{strength:.2f})" title="{part.share:+.3f}">{text}</mark>'
