"""MAML and its family, as compositions of what adapts, by which rule, and how that is differentiated."""

import optax

from metajax import trees
from metajax.inner.adjoints import ADJOINTS, Adjoint
from metajax.inner.rules.base import learned_rates
from metajax.inner.rules.lstm import lstm_rule
from metajax.inner.rules.matrices import curvature_rule
from metajax.inner.rules.networks import learned_rule
from metajax.learners.gradient.base import GradientFast, GradientMeta, gradient_learner
from metajax.types import Learner, LossFn, Model


def maml(
    model: Model,
    loss: LossFn,
    *,
    rule: optax.GradientTransformation,
    steps: int = 1,
    minibatch: int | None = None,
    adjoint: Adjoint = ADJOINTS["reverse"],
) -> Learner[GradientMeta, GradientFast]:
    """Model-agnostic meta-learning: every parameter adapts, from a meta-learned start.

    First-order MAML is a rule, not a switch: `rule=optax.chain(stop_gradient(), optax.sgd(0.1))`.
    So is the sign of the gradient, `optax.sign_sgd(0.01)`: its derivative is zero, which makes it first order
    by itself (Fan et al., 2021, https://arxiv.org/abs/2109.07497).

    Args:
      model: the network.
      loss: the inner loss.
      rule: the inner rule; in the paper `optax.sgd`, of a step size for a *summed* loss (see
        `cross_entropy`). With `optax.adam` set `eps_root > 0`: the derivative of its square root is
        infinite at zero.
      steps: inner steps.
      minibatch: support examples that a step sees, as Reptile takes them; None shows it all.
      adjoint: how to differentiate through the steps.

    Reference: Finn et al., 2017 (https://arxiv.org/abs/1703.03400), eq. 1 and algorithm 2.
    """
    return gradient_learner(
        model, loss, rule=rule, steps=steps, minibatch=minibatch, adjoint=adjoint
    )


def anil(
    model: Model,
    loss: LossFn,
    *,
    rule: optax.GradientTransformation,
    steps: int = 1,
    head: str | None = None,
    adjoint: Adjoint = ADJOINTS["reverse"],
) -> Learner[GradientMeta, GradientFast]:
    """Almost no inner loop: only the last layer adapts, the body is shared as it is.

    Args:
      model: the network.
      loss: the inner loss.
      rule: the inner rule of the head.
      steps: inner steps.
      head: Name of the last layer in its parameters' paths, a component or several, as in `layers/1`; the
        head that the model names in `model.parts` if None.
      adjoint: how to differentiate through the steps.

    Reference: Raghu et al., 2020 (https://arxiv.org/abs/1909.09157), section 4.
    """
    return gradient_learner(
        model, loss, rule=rule, steps=steps, adapts=_head(model, head), adjoint=adjoint
    )


def boil(
    model: Model,
    loss: LossFn,
    *,
    rule: optax.GradientTransformation,
    steps: int = 1,
    head: str | None = None,
    adjoint: Adjoint = ADJOINTS["reverse"],
) -> Learner[GradientMeta, GradientFast]:
    """Body only in the inner loop: the representation adapts, the last layer stays as meta-learned.

    Args:
      model: the network.
      loss: the inner loss.
      rule: the inner rule of the body.
      steps: inner steps.
      head: Name of the last layer in its parameters' paths, a component or several, as in `layers/1`; the
        head that the model names in `model.parts` if None.
      adjoint: how to differentiate through the steps.

    Reference: Oh et al., 2021 (https://arxiv.org/abs/2008.08882), eq. 2 with a head step of zero.
    """
    body = trees.but(_head(model, head), model.parts.averages)
    return gradient_learner(model, loss, rule=rule, steps=steps, adapts=body, adjoint=adjoint)


def meta_sgd(
    model: Model,
    loss: LossFn,
    *,
    learning_rate: float,
    steps: int = 1,
    adjoint: Adjoint = ADJOINTS["reverse"],
) -> Learner[GradientMeta, GradientFast]:
    """MAML whose step sizes, one a parameter, are meta-learned beside the start.

    Args:
      model: the network.
      loss: the inner loss.
      learning_rate: where all step sizes start.
      steps: inner steps; the paper takes one.
      adjoint: how to differentiate through them.

    Reference: Li et al., 2017 (https://arxiv.org/abs/1707.09835), eq. 3 and algorithm 1.
    """
    return gradient_learner(
        model, loss, rule=learned_rates(learning_rate), steps=steps, adjoint=adjoint
    )


def meta_curvature(
    model: Model,
    loss: LossFn,
    *,
    learning_rate: float,
    steps: int = 1,
    largest: int | None = 2048,
    adjoint: Adjoint = ADJOINTS["reverse"],
) -> Learner[GradientMeta, GradientFast]:
    """MAML whose gradients are bent by learned matrices, one along each mode of each leaf.

    Args:
      model: the network.
      loss: the inner loss.
      learning_rate: the step size; the matrices start at the identity, where this is MAML.
      steps: inner steps.
      largest: the longest mode to have a full matrix; longer ones have a number an entry.
      adjoint: how to differentiate through the steps.

    Reference: Park and Oliva, 2019 (https://arxiv.org/abs/1902.03356), section 3.
    """
    rule = curvature_rule(learning_rate, largest=largest)
    return gradient_learner(model, loss, rule=rule, steps=steps, adjoint=adjoint)


def learned_optimizer(
    model: Model,
    loss: LossFn,
    *,
    learning_rate: float,
    steps: int = 5,
    width: int = 16,
    adjoint: Adjoint = ADJOINTS["reverse"],
) -> Learner[GradientMeta, GradientFast]:
    """MAML whose inner rule is a small network, learned beside the start.

    Args:
      model: the network.
      loss: the inner loss.
      learning_rate: the step size of the plain gradient descent that the rule starts as.
      steps: inner steps; it may be tested with more than it was trained with.
      width: of the rule's hidden layer.
      adjoint: how to differentiate through the steps.

    Reference: Andrychowicz et al., 2016 (https://arxiv.org/abs/1606.04474), eq. 3, with a learned start.
    """
    rule = learned_rule(learning_rate, width=width)
    return gradient_learner(model, loss, rule=rule, steps=steps, adjoint=adjoint)


def meta_lstm(
    model: Model,
    loss: LossFn,
    *,
    learning_rate: float,
    steps: int = 5,
    units: int = 20,
    adjoint: Adjoint = ADJOINTS["reverse"],
) -> Learner[GradientMeta, GradientFast]:
    """Meta-LSTM: parameters are the cell state of an LSTM, whose gates are learned beside the start.

    Args:
      model: the network.
      loss: the inner loss.
      learning_rate: where the input gate, which is the step size, starts; under 1.
      steps: inner steps.
      units: of the LSTM that reads the gradients.
      adjoint: how to differentiate through the steps; gradients count as constants in any, as in the paper.

    Reference: Ravi and Larochelle, 2017 (https://openreview.net/forum?id=rJY0-Kcll), section 3.
    """
    rule = lstm_rule(learning_rate, units=units)
    return gradient_learner(model, loss, rule=rule, steps=steps, adjoint=adjoint)


def _head(model: Model, name: str | None) -> trees.PathPredicate:
    return model.parts.head if name is None else trees.under(name)
