"""MAML++: MAML with step sizes and norms of each inner step, and objectives that change in training."""

from metajax import trees
from metajax.inner.adjoints import ADJOINTS, Adjoint
from metajax.inner.per_step import PerStep
from metajax.inner.rules.base import learned_rates
from metajax.learners.gradient.base import GradientFast, GradientMeta, gradient_learner
from metajax.types import Learner, LossFn, Model


def maml_plus_plus(
    model: Model,
    loss: LossFn,
    *,
    learning_rate: float,
    steps: int = 5,
    rows: int | None = None,
    adjoint: Adjoint = ADJOINTS["reverse"],
) -> Learner[GradientMeta, GradientFast]:
    """The learner of MAML++: step sizes of each leaf and step, scales and biases of norms of each step.

    A norm of policy "batch" goes by the statistics of the batch at hand in every step, in test too, which is
    what the authors' code computes (https://github.com/AntreasAntoniou/HowToTrainYourMAMLPytorch, class
    MetaBatchNormLayer): it collects running ones for each step, and always normalises by the batch's.

    Each part can be had alone: `learned_rates(rate, per="leaf", steps=5)` is the rule,
    `PerStep(model.parts.norms, 5)` are the norms. The norms do not adapt. Of its training,
    `objectives.multi_step_objective` is the loss after every step with annealed weights, and
    `metagrad.switch_at` the annealing of the order of derivatives; of its test, `learners.ensemble`.

    Args:
      model: the network; without norms all its leaves adapt.
      loss: the inner loss.
      learning_rate: where all step sizes start.
      steps: inner steps a call of `adapt` takes.
      rows: for how many steps, counted over all calls, step sizes and norms are learned; later steps share
        the last. As many as `steps` if None: name it where learners of other `steps` share meta-parameters.
      adjoint: how to differentiate through the steps.

    Reference: Antoniou et al., 2019 (https://arxiv.org/abs/1810.09502), section 4.
    """
    rows = max(steps if rows is None else rows, 1)  # no steps read none
    return gradient_learner(
        model,
        loss,
        rule=learned_rates(learning_rate, per="leaf", steps=rows),
        steps=steps,
        adapts=trees.but(model.parts.norms, model.parts.averages),
        per_step=PerStep(model.parts.norms, rows, required=False),
        adjoint=adjoint,
    )
