"""Descriptions of learners that JSON can hold, and the learners they describe."""

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from metajax import trees
from metajax.deploy.fields import in_range, taken
from metajax.errors import DataError
from metajax.inner.adjoints import ADJOINTS
from metajax.learners.wrappers.one_query import TOGETHER, one_query_at_a_time
from metajax.losses import cross_entropy
from metajax.models.precision import in_precision
from metajax.nn.conv import PLAIN
from metajax.types import Fast, Learner, Meta, Model, Tree
from metajax.zoo.ingredients import Ingredients
from metajax.zoo.learners import Entry, find_learner, make_learner
from metajax.zoo.models import MODELS, build_comparer, build_model
from metajax.zoo.row_models import ROW_MODELS, build_row_model
from metajax.zoo.rules import make_rule

MOST_WAYS = 1000
"""Most classes of a task."""

_COMPARER_OPTIONS = ("filters", "norm", "implementation")


@dataclasses.dataclass(frozen=True)
class LearnerSpec:
    """A classifying learner as it is used after training, in values that JSON can hold.

    Attributes:
      learner: A key of `metajax.zoo.LEARNERS`.
      options: Values of the learner's own options by name.
      network: A key of `metajax.zoo.MODELS`, or of `metajax.zoo.row_models.ROW_MODELS`.
      network_options: Values of the network's options by name.
      ways: Number of classes N of the tasks that it was trained on, and the most that a learner with a head
        of its own can tell apart.
      examples: Support examples of the largest task of the training.
      classes: Number of training classes of supervised training; None for training on tasks.
      steps: Inner steps.
      rows: Inner steps of the training, which MAML++ has learned step sizes for.
      rule: Name of the inner optimizer, a key of `metajax.zoo.rules.RULES`.
      learning_rate: Inner step size.
      differentiated: Whether the training differentiated the inner steps, see `metajax.zoo.rules.make_rule`.
      precision: Floating dtype in which the network computes.
    """

    learner: str
    network: str
    ways: int
    examples: int
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    network_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    classes: int | None = None
    steps: int = 1
    rows: int = 1
    rule: str = "sgd"
    learning_rate: float = 0.4
    differentiated: bool = True
    precision: str = "float32"

    @classmethod
    def from_json(cls, found: Any) -> "LearnerSpec":
        """Reads a description that `to_json` made.

        Args:
          found: Parsed JSON.

        Returns:
          The description.

        Raises:
          DataError: If a field is missing, unknown, of another type, or out of range.
        """
        kinds = {
            **dict.fromkeys(("learner", "network", "rule", "precision"), str),
            **dict.fromkeys(("ways", "examples", "steps", "rows"), int),
            **dict.fromkeys(("options", "network_options"), dict),
            "classes": (int, type(None)),
            "learning_rate": float,
            "differentiated": bool,
        }
        spec = cls(**taken(found, kinds, what="The learner"))
        for name, least, most in (
            ("ways", 2, MOST_WAYS),
            ("examples", 1, 10**6),
            ("steps", 0, 10**4),
            ("rows", 0, 10**4),
            ("learning_rate", 0, 1e6),
        ):
            in_range(getattr(spec, name), name, least=least, most=most, what="The learner")
        if spec.precision not in ("float32", "bfloat16", "float16", "float64"):
            raise DataError(f"The learner: precision is {spec.precision}; use float32 or bfloat16")
        return spec

    def to_json(self) -> dict[str, Any]:
        """Returns the description as values that JSON can hold, by name."""
        plain = dataclasses.replace(
            self, options=dict(self.options), network_options=dict(self.network_options)
        )
        return dataclasses.asdict(plain)

    def key(self) -> str:
        """Returns the description as one line, which can be a key of a cache."""
        return json.dumps(self.to_json(), sort_keys=True)

    @classmethod
    def of_key(cls, key: str) -> "LearnerSpec":
        """Returns the description that `key` made a line of.

        Args:
          key: Line.

        Returns:
          The description.
        """
        return cls.from_json(json.loads(key))

    @property
    def entry(self) -> Entry:
        """The learner's entry in the zoo."""
        return find_learner(self.learner)

    @property
    def any_ways(self) -> bool:
        """Whether it tells any number of classes apart, and not only as many as in training."""
        return self.entry.ways_agnostic

    @property
    def most_ways(self) -> int:
        """Most classes that it tells apart."""
        if not self.any_ways:
            return self.ways
        declared = self.entry.options.get("most_ways")
        return self.options.get("most_ways", declared.default) if declared else MOST_WAYS

    @property
    def norm(self) -> str:
        """Norm policy of the network."""
        if self.network not in MODELS:
            return "none"
        return self.network_options.get("norm") or MODELS[self.network].norm

    @property
    def sees_the_batch(self) -> bool:
        """Whether a query's answer would depend on the inputs that are normalized with it."""
        return self.norm == "batch"


def make_learner_of(
    spec: LearnerSpec,
    *,
    ways: int | None = None,
    alone: bool = False,
    plain: bool = False,
    about: Mapping[str, Any] | None = None,
) -> Learner:
    """Makes the learner of a description, for use in tests and after training.

    Args:
      spec: Description of the learner.
      ways: Number of classes of a task, where it can be another one than `spec.ways`.
      alone: Whether each query is answered alone, together with the support set where the network normalizes
        by the batch.
      plain: Whether it consists of operations that any size of a batch and other runtimes can do.
      about: Arguments of a network of rows that depend on the data, as `RowForm.about` has them; None for
        networks of images.

    Returns:
      The learner.

    Raises:
      ValueError: If there is no such learner, network or option, or they do not go together.

    Example:
      >>> spec = LearnerSpec("protonet", "conv4_stride", ways=5, examples=5, network_options={"filters": 8})
      >>> learner = make_learner_of(spec)
      >>> meta = jax.eval_shape(learner.init, jax.random.key(0), jnp.zeros((2, 28, 28, 1)))
      >>> meta.params["conv0"]["kernel"].shape
      (3, 3, 1, 8)
    """

    make = functools.partial(_network, spec, plain, about)
    compares = spec.learner == "relation"
    learner = make_learner(
        spec.learner,
        Ingredients(
            make(outputs=spec.ways),
            cross_entropy,
            make_rule(spec.rule, spec.learning_rate, differentiated=spec.differentiated),
            spec.learning_rate,
            spec.steps,
            ADJOINTS["reverse"],
            rows=spec.rows,
            encoder=make(outputs=None, maps=compares and about is None),
            comparer=_comparer(spec, plain, about) if compares else None,
            ways=spec.ways if ways is None else ways,
            examples=spec.examples,
            classes=spec.classes,
            testing=True,
            options=spec.options,
        ),
    )
    if not alone:
        return learner
    if spec.sees_the_batch:
        return one_query_at_a_time(learner, together=None if plain else TOGETHER)
    return _singly(learner) if spec.options.get("refine") else learner


def _network(
    spec: LearnerSpec,
    plain: bool,
    about: Mapping[str, Any] | None,
    *,
    outputs: int | None,
    maps: bool = False,
) -> Model:
    """Builds the network with a head or without."""
    if spec.network not in ROW_MODELS:
        model = build_model(spec.network, outputs=outputs, maps=maps, **_options(spec, plain))
    elif about is None:
        raise ValueError(f"Model {spec.network!r} reads rows of a table; it needs their form.")
    else:
        options = dict(spec.network_options)
        model = build_row_model(spec.network, outputs=outputs, about=about, **options)
    return in_precision(model, jnp.dtype(spec.precision))


def _comparer(spec: LearnerSpec, plain: bool, about: Mapping[str, Any] | None) -> Model:
    """Builds the network that relation networks compare by: of maps, or of pairs of rows."""
    if about is None:
        options = _options(spec, plain)
        comparer = build_comparer(**{name: options.get(name) for name in _COMPARER_OPTIONS})
    else:
        comparer = build_model("mlp", outputs=1)
    return in_precision(comparer, jnp.dtype(spec.precision))


def _options(spec: LearnerSpec, plain: bool) -> dict[str, Any]:
    """Returns the options of a network of images, if asked with plain convolutions."""
    options = dict(spec.network_options)
    if plain and "implementation" in MODELS[spec.network].options:
        options["implementation"] = PLAIN
    return options


def _singly(learner: Learner) -> Learner:
    """Answers each query in a batch of its own, for learners whose class means move to their queries."""

    def predict(meta: Meta, fast: Fast, inputs: Tree) -> Tree:
        def answer(query: Tree) -> Tree:
            one = jax.tree.map(lambda leaf: leaf[None], query)
            return trees.take(learner.predict(meta, fast, one), 0)

        return jax.lax.map(answer, inputs)

    return learner._replace(predict=predict)
