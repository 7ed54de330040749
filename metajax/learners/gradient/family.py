"""MAML and its relatives: each chooses the leaves that adapt and the inner rule of `gradient_learner`."""

import optax

from metajax import trees
from metajax.deprecation import renamed_arguments
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
    """Adapts every parameter from a meta-learned initialization: model-agnostic meta-learning.

    First-order MAML is a rule, not a switch: `rule=optax.chain(stop_gradient(), optax.sgd(0.1))`. So is
    sign-MAML, `rule=optax.sign_sgd(0.01)`: the derivative of the sign is zero, which makes it first order by
    itself (Fan et al., 2021, https://arxiv.org/abs/2109.07497).

    Args:
      model: Network.
      loss: Inner loss.
      rule: Inner rule; `optax.sgd` in the paper, whose step size belongs to a *summed* loss (see
        `cross_entropy`). Give `optax.adam` an `eps_root` above 0: the derivative of its square root is
        infinite at zero.
      steps: Number of inner steps.
      minibatch: Number of support examples per step, as in Reptile; None for all.
      adjoint: Method to differentiate through the steps; `metajax.ADJOINTS` lists them.

    Returns:
      A learner with meta-parameters `GradientMeta` and fast state `GradientFast`.

    Example:
      >>> task = metajax.toys.toy_episode(jax.random.key(0))
      >>> learner = maml(metajax.toys.toy_model(3), metajax.cross_entropy, rule=optax.sgd(0.1), steps=2)
      >>> meta = learner.init(jax.random.key(1), task.support.inputs)
      >>> fast = learner.start(meta, jax.random.key(2))
      >>> fast = learner.adapt(meta, fast, jax.random.key(3), task.support)
      >>> learner.predict(meta, fast, task.query.inputs).shape
      (12, 3)

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
    """Adapts only the last layer, on a shared body: almost no inner loop.

    Args:
      model: Network.
      loss: Inner loss.
      rule: Inner rule of the head.
      steps: Number of inner steps.
      head: Path of the last layer in the parameters: one or several components, as in `layers/1`. None for
        the head that the model names in `model.parts`.
      adjoint: Method to differentiate through the steps; `metajax.ADJOINTS` lists them.

    Returns:
      A learner with meta-parameters `GradientMeta` and fast state `GradientFast`.

    Example:
      >>> task = metajax.toys.toy_episode(jax.random.key(0))
      >>> learner = anil(metajax.toys.toy_model(3), metajax.cross_entropy, rule=optax.sgd(0.1))
      >>> meta = jax.eval_shape(learner.init, jax.random.key(1), task.support.inputs)
      >>> fast = jax.eval_shape(learner.start, meta, jax.random.key(2))
      >>> metajax.trees.paths(learner.adapted(fast))
      ['head/bias', 'head/kernel']

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
    """Adapts the body and keeps the last layer as meta-learned: body only in the inner loop.

    Args:
      model: Network.
      loss: Inner loss.
      rule: Inner rule of the body.
      steps: Number of inner steps.
      head: Path of the last layer in the parameters: one or several components, as in `layers/1`. None for
        the head that the model names in `model.parts`.
      adjoint: Method to differentiate through the steps; `metajax.ADJOINTS` lists them.

    Returns:
      A learner with meta-parameters `GradientMeta` and fast state `GradientFast`.

    Example:
      >>> task = metajax.toys.toy_episode(jax.random.key(0))
      >>> learner = boil(metajax.toys.toy_model(3), metajax.cross_entropy, rule=optax.sgd(0.1))
      >>> meta = learner.init(jax.random.key(1), task.support.inputs)
      >>> fast = learner.start(meta, jax.random.key(2))
      >>> metajax.trees.paths(learner.adapted(fast))
      ['body']

    Reference: Oh et al., 2021 (https://arxiv.org/abs/2008.08882), eq. 2 with a head step size of zero.
    """
    body = trees.but(_head(model, head), model.parts.averages)
    return gradient_learner(model, loss, rule=rule, steps=steps, adapts=body, adjoint=adjoint)


@renamed_arguments(rate="learning_rate")
def meta_sgd(
    model: Model,
    loss: LossFn,
    *,
    learning_rate: float,
    steps: int = 1,
    adjoint: Adjoint = ADJOINTS["reverse"],
) -> Learner[GradientMeta, GradientFast]:
    """Adapts every parameter with a separate meta-learned step size.

    The update is theta - alpha * grad, with alpha of the shape of theta, eq. 3.

    Args:
      model: Network.
      loss: Inner loss.
      learning_rate: Initial value of all step sizes.
      steps: Number of inner steps; 1 in the paper.
      adjoint: Method to differentiate through the steps; `metajax.ADJOINTS` lists them.

    Returns:
      A learner with meta-parameters `GradientMeta`, whose `rule` are the step sizes, and fast state
      `GradientFast`.

    Example:
      >>> task = metajax.toys.toy_episode(jax.random.key(0))
      >>> learner = meta_sgd(metajax.toys.toy_model(3), metajax.cross_entropy, learning_rate=0.1)
      >>> meta = learner.init(jax.random.key(1), task.support.inputs)
      >>> meta.rule["body"].shape == meta.params["body"].shape
      True

    Reference: Li et al., 2017 (https://arxiv.org/abs/1707.09835), eq. 3 and algorithm 1.
    """
    return gradient_learner(
        model, loss, rule=learned_rates(learning_rate), steps=steps, adjoint=adjoint
    )


@renamed_arguments(rate="learning_rate")
def meta_curvature(
    model: Model,
    loss: LossFn,
    *,
    learning_rate: float,
    steps: int = 1,
    largest: int | None = 2048,
    adjoint: Adjoint = ADJOINTS["reverse"],
) -> Learner[GradientMeta, GradientFast]:
    """Adapts by gradients that meta-learned matrices transform, one matrix along each mode of each leaf.

    Args:
      model: Network.
      loss: Inner loss.
      learning_rate: Step size; the matrices start at the identity, where this is MAML.
      steps: Number of inner steps.
      largest: Length of the longest mode that has a full matrix; longer modes have a diagonal one. None gives
        every mode a full matrix.
      adjoint: Method to differentiate through the steps; `metajax.ADJOINTS` lists them.

    Returns:
      A learner with meta-parameters `GradientMeta`, whose `rule` are the matrices, and fast state
      `GradientFast`.

    Example:
      >>> task = metajax.toys.toy_episode(jax.random.key(0))
      >>> learner = meta_curvature(metajax.toys.toy_model(3), metajax.cross_entropy, learning_rate=0.1)
      >>> meta = jax.eval_shape(learner.init, jax.random.key(1), task.support.inputs)
      >>> [matrix.shape for matrix in meta.rule["body"]]  # of a leaf [2, 8]
      [(2, 2), (8, 8)]

    Reference: Park and Oliva, 2019 (https://arxiv.org/abs/1902.03356), section 3.
    """
    rule = curvature_rule(learning_rate, largest=largest)
    return gradient_learner(model, loss, rule=rule, steps=steps, adjoint=adjoint)


@renamed_arguments(rate="learning_rate")
def learned_optimizer(
    model: Model,
    loss: LossFn,
    *,
    learning_rate: float,
    steps: int = 5,
    width: int = 16,
    adjoint: Adjoint = ADJOINTS["reverse"],
) -> Learner[GradientMeta, GradientFast]:
    """Adapts by a learned optimizer: a small network, meta-learned together with the initialization.

    Args:
      model: Network.
      loss: Inner loss.
      learning_rate: Step size of the plain gradient descent that the rule is before training.
      steps: Number of inner steps; testing may take more than training.
      width: Width of the hidden layer of the rule.
      adjoint: Method to differentiate through the steps; `metajax.ADJOINTS` lists them.

    Returns:
      A learner with meta-parameters `GradientMeta`, whose `rule` is the network, and fast state
      `GradientFast`.

    Example:
      >>> task = metajax.toys.toy_episode(jax.random.key(0))
      >>> learner = learned_optimizer(metajax.toys.toy_model(3), metajax.cross_entropy, learning_rate=0.1)
      >>> meta = jax.eval_shape(learner.init, jax.random.key(1), task.support.inputs)
      >>> meta.rule.kernel.shape  # 7 inputs per parameter: its gradient, momenta and value
      (7, 16)

    Reference: Andrychowicz et al., 2016 (https://arxiv.org/abs/1606.04474), eq. 3, with a learned
    initialization.
    """
    rule = learned_rule(learning_rate, width=width)
    return gradient_learner(model, loss, rule=rule, steps=steps, adjoint=adjoint)


@renamed_arguments(rate="learning_rate")
def meta_lstm(
    model: Model,
    loss: LossFn,
    *,
    learning_rate: float,
    steps: int = 5,
    units: int = 20,
    adjoint: Adjoint = ADJOINTS["reverse"],
) -> Learner[GradientMeta, GradientFast]:
    """Adapts parameters as the cell state of an LSTM with meta-learned gates: Meta-LSTM.

    The update is theta <- f * theta - i * grad, eq. 2, where the forget gate f and the input gate i depend on
    the gradients so far.

    Args:
      model: Network.
      loss: Inner loss.
      learning_rate: Initial value of the input gate, which acts as the step size; between 0 and 1.
      steps: Number of inner steps.
      units: Number of units of the LSTM that reads the gradients.
      adjoint: Method to differentiate through the steps. With every adjoint, gradients count as constants, as
        in the paper.

    Returns:
      A learner with meta-parameters `GradientMeta`, whose `rule` is the LSTM, and fast state `GradientFast`.

    Example:
      >>> task = metajax.toys.toy_episode(jax.random.key(0))
      >>> learner = meta_lstm(metajax.toys.toy_model(3), metajax.cross_entropy, learning_rate=0.1)
      >>> meta = jax.eval_shape(learner.init, jax.random.key(1), task.support.inputs)
      >>> meta.rule.gates.shape  # two gates, on 20 units, the parameter and the last value of the gate
      (2, 22)

    Reference: Ravi and Larochelle, 2017 (https://openreview.net/forum?id=rJY0-Kcll), section 3.
    """
    rule = lstm_rule(learning_rate, units=units)
    return gradient_learner(model, loss, rule=rule, steps=steps, adjoint=adjoint)


def _head(model: Model, name: str | None) -> trees.PathPredicate:
    """Returns the predicate of the last layer: its path, or the model's own if None."""
    return model.parts.head if name is None else trees.under(name)
