"""Ingredients of named learners, and how most learners are made of them."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import optax

from metajax.inner.adjoints import ADJOINTS, Adjoint
from metajax.learners.states import rescaled
from metajax.rl.types import Actions
from metajax.types import Learner, LossFn, Model


class Ingredients(NamedTuple):
    """Parts of a named learner; each learner takes the parts it needs.

    Attributes:
      model: Network with a last layer named `head`.
      loss: Inner loss.
      rule: Inner optimizer.
      learning_rate: Inner step size, for learners with a rule of their own.
      steps: Number of inner steps.
      adjoint: Adjoint that differentiates through the inner steps.
      rows: Number of inner steps with parameters of their own, for MAML++; `steps` if None.
      encoder: Network without its last layer.
      decoder: Network from inputs and codes to a mean and a deviation, for neural processes.
      comparer: Network that compares a class with a query, for relation networks.
      ways: Number of classes N of a task; None for regression.
      num_outputs: Numbers Y in a target, for neural processes.
      examples: Support examples of the largest task.
      classes: Number of training classes, for supervised training.
      actions: Kind of the actions of an environment, for policies; None for others.
      testing: Whether the learner is for a test; LEO draws codes at random in training alone.
      options: Values of the learner's own options, as its `Entry` declares them; defaults fill in the rest.
    """

    model: Model
    loss: LossFn
    rule: optax.GradientTransformation
    learning_rate: float
    steps: int
    adjoint: Adjoint = ADJOINTS["reverse"]
    rows: int | None = None
    encoder: Model | None = None
    decoder: Model | None = None
    comparer: Model | None = None
    ways: int | None = None
    num_outputs: int = 1
    examples: int | None = None
    classes: int | None = None
    actions: Actions | None = None
    testing: bool = False
    options: Mapping[str, Any] = MappingProxyType({})

    @property
    def common(self) -> dict[str, Any]:
        """Arguments of most learners with an inner rule."""
        return {"rule": self.rule, "steps": self.steps, "adjoint": self.adjoint, **self.options}

    def need(self, name: str) -> Any:
        """Returns a part; raises ValueError where it is None."""
        if (part := getattr(self, name)) is None:
            raise ValueError(f"The learner's ingredients have no {name}; give them one.")
        return part


Make = Callable[[Ingredients], Learner]


def of_network(learner: Callable[..., Learner]) -> Make:
    """Makes a learner (model, loss, *, rule, steps, adjoint, **options) that takes an inner optimizer.

    Args:
      learner: Function that makes the learner, such as `metajax.maml`.

    Returns:
      Function from the ingredients to the learner.
    """
    return lambda i: learner(i.model, i.loss, **i.common)


def of_own_rule(learner: Callable[..., Learner]) -> Make:
    """Makes a learner (model, loss, *, learning_rate, steps, adjoint, **options) that has a rule of its own.

    Args:
      learner: Function that makes the learner, such as `metajax.meta_sgd`.

    Returns:
      Function from the ingredients to the learner.
    """

    def make(i: Ingredients) -> Learner:
        own = {"learning_rate": i.learning_rate, "steps": i.steps, "adjoint": i.adjoint}
        return learner(i.model, i.loss, **own, **i.options)

    return make


def of_encoder(learner: Callable[..., Learner], **fixed: Any) -> Make:
    """Makes a learner (encoder, *, ways, **options) that takes no inner steps.

    Args:
      learner: Function that makes the learner, such as `metajax.protonet`.
      **fixed: Further arguments of that function.

    Returns:
      Function from the ingredients to the learner.
    """
    return lambda i: learner(i.need("encoder"), ways=i.ways, **fixed, **i.options)


def of_pairs(learner: Callable[..., Learner], **fixed: Any) -> Make:
    """Makes a learner (encoder, *, ways, **options) that reads (example, label) pairs.

    Image features are rescaled to unit RMS, as large as labels; regression inputs keep their scale.

    Args:
      learner: Function that makes the learner, such as `metajax.learners.snail`.
      **fixed: Further arguments of that function.

    Returns:
      Function from the ingredients to the learner.
    """

    def make(i: Ingredients) -> Learner:
        encoder = i.need("encoder")
        encoder = encoder if i.ways is None else rescaled(encoder)
        return of_encoder(learner, **fixed)(i._replace(encoder=encoder))

    return make
