"""The learners by name: what `--learner` offers and the contract suite runs over."""

import difflib
from collections.abc import Callable
from typing import NamedTuple

import optax

from metajax.inner.adjoints import ADJOINTS, Adjoint
from metajax.inner.rules import stop_gradient
from metajax.learners import gradient
from metajax.types import Learner, LossFn, Model


class Ingredients(NamedTuple):
    """What a named learner may be made of; each takes what it needs.

    Attributes:
      model: the network; its last layer is named `head`.
      loss: the inner loss.
      rule: the inner optimizer.
      rate: the inner step size, for learners whose rule is their own.
      steps: inner steps.
      adjoint: how learners with inner steps differentiate through them.
    """

    model: Model
    loss: LossFn
    rule: optax.GradientTransformation
    rate: float
    steps: int
    adjoint: Adjoint = ADJOINTS["reverse"]


LEARNERS: dict[str, Callable[[Ingredients], Learner]] = {
    "maml": lambda i: gradient.maml(i.model, i.loss, rule=i.rule, steps=i.steps, adjoint=i.adjoint),
    "fomaml": lambda i: gradient.maml(
        i.model,
        i.loss,
        rule=optax.chain(stop_gradient(), i.rule),
        steps=i.steps,
        adjoint=i.adjoint,
    ),
    "anil": lambda i: gradient.anil(i.model, i.loss, rule=i.rule, steps=i.steps, adjoint=i.adjoint),
    "meta_sgd": lambda i: gradient.meta_sgd(
        i.model, i.loss, rate=i.rate, steps=i.steps, adjoint=i.adjoint
    ),
}


def make_learner(name: str, ingredients: Ingredients) -> Learner:
    """Makes the learner registered as `name`; an unknown name is a ValueError that says the nearest."""
    if name not in LEARNERS:
        near = difflib.get_close_matches(name, LEARNERS, n=3, cutoff=0.4) or sorted(LEARNERS)
        raise ValueError(f"No learner is named {name!r}; the nearest are {', '.join(near)}.")
    return LEARNERS[name](ingredients)
