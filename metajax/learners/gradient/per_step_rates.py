"""MAML++: MAML with a step size and norm parameters for each inner step."""

from metajax import trees
from metajax.deprecation import renamed_arguments
from metajax.inner.adjoints import ADJOINTS, Adjoint
from metajax.inner.per_step import PerStep
from metajax.inner.rules.base import learned_rates
from metajax.learners.gradient.base import GradientFast, GradientMeta, gradient_learner
from metajax.types import Learner, LossFn, Model


@renamed_arguments(rate="learning_rate")
def maml_plus_plus(
    model: Model,
    loss: LossFn,
    *,
    learning_rate: float,
    steps: int = 5,
    rows: int | None = None,
    adjoint: Adjoint = ADJOINTS["reverse"],
) -> Learner[GradientMeta, GradientFast]:
    """Adapts by a step size per leaf and step, with norm scales and biases per step: the MAML++ learner.

    A norm of policy "batch" uses the statistics of the current batch in every step, in testing too. This is
    what the authors' code computes (https://github.com/AntreasAntoniou/HowToTrainYourMAMLPytorch, class
    MetaBatchNormLayer): it collects running statistics per step, and always normalizes by the batch.

    Each part is available alone: `learned_rates(0.1, per="leaf", steps=5)` is the rule, and
    `PerStep(model.parts.norms, 5)` selects the norms, which do not adapt. The other parts of MAML++ are the
    loss after every step with annealed weights, `objectives.multi_step_objective`; the annealing of the
    derivative order, `metagrads.switch_at`; and the ensemble of checkpoints in testing, `learners.ensemble`.

    Args:
      model: Network; if it has no norms, all its leaves adapt.
      loss: Inner loss.
      learning_rate: Initial value of all step sizes.
      steps: Number of inner steps per call of `adapt`.
      rows: Number of steps, counted over all calls, that have their own step sizes and norms; later steps
        share the last ones. None for as many as `steps`; set it where learners of different `steps` share
        meta-parameters.
      adjoint: Method to differentiate through the steps; `metajax.ADJOINTS` lists them.

    Returns:
      A learner with meta-parameters `GradientMeta`, whose `rule` are the step sizes, and fast state
      `GradientFast`.

    Example:
      >>> task = metajax.toys.toy_episode(jax.random.key(0))
      >>> learner = maml_plus_plus(metajax.toys.toy_model(3), metajax.cross_entropy, learning_rate=0.1)
      >>> meta = learner.init(jax.random.key(1), task.support.inputs)
      >>> meta.rule["body"].shape  # one step size for each of 5 steps
      (5,)

    Reference: Antoniou et al., 2019 (https://arxiv.org/abs/1810.09502), section 4.
    """
    rows = max(steps if rows is None else rows, 1)  # learners without steps have no row to read
    return gradient_learner(
        model,
        loss,
        rule=learned_rates(learning_rate, per="leaf", steps=rows),
        steps=steps,
        adapts=trees.but(model.parts.norms, model.parts.averages),
        per_step=PerStep(model.parts.norms, rows, required=False),
        adjoint=adjoint,
    )
