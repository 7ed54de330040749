"""Learners as a run's plan names them."""

from collections.abc import Callable
from typing import Any

import optax

from metajax.inner.adjoints import Adjoint, check_adjoint, make_adjoint
from metajax.types import Learner, LossFn, Model
from metajax.zoo.ingredients import Ingredients
from metajax.zoo.learners import LEARNERS, make_learner
from metajax.zoo.rules import make_rule

from ..flags.learner import InnerLoop
from ..flags.settings import UsageError


def learner_maker(
    inner: InnerLoop,
    loss: LossFn,
    *,
    model: Model,
    encoder: Model,
    test_ways: int | None = None,
    test_rule: optax.GradientTransformation | None = None,
    **parts: Any,
) -> Callable[..., Learner]:
    """Makes a function that makes learners of one family, all on the same meta-parameters.

    Args:
      inner: The learner and its inner loop.
      loss: Inner loss.
      model: Network with a head.
      encoder: Network without its head.
      test_ways: Classes N of a task in validation and test; `parts` have that of training.
      test_rule: Inner optimizer in validation and test; None is that of training.
      **parts: Further fields of `Ingredients`.

    Returns:
      Function (inner steps, adjoint, testing=False) -> learner. It raises UsageError if a learner cannot be
      made of these.
    """
    rule = inner_rule(inner)
    test_rule = rule if test_rule is None else test_rule

    def make(steps: int, adjoint: Adjoint, testing: bool = False) -> Learner:
        ingredients = Ingredients(
            model,
            loss,
            test_rule if testing else rule,
            inner.learning_rate,
            steps,
            adjoint,
            rows=inner.steps,
            encoder=encoder,
            testing=testing,
            options=inner.own,
            **{**parts, **({"ways": test_ways} if testing else {})},
        )
        try:
            return make_learner(inner.learner, ingredients)
        except ValueError as error:
            raise UsageError(f"--learner={inner.learner} does not work here: {error}") from error

    return make


def inner_rule(inner: InnerLoop) -> optax.GradientTransformation:
    """Makes the inner optimizer."""
    differentiated = inner.estimator == "backprop"
    return make_rule(inner.optimizer, inner.learning_rate, differentiated=differentiated)


def halved_after_first(inner: InnerLoop) -> optax.GradientTransformation:
    """Makes SGD whose step size is halved after the first step, as in MAML's RL protocol."""
    rate = inner.learning_rate
    return optax.sgd(optax.piecewise_constant_schedule(rate, {1: 0.5}))


def inner_adjoint(name: str) -> Adjoint:
    """Finds an adjoint by name.

    Raises:
      UsageError: If this machine's device cannot do it.
    """
    adjoint = make_adjoint(name)
    try:
        check_adjoint(adjoint)
    except ValueError as error:
        raise UsageError(f"--adjoint={name} does not work here: {error}") from error
    return adjoint


def inner_loop_in_words(inner: InnerLoop) -> str:
    """Describes how a task adapts."""
    if inner.learner not in LEARNERS:
        return "none: the outer steps learn one task"
    if inner.entry.objective:
        return "none in training; in test a task fits a head to its support set"
    if not inner.entry.inner:
        return "none: a task reads its support set once"
    return (
        f"{inner.steps} x {_rule_in_words(inner)} in training, "
        f"{inner.test_steps} x at test; {_derivative_in_words(inner)}"
    )


def _rule_in_words(inner: InnerLoop) -> str:
    if inner.own.get("hessian_free"):
        return "Newton's steps"
    name = "the learner's rule, from" if inner.entry.own_rule else inner.optimizer
    return f"{name} {inner.learning_rate:g}"


def _derivative_in_words(inner: InnerLoop) -> str:
    if inner.estimator != "backprop":
        return "not differentiated"
    return f"adjoint {inner.adjoint}" if inner.entry.unrolls else "implicit derivative"
