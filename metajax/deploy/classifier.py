"""A classifier that learns classes by name from a few examples each, and answers one query at a time."""

import dataclasses
import functools
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from metajax.deploy.answers import Evaluation, Prediction
from metajax.deploy.bundle import Bundle
from metajax.deploy.compiled import Compiled, adapt_to, answers_of
from metajax.deploy.encoded import EncodedForm
from metajax.deploy.pictures import ImageForm, Picture
from metajax.deploy.reasons import Reasons, reasons_of
from metajax.deploy.row_reasons import RowReasons, row_reasons_of
from metajax.deploy.rows import Row, RowForm
from metajax.deploy.shipped import find_bundle
from metajax.errors import DataError
from metajax.metrics import confidence_interval
from metajax.names import composed, listed, shown
from metajax.types import Fast, Meta

Example = Picture | Row
"""A picture, a text, or a row of a table, whichever the trained learner reads."""
Examples = str | Path | Mapping[str, Sequence[Example]]
"""A folder with a folder of pictures per class, a file of rows, or examples by class name."""


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A trained learner and the examples that it has learned from; every method returns a new object.

    Attributes:
      bundle: The trained learner.
      examples: Pictures [n, H, W, C] uint8, or rows [n], by class name, as the `read` of the bundle's form
        returns them.

    Example:
      `spec` and `meta` would come from a training; here they are fresh.

      >>> import metajax.deploy as deploy
      >>> options = {"filters": 8, "norm": "group"}
      >>> spec = deploy.LearnerSpec("protonet", "conv4_stride", 2, 4, network_options=options)
      >>> form = deploy.ImageForm((16, 16, 1), (0.5,), (0.5,))
      >>> meta = deploy.make_learner_of(spec).init(jax.random.key(0), jnp.zeros((2, 16, 16, 1)))
      >>> shades = {"dark": [np.full((16, 16), 40, np.uint8)], "light": [np.full((16, 16), 220, np.uint8)]}
      >>> model = deploy.Classifier(deploy.Bundle(spec, form, meta)).learn(shades)
      >>> model.labels, len(model.predict([np.full((16, 16), 215, np.uint8)]))
      (('dark', 'light'), 1)
    """

    bundle: Bundle
    examples: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes, in the order in which they were learned."""
        return tuple(self.examples)

    @property
    def most_ways(self) -> int:
        """Most classes that it can tell apart."""
        return self.bundle.spec.most_ways

    def learn(self, examples: Examples, *, label: str | None = None) -> "Classifier":
        """Learns classes, or more examples of classes that it knows.

        Args:
          examples: Folder with a folder of pictures per class, or file of rows with a column of the class, or
            examples by class name.
          label: Column of the class in a file of rows; None is the one of the training.

        Returns:
          A classifier of the classes so far and of these.

        Raises:
          DataError: If an example cannot be read, a class has none, or there are more classes than the
            learner can tell apart.
        """
        given, form = self._by_class(examples, label), self.bundle.form
        if empty := [name for name, each in given.items() if not len(each)]:
            raise DataError(
                f"the classes {listed(empty)} have no {form.noun}; give each at least one"
            )
        known = {**self.examples}
        new = [name for name in given if name not in known]
        if len(known) + len(new) > self.most_ways:
            raise DataError(
                f"{len(known) + len(new)} classes are more than the {self.most_ways} that this "
                f"{self.bundle.spec.learner} can tell apart; forget some, or train one with more --ways"
            )
        for name, each in given.items():
            read = form.read(list(each))
            known[name] = np.concatenate([known[name], read]) if name in known else read
        new = [known[name] for name in given]
        if isinstance(form, ImageForm) and new and form.looks_inverted(np.concatenate(new)):
            warnings.warn(
                "These pictures look like those of the training with black and white exchanged; if they are, "
                "use load(..., invert=True).",
                stacklevel=2,
            )
        return dataclasses.replace(self, examples=MappingProxyType(known))

    def forget(self, label: str) -> "Classifier":
        """Forgets a class.

        Args:
          label: Name of the class.

        Returns:
          A classifier of the others.

        Raises:
          DataError: If there is no such class.
        """
        if label not in self.examples:
            raise DataError(
                f"there is no class {shown(label)} to forget; there are {listed(self.labels)}"
            )
        others = {name: kept for name, kept in self.examples.items() if name != label}
        return dataclasses.replace(self, examples=MappingProxyType(others))

    def probabilities(self, examples: Sequence[Example]) -> np.ndarray:
        """Answers examples, each as if it were the only one.

        Args:
          examples: M pictures: paths of image files, contents of files, or arrays of pixels; or M rows:
            texts, or dicts of values by column.

        Returns:
          Probabilities [M, N] float32 of the N classes, in the order of `labels`.

        Raises:
          DataError: If an example cannot be read, or fewer than two classes are learned.
        """
        return self.answer(
            self.bundle.form.read(examples if isinstance(examples, str) else list(examples))
        )

    def answer(self, examples: np.ndarray) -> np.ndarray:
        """Answers examples that are in the form of the training's.

        Args:
          examples: Pictures [M, H, W, C] uint8, or rows [M], as the `read` of the bundle's form returns them.

        Returns:
          Probabilities [M, N] float32.

        Raises:
          DataError: If fewer than two classes are learned.
        """
        self._need_classes()
        if not len(examples):
            return np.zeros((0, len(self.examples)), np.float32)
        learner, fast = self._adapted
        return answers_of(
            learner,
            self._meta,
            fast,
            self.bundle.form.features(examples),
            classes=len(self.examples),
            temperature=self.bundle.temperature,
        )

    def predict(self, examples: Sequence[Example]) -> list[Prediction]:
        """Names the class of each example.

        Args:
          examples: M pictures, or M rows, as in `probabilities`.

        Returns:
          M answers.

        Raises:
          DataError: If an example cannot be read, or fewer than two classes are learned.
        """
        return [self._named(row) for row in self.probabilities(examples)]

    def explain(self, example: Example) -> Reasons | RowReasons:
        """Explains the answer to an example: which examples, and which of its parts, it comes from.

        Every example is really left out once, and the learner adapts anew, so that influences are exact.
        Parts are the pixels of a picture, the words of a text, and the values of a row.

        Args:
          example: Picture or row, as in `probabilities`.

        Returns:
          The reasons; `reasons.save("why.html")` writes a page.

        Raises:
          DataError: If the example cannot be read, fewer than two classes are learned, or a frozen encoder
            reads the pictures.
        """
        self._need_classes()
        if isinstance(self.bundle.form, EncodedForm):
            raise DataError(
                f"answers by vectors of {self.bundle.form.encoder} have no reasons among pixels here; "
                "explain a model that reads the pixels itself"
            )
        bundle, known = self.bundle, dict(self.examples)
        asked, temperature = bundle.form.read([example])[0], bundle.temperature
        if isinstance(bundle.form, RowForm):
            return row_reasons_of(bundle.spec, bundle.form, self._meta, known, asked, temperature)
        return reasons_of(bundle.spec, bundle.form, self._meta, known, asked, temperature)

    def evaluate(self, examples: Examples, *, label: str | None = None) -> Evaluation:
        """Answers examples whose classes are known.

        Args:
          examples: Folder with a folder of pictures per class, or file of rows with a column of the class, or
            examples by class name.
          label: Column of the class in a file of rows; None is the one of the training.

        Returns:
          The share of right answers, with its interval.

        Raises:
          DataError: If a class is not one of those that were learned.
        """
        listing = self._by_class(examples, label)
        given = {name: each for name, each in listing.items() if len(each)}
        if strange := [name for name in given if name not in self.examples]:
            raise DataError(
                f"the classes {listed(strange)} were not learned; learned are {listed(self.labels)}"
            )
        if not given:
            noun = self.bundle.form.noun
            raise DataError(f"there is no {noun} to evaluate on; give at least one class with one")
        right = {}
        for name, each in given.items():
            best = self.probabilities(each).argmax(-1)
            right[name] = best == self.labels.index(name)
        every = np.concatenate(list(right.values())).astype(np.float64)
        by_class = {name: float(hits.mean()) for name, hits in right.items()}
        return Evaluation(*confidence_interval(every), len(every), MappingProxyType(by_class))

    def save(self, folder: str | Path) -> Path:
        """Writes the trained learner and the examples as a bundle that `load` reads.

        Args:
          folder: Folder to write, or to replace.

        Returns:
          The folder.

        Raises:
          DataError: If it cannot be written.
        """
        return self.bundle.save(folder, examples=self.examples)

    def _need_classes(self) -> None:
        if len(self.examples) < 2:
            raise DataError(
                f"{len(self.examples)} classes are learned; learn two or more before asking for answers"
            )

    def _named(self, probabilities: np.ndarray) -> Prediction:
        best, threshold = int(probabilities.argmax()), self.bundle.threshold
        probability = float(probabilities[best])
        by_name = dict(zip(self.labels, probabilities.tolist(), strict=True))
        known = threshold is None or probability >= threshold
        return Prediction(self.labels[best], probability, known, MappingProxyType(by_name))

    @functools.cached_property
    def _meta(self) -> Meta:
        return jax.device_put(self.bundle.meta)

    @functools.cached_property
    def _adapted(self) -> tuple[Compiled, Fast]:
        """The compiled learner, and its state after all examples."""
        return adapt_to(self.bundle.spec, self.bundle.form, self._meta, self.examples)

    def _by_class(self, examples: Examples, label: str | None) -> Mapping[str, Any]:
        """Lists examples by class name."""
        if not isinstance(examples, Mapping):
            return self.bundle.form.by_class(examples, label=label)
        if label is not None:
            raise DataError(
                f"label={shown(label)} is a column of files; these examples have classes"
            )
        return {composed(str(name)): given for name, given in examples.items()}


def load(path: str | Path, *, invert: bool = False) -> Classifier:
    """Loads a trained learner, which needs neither its training data nor its training program.

    Args:
      path: Work directory of a run, a bundle, or the name of a bundle that comes with metajax, such as
        "glyphs", which learns drawn symbols; `metajax.deploy.shipped_names` lists the names.
      invert: Whether black and white are exchanged in the pictures that it will see, compared with the files
        of its training.

    Returns:
      A classifier; it knows the classes that were saved with it, and none at first.

    Raises:
      DataError: If there is no such bundle, or it is damaged.

    Example:
      `runs/mine` would be the work directory of a run; here a fresh bundle takes its place.

      >>> import tempfile
      >>> import metajax.deploy as deploy
      >>> spec = deploy.LearnerSpec("protonet", "mlp", ways=2, examples=4)
      >>> meta = deploy.make_learner_of(spec).init(jax.random.key(0), jnp.zeros((2, 8, 8, 1)))
      >>> form = deploy.ImageForm((8, 8, 1), (0.5,), (0.5,))
      >>> with tempfile.TemporaryDirectory() as root:
      ...     model = load(deploy.Bundle(spec, form, meta).save(root))
      >>> model.learn({"dark": [np.zeros((8, 8))], "light": [np.ones((8, 8))]}).labels
      ('dark', 'light')
    """
    bundle, examples = Bundle.read(find_bundle(path))
    if invert:
        images = dataclasses.replace(bundle.images, invert=not bundle.images.invert)
        bundle = dataclasses.replace(bundle, form=images)
    return Classifier(bundle, MappingProxyType(examples))
