"""A classifier that learns classes by name from a few examples each, and answers one query at a time."""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metajax.data import bundles
from metajax.data.files import folder as folders
from metajax.deploy.bundle import Bundle
from metajax.deploy.pictures import ImageForm, Picture
from metajax.deploy.reasons import Reasons, reasons_of
from metajax.deploy.spec import MOST_WAYS, LearnerSpec, make_learner_of
from metajax.errors import DataError
from metajax.learners.states import ABSENT
from metajax.metrics import confidence_interval
from metajax.names import composed, listed, shown
from metajax.types import Array, Batch, Fast, Meta

Examples = str | Path | Mapping[str, Sequence[Picture]]
"""A folder with a folder of pictures per class, or pictures by class name."""

_KEPT = "examples"


class Prediction(NamedTuple):
    """An answer.

    Attributes:
      label: Name of the most probable class.
      probability: Probability of that class.
      known: Whether that is at least the bundle's threshold; always True without one.
      probabilities: Probability of every class by name.
    """

    label: str
    probability: float
    known: bool
    probabilities: Mapping[str, float]


class Evaluation(NamedTuple):
    """Answers to examples whose classes are known.

    Attributes:
      accuracy: Share of right answers.
      ci95: Half width of its 95% interval over the examples.
      pictures: Number of examples.
      by_class: Share of right answers by class.
    """

    accuracy: float
    ci95: float
    pictures: int
    by_class: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A trained learner and the examples that it has learned from; every method returns a new object.

    Attributes:
      bundle: The trained learner.
      examples: Pictures [n, H, W, C] uint8 by class name, as `ImageForm.read` returns them.

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
        spec = self.bundle.spec
        return MOST_WAYS if spec.any_ways else spec.ways

    def learn(self, examples: Examples) -> "Classifier":
        """Learns classes, or more examples of classes that it knows.

        Args:
          examples: Folder with a folder of pictures per class, or pictures by class name.

        Returns:
          A classifier of the classes so far and of these.

        Raises:
          DataError: If a picture cannot be read, a class has none, or there are more classes than the learner
            can tell apart.
        """
        given = _by_class(examples)
        if empty := [name for name, pictures in given.items() if not len(pictures)]:
            raise DataError(f"the classes {listed(empty)} have no picture; give each at least one")
        known = {**self.examples}
        new = [name for name in given if name not in known]
        if len(known) + len(new) > self.most_ways:
            raise DataError(
                f"{len(known) + len(new)} classes are more than the {self.most_ways} that this "
                f"{self.bundle.spec.learner} can tell apart; forget some, or train one with more --ways"
            )
        form = self.bundle.images
        for name, pictures in given.items():
            pixels = form.read(list(pictures))
            known[name] = np.concatenate([known[name], pixels]) if name in known else pixels
        if form.looks_inverted(np.concatenate([known[name] for name in given])):
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
        others = {name: pixels for name, pixels in self.examples.items() if name != label}
        return dataclasses.replace(self, examples=MappingProxyType(others))

    def probabilities(self, pictures: Sequence[Picture]) -> np.ndarray:
        """Answers pictures, each as if it were the only one.

        Args:
          pictures: M paths of image files, contents of files, or arrays of pixels.

        Returns:
          Probabilities [M, N] float32 of the N classes, in the order of `labels`.

        Raises:
          DataError: If a picture cannot be read, or fewer than two classes are learned.
        """
        return self.answer(self.bundle.images.read(list(pictures)))

    def answer(self, pixels: np.ndarray) -> np.ndarray:
        """Answers pictures that are in the form of the training images.

        Args:
          pixels: Pictures [M, H, W, C] uint8, as `ImageForm.read` returns them.

        Returns:
          Probabilities [M, N] float32.

        Raises:
          DataError: If fewer than two classes are learned.
        """
        self._need_classes()
        if not len(pixels):
            return np.zeros((0, len(self.examples)), np.float32)
        learner, fast = self._adapted
        count = _room(len(pixels))
        padded = np.concatenate([pixels, np.repeat(pixels[-1:], count - len(pixels), 0)])
        known = jnp.asarray(len(self.examples)), jnp.asarray(self.bundle.temperature, jnp.float32)
        found = learner.predict(self._meta, fast, jnp.asarray(padded), *known)
        return np.asarray(found)[: len(pixels), : len(self.examples)]

    def predict(self, pictures: Sequence[Picture]) -> list[Prediction]:
        """Names the class of each picture.

        Args:
          pictures: M paths of image files, contents of files, or arrays of pixels.

        Returns:
          M answers.

        Raises:
          DataError: If a picture cannot be read, or fewer than two classes are learned.
        """
        return [self._named(row) for row in self.probabilities(pictures)]

    def explain(self, picture: Picture) -> Reasons:
        """Explains the answer to a picture: which examples, and which of its parts, it comes from.

        Every example is really left out once, and the learner adapts anew, so that influences are exact.

        Args:
          picture: Path of an image file, content of one, or array of pixels.

        Returns:
          The reasons; `reasons.save("why.html")` writes a page.

        Raises:
          DataError: If the picture cannot be read, or fewer than two classes are learned.
        """
        self._need_classes()
        bundle, pixels = self.bundle, self.bundle.images.read([picture])[0]
        known = dict(self.examples)
        return reasons_of(bundle.spec, bundle.images, self._meta, known, pixels, bundle.temperature)

    def evaluate(self, examples: Examples) -> Evaluation:
        """Answers pictures whose classes are known.

        Args:
          examples: Folder with a folder of pictures per class, or pictures by class name.

        Returns:
          The share of right answers, with its interval.

        Raises:
          DataError: If a class is not one of those that were learned.
        """
        given = {name: pictures for name, pictures in _by_class(examples).items() if len(pictures)}
        if strange := [name for name in given if name not in self.examples]:
            raise DataError(
                f"the classes {listed(strange)} were not learned; learned are {listed(self.labels)}"
            )
        if not given:
            raise DataError("there is no picture to evaluate on; give at least one class with one")
        right = {}
        for name, pictures in given.items():
            best = self.probabilities(pictures).argmax(-1)
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
        if not self.examples:
            return self.bundle.save(folder)
        # Tensors have no order: the place of a class is part of its name.
        kept = {f"{i:04}:{name}": pixels for i, (name, pixels) in enumerate(self.examples.items())}
        return self.bundle.save(folder, extra={_KEPT: kept})

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
    def _adapted(self) -> tuple["_Compiled", Fast]:
        """The compiled learner, and its state after all examples."""
        spec, form = self.bundle.spec, self.bundle.images
        pixels = np.concatenate(list(self.examples.values()))
        counts = [len(pictures) for pictures in self.examples.values()]
        labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        weights = np.ones(len(labels), np.float32)
        if _pads(spec):
            more = _room(len(labels)) - len(labels)
            pixels = np.concatenate([pixels, np.zeros((more, *pixels.shape[1:]), np.uint8)])
            labels, weights = np.pad(labels, (0, more)), np.pad(weights, (0, more))
        ways = max(2, _room(len(counts))) if spec.any_ways else spec.ways
        learner = _compiled(spec.key(), form, ways)
        return learner, learner.adapt(
            self._meta, Batch(pixels, jnp.asarray(labels), jnp.asarray(weights))
        )


class _Compiled(NamedTuple):
    """Compiled functions of a learner.

    Attributes:
      adapt: Function (meta, batch of pixels) -> fast state.
      predict: Function (meta, fast, pixels, number of classes, temperature) -> probabilities [B, N].
    """

    adapt: Callable[[Meta, Batch], Fast]
    predict: Callable[[Meta, Fast, Array, Array, Array], Array]


def load(path: str | Path, *, invert: bool = False) -> Classifier:
    """Loads a trained learner, which needs neither its training data nor its training program.

    Args:
      path: Work directory of a run, or a bundle.
      invert: Whether black and white are exchanged in the pictures that it will see, compared with the files
        of its training.

    Returns:
      A classifier; it knows the classes that were saved with it, and none at first.

    Raises:
      DataError: If there is no bundle, or it is damaged.

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
    folder = Path(path).expanduser()
    if not bundles.is_bundle(folder) and bundles.is_bundle(folder / "model"):
        folder = folder / "model"
    bundle, groups = Bundle.read(folder)
    kept = groups.pop(_KEPT, {})
    for name, pixels in kept.items():
        if pixels.dtype != np.uint8 or pixels.shape[1:] != bundle.images.shape or not len(pixels):
            raise DataError(
                f"the bundle {shown(folder)} cannot be used: the examples of {shown(name)} are "
                f"{pixels.dtype}{list(pixels.shape)}"
            )
    examples = {name.partition(":")[2]: kept[name] for name in sorted(kept)}
    if invert:
        images = dataclasses.replace(bundle.images, invert=not bundle.images.invert)
        bundle = dataclasses.replace(bundle, images=images)
    return Classifier(bundle, MappingProxyType(examples))


def _by_class(examples: Examples) -> dict[str, Sequence[Picture]]:
    """Lists pictures by class name."""
    if isinstance(examples, Mapping):
        return {composed(str(name)): pictures for name, pictures in examples.items()}
    found = folders.listing(Path(examples).expanduser())
    parts = np.split(np.arange(len(found.files)), np.cumsum(found.counts)[:-1])
    return {
        composed(name): [found.files[i] for i in rows]
        for name, rows in zip(found.names, parts, strict=True)
    }


def _room(count: int) -> int:
    """Rounds a number of examples up, so that few programs serve all numbers."""
    return 1 << (count - 1).bit_length()


def _pads(spec: LearnerSpec) -> bool:
    """Finds out whether examples of weight zero leave the learner's answers as they are.

    Statistics of the batch count them, minibatches draw them, and a reader of sequences reads them.
    """
    reads = not spec.any_ways and not spec.entry.inner
    return not (spec.sees_the_batch or spec.options.get("minibatch") or reads)


@functools.lru_cache(maxsize=32)
def _compiled(spec_key: str, form: ImageForm, ways: int) -> _Compiled:
    """Compiles a learner for a number of classes; classifiers of one bundle share it."""
    spec = LearnerSpec.of_key(spec_key)
    learner = make_learner_of(spec, ways=ways, alone=True)
    key = jax.random.key(0)

    @jax.jit
    def adapt(meta: Meta, batch: Batch) -> Fast:
        batch = batch._replace(inputs=form.normalized(batch.inputs))
        return learner.adapt(meta, learner.start(meta, key, batch), key, batch)

    @jax.jit
    def predict(meta: Meta, fast: Fast, pixels: Array, count: Array, temperature: Array) -> Array:
        outputs = learner.predict(meta, fast, form.normalized(pixels))
        logits = jnp.where(jnp.arange(ways) < count, outputs / temperature, ABSENT)
        return jax.nn.softmax(logits, -1)

    return _Compiled(adapt, predict)
