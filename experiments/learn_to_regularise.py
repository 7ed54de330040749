"""Learns one regularization strength per weight, by differentiating through training.

  python -m experiments.learn_to_regularise

Softmax regression on a hundred handwritten digits, with a separate L2 penalty on each of the 640 weights.
Their strengths are the meta-parameters: the loss on validation digits is differentiated through all training
steps. A grid over 640 axes cannot be searched; a gradient can be followed. So many strengths also overfit
the validation digits: the table therefore includes plain training on both sets together.

Maclaurin et al., 2015, "Gradient-based Hyperparameter Optimization through Reversible Learning"
(https://arxiv.org/abs/1502.03492), section 3.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax
from metajax.types import Array, Batch, Episode, Key, Metrics, Objective

from .flags.settings import option
from .flags.training import MAX_SEED
from .reports.digits import TEST_DIGITS, digits, finish, shown, take
from .runtime.launch import launch

GRID = (-np.inf, *np.arange(-12.0, 1.0))  # log-strengths of the grid search for a single strength


@dataclasses.dataclass(frozen=True)
class RegulariseSettings:
    """Options of learning to regularize."""

    train: int = option(100, "Digits to train on.", section="Data", least=1, most=600)
    valid: int = option(200, "Digits to learn strengths from.", section="Data", least=1, most=600)
    inner_steps: int = option(200, "Training steps.", section="Inner loop", least=1)
    inner_lr: float = option(
        0.3, "Step size of training, with momentum 0.9.", section="Inner loop", above=0
    )
    adjoint: str = option(
        "mixed",
        "Method to differentiate through training.",
        section="Inner loop",
        # Not first_order: strengths reach the fitted weights through inner gradients alone.
        choices=("reverse", "remat", "mixed", "recursive", "truncated"),
    )
    steps: int = option(60, "Outer steps, on the strengths.", section="Training", least=1)
    lr: float = option(0.2, "Step size of the outer Adam.", section="Training", above=0)
    seed: int = option(0, "Seed of all random numbers.", section="Run", least=0, most=MAX_SEED)
    runs: int = option(5, "Runs, each with another split.", section="Run", least=2)
    workdir: str = option(
        "", "Folder of result.json; if not given, none is written.", section="Run"
    )


class Linear(NamedTuple):
    """Softmax regression.

    Attributes:
      kernel: Weights [D, N].
      bias: Biases [N].
    """

    kernel: Array
    bias: Array

    def __call__(self, inputs: Array) -> Array:
        """Computes logits.

        Args:
          inputs: Inputs [B, D].

        Returns:
          Logits [B, N].
        """
        return inputs @ self.kernel + self.bias


def penalized_loss(params: Linear, operands: tuple[Array, Batch]) -> Array:
    """Computes cross-entropy plus exp(s) w^2 / 2 for each weight w with log-strength s.

    Args:
      params: Softmax regression.
      operands: Log-strengths [D, N] and the batch.

    Returns:
      Scalar loss.
    """
    log_strengths, batch = operands
    penalty = 0.5 * jnp.sum(jnp.exp(log_strengths) * jnp.square(params.kernel))
    return metajax.cross_entropy(params(batch.inputs), batch) + penalty


def fit(settings: RegulariseSettings, log_strengths: Array, batch: Batch) -> Linear:
    """Trains softmax regression from zero; differentiable in the log-strengths.

    Args:
      settings: Settings of the example.
      log_strengths: Logarithms of the strengths [D, N]; -inf is no penalty.
      batch: Training examples.

    Returns:
      Trained softmax regression.
    """
    rule = optax.sgd(settings.inner_lr, momentum=0.9)

    def update(operands, grads, params, opt_state):
        updates, opt_state = rule.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    start = Linear(jnp.zeros_like(log_strengths), jnp.zeros_like(log_strengths[0]))
    operands = (log_strengths, batch)
    options = {"steps": settings.inner_steps, "adjoint": settings.adjoint}
    return metajax.unroll(penalized_loss, update, start, rule.init(start), operands, **options)[0]


def validation_objective(settings: RegulariseSettings) -> Objective:
    """Makes an objective that trains on the support set and scores the query set.

    Args:
      settings: Settings of the example.

    Returns:
      Objective whose meta-parameters are log-strengths [D, N].
    """

    def objective(log_strengths: Array, key: Key, episode: Episode) -> tuple[Array, Metrics]:
        del key
        fitted = fit(settings, log_strengths, episode.support)
        loss = metajax.cross_entropy(fitted(episode.query.inputs), episode.query)
        return loss, {"loss": loss}

    return objective


def compare(settings: RegulariseSettings, data: Batch, key: Key) -> dict[str, dict[str, Array]]:
    """Regularizes in four ways on one split; a pure function of its key.

    Args:
      settings: Settings of the example.
      data: All digits.
      key: Random key; consumed.

    Returns:
      Scalars `test_loss`, `test_accuracy` and `valid_loss` by way.
    """
    split_key, step_key = jax.random.split(key)
    ends = np.cumsum((TEST_DIGITS, settings.train, settings.valid))
    order = jax.random.permutation(split_key, len(data.targets))[: ends[-1]]
    test, train, valid = (take(data, chosen) for chosen in jnp.split(order, ends[:-1]))
    episode, objective = Episode(train, valid), validation_objective(settings)

    def uniform(log_strength):
        return jnp.full((data.inputs.shape[1], 10), log_strength, data.inputs.dtype)

    # 1. One strength for all weights, by grid search: the baseline without gradients.
    grid = jnp.array(GRID, data.inputs.dtype)
    losses = jax.lax.map(lambda strength: objective(uniform(strength), step_key, episode)[0], grid)
    single = uniform(grid[jnp.argmin(losses)])

    # 2. One strength per weight, starting from the best single one, by meta-gradients as in any
    # meta-learning.    If no penalty was best, the start is the grid's smallest finite value: exp has no
    # gradient at -inf.
    optimizer = optax.adam(settings.lr)
    step = metajax.make_step(
        metajax.backprop(objective), optimizer, lambda data, key: data, num_tasks=1
    )
    state = metajax.init_state(jnp.maximum(single, GRID[1]), optimizer, step_key)
    learned = metajax.many_steps(step, settings.steps)(state, episode)[0].meta

    def scores(log_strengths, batch=train):
        fitted = fit(settings, log_strengths, batch)
        outputs = fitted(test.inputs)
        return {
            "test_loss": metajax.cross_entropy(outputs, test),
            "test_accuracy": metajax.accuracy(outputs, test),
            "valid_loss": metajax.cross_entropy(fitted(valid.inputs), valid),
        }

    both = take(data, order[TEST_DIGITS:])
    none = uniform(-jnp.inf)
    ways = {"learned": scores(learned), "single": scores(single), "none": scores(none)}
    return {**ways, "trained_on_both": scores(none, both)}


def run(settings: RegulariseSettings) -> dict[str, Any]:
    """Compares the ways on several splits at once.

    Args:
      settings: Settings of the example.

    Returns:
      Scores [runs] by way and metric.
    """
    keys = jax.random.split(jax.random.key(settings.seed), settings.runs)
    compared = jax.jit(jax.vmap(functools.partial(compare, settings), (None, 0)))
    return jax.tree.map(np.asarray, compared(digits(), keys))


def start(settings: RegulariseSettings) -> int:
    """Runs the example, and prints and writes the results.

    Args:
      settings: Settings of the example.

    Returns:
      Exit status.
    """
    result = run(settings)

    def row(way: str) -> str:
        scores = result[way]
        accuracy, valid = shown(scores["test_accuracy"]), np.mean(scores["valid_loss"])
        return f"{shown(scores['test_loss'], 'nats')}, {accuracy}, {valid:.3f}"

    gain = result["single"]["test_loss"] - result["learned"]["test_loss"]
    rows = [
        ("strengths", "test loss, test accuracy, validation loss"),
        ("", f"means of {settings.runs} runs with their 95% intervals"),
        ("none", row("none")),
        ("one, by grid", row("single")),
        ("640, learned", row("learned")),
        ("gain over one", f"{shown(gain, 'nats')} of test loss, paired by split"),
        (
            "none, trained on both",
            f"{row('trained_on_both')}; trained on the validation digits too",
        ),
        ("seed", str(settings.seed)),
    ]
    return finish(settings, rows, result)


def main() -> None:
    """Runs the example on the command line's flags."""
    launch(RegulariseSettings, __doc__, start)


if __name__ == "__main__":
    main()
