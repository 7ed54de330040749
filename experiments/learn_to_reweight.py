"""Learns from wrong labels: weighs examples by the meta-gradient of a loss on clean examples.

  python -m experiments.learn_to_reweight

Half of the training labels of real handwritten digits are replaced by wrong ones; a hundred digits are known
to be right. In every training step, the weight of an example in the noisy minibatch is proportional to the
decrease of the clean loss, after one step of gradient descent, per unit of that weight. This is one
meta-gradient: the weights are the meta-parameters, and an episode is a noisy support set and a clean query
set.

Algorithm 1 of Ren et al., 2018, "Learning to Reweight Examples for Robust Deep Learning"
(https://arxiv.org/abs/1803.09050).
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax
from metajax.learners.gradient.base import GradientMeta
from metajax.models import MLP, from_flax
from metajax.types import Array, Batch, Key, Metrics, Model, Objective, Params

from .flags.settings import UsageError, option
from .flags.training import MAX_SEED
from .reports.digits import TEST_DIGITS, digits, finish, shown, take
from .runtime.launch import launch

CHECKS = 10  # number of evaluations of a run, for the baseline with early stopping


@dataclasses.dataclass(frozen=True)
class ReweightSettings:
    """Options of learning to reweight."""

    noise: float = option(
        0.5, "Fraction of wrong training labels.", section="Data", least=0, most=0.9
    )
    clean: int = option(100, "Digits known to be right.", section="Data", least=10, most=297)
    hidden: int = option(100, "Width of the network's hidden layer.", section="Learner", least=1)
    batch: int = option(300, "Noisy digits per step.", section="Training", least=1, most=1000)
    lr: float = option(1e-3, "Step size of Adam.", section="Training", above=0)
    steps: int = option(700, "Training steps, a multiple of 10.", section="Training", least=10)
    seed: int = option(0, "Seed of all random numbers.", section="Run", least=0, most=MAX_SEED)
    runs: int = option(5, "Runs, each with another split and wrong labels.", section="Run", least=2)
    workdir: str = option(
        "", "Folder of result.json; if not given, none is written.", section="Run"
    )


class NoisyEpisode(NamedTuple):
    """An episode whose support labels may be wrong.

    Attributes:
      support: Noisy examples.
      query: Clean examples.
      wrong: Whether each support label is wrong [B], bool; for reports only.
    """

    support: Batch
    query: Batch
    wrong: Array


def weighted_sum(outputs: Array, batch: Batch) -> Array:
    """Computes the weighted sum of cross-entropies; a weighted mean would be 0 / 0 if all weights are zero.

    Args:
      outputs: Logits [B, N].
      batch: Examples with weights [B].

    Returns:
      Scalar loss.
    """
    losses = optax.softmax_cross_entropy_with_integer_labels(outputs, batch.targets)
    return jnp.sum(batch.weights * losses)


def clean_objective(model: Model, params: Params) -> Objective:
    """Makes an objective of example weights: the clean loss after one step on the weighted noisy loss.

    Args:
      model: Network.
      params: Parameters before the step.

    Returns:
      Objective whose meta-parameters are example weights [B].
    """
    # The step size scales all weights equally, and normalization removes the scale: 1.0 will do.
    learner = metajax.learners.gradient_learner(model, weighted_sum, rule=optax.sgd(1.0), steps=1)
    look_ahead = metajax.query_objective(learner, metajax.cross_entropy)

    def objective(weights: Array, key: Key, episode: NoisyEpisode) -> tuple[Array, Metrics]:
        support = episode.support._replace(weights=weights)
        return look_ahead(GradientMeta(params, ()), key, episode._replace(support=support))

    return objective


def example_weights(model: Model, params: Params, key: Key, episode: NoisyEpisode) -> Array:
    """Computes weights of the support examples, eqs. 5 to 7.

    Args:
      model: Network.
      params: Parameters of the network.
      key: Random key; consumed.
      episode: Noisy and clean examples.

    Returns:
      Weights [B], not negative, with sum one; all zero if no example would lower the clean loss.
    """
    zeros = jnp.zeros(episode.support.targets.shape, episode.support.inputs.dtype)
    tasks = jax.tree.map(lambda leaf: leaf[None], (key, episode))
    grads, _ = metajax.backprop(clean_objective(model, params))(zeros, *tasks)
    helpful = jnp.maximum(-grads, 0.0)
    total = jnp.sum(helpful)
    return helpful / jnp.where(total > 0, total, 1.0)


def objectives(model: Model) -> dict[str, Objective]:
    """Makes the training objectives to compare: reweighted noisy, noisy, and clean examples.

    Args:
      model: Network.

    Returns:
      Functions (params, key, episode) -> (loss, metrics) by way of training.
    """

    def reweighted(params, key, episode):
        weights = example_weights(model, jax.lax.stop_gradient(params), key, episode)
        outputs = model.apply(params, episode.support.inputs)
        loss = weighted_sum(outputs, episode.support._replace(weights=weights))
        return loss, {"wrong_weight": jnp.sum(weights * episode.wrong)}

    def noisy(params, key, episode):
        outputs = model.apply(params, episode.support.inputs)
        return metajax.cross_entropy(outputs, episode.support), {}

    def clean(params, key, episode):
        outputs = model.apply(params, episode.query.inputs)
        return metajax.cross_entropy(outputs, episode.query), {}

    return {"reweighted": reweighted, "noisy": noisy, "clean": clean}


def split(settings: ReweightSettings, data: Batch, key: Key) -> tuple[NoisyEpisode, Batch]:
    """Splits the digits into noisy, clean and test ones, and draws the wrong labels.

    Args:
      settings: Settings of the example.
      data: All digits.
      key: Random key; consumed.

    Returns:
      The noisy and clean digits as an episode, and the test digits.
    """
    order_key, wrong_key, label_key = jax.random.split(key, 3)
    order = jax.random.permutation(order_key, len(data.targets))
    ends = (TEST_DIGITS, TEST_DIGITS + settings.clean)
    test, clean, noisy = (take(data, chosen) for chosen in jnp.split(order, ends))
    wrong = jax.random.bernoulli(wrong_key, jnp.float32(settings.noise), noisy.targets.shape)
    steps = jax.random.randint(label_key, wrong.shape, 1, 10, jnp.int32)
    others = (noisy.targets + steps) % 10
    noisy = noisy._replace(targets=jnp.where(wrong, others, noisy.targets))
    return NoisyEpisode(noisy, clean, wrong), test


def train(settings: ReweightSettings, way: str, data: Batch, key: Key) -> Metrics:
    """Trains in one way; a pure function of its key.

    Args:
      settings: Settings of the example.
      way: Way of training, a key of `objectives`.
      data: All digits.
      key: Random key; consumed.

    Returns:
      Metrics [CHECKS], after each part of the training: `accuracy` on the test digits, `clean_loss`, and the
      objective's metrics, averaged over the part.
    """
    split_key, init_key, train_key = jax.random.split(key, 3)
    whole, test = split(settings, data, split_key)
    model = from_flax(MLP(features=(settings.hidden,), outputs=10))
    optimizer = optax.adam(settings.lr)

    def sample(whole, key):
        shape = (settings.batch,)
        chosen = jax.random.choice(key, len(whole.wrong), shape, replace=False)
        return NoisyEpisode(take(whole.support, chosen), whole.query, whole.wrong[chosen])

    meta_grad = metajax.backprop(objectives(model)[way])
    step = metajax.make_step(meta_grad, optimizer, sample, num_tasks=1)

    def part(state, _):
        state, metrics = metajax.many_steps(step, settings.steps // CHECKS)(state, whole)
        outputs = [model.apply(state.meta, batch.inputs) for batch in (test, whole.query)]
        scores = {
            "accuracy": metajax.accuracy(outputs[0], test),
            "clean_loss": metajax.cross_entropy(outputs[1], whole.query),
        }
        return state, {**jax.tree.map(jnp.mean, metrics), **scores}

    meta = model.init(init_key, data.inputs[:1])
    state = metajax.init_state(meta, optimizer, train_key)
    return jax.lax.scan(part, state, length=CHECKS)[1]


def run(settings: ReweightSettings) -> dict[str, Any]:
    """Trains in every way on the same splits.

    Args:
      settings: Settings of the example.

    Returns:
      Test accuracies [runs] by way, and the shares [runs] of the weight on wrong labels.

    Raises:
      UsageError: If the number of steps is not a multiple of CHECKS.
    """
    if settings.steps % CHECKS:
        raise UsageError(f"--steps={settings.steps} is not a multiple of {CHECKS}; use one.")
    data, keys = digits(), jax.random.split(jax.random.key(settings.seed), settings.runs)
    curves = {}
    for way in ("reweighted", "noisy", "clean"):
        trained = jax.jit(jax.vmap(functools.partial(train, settings, way), (None, 0)))(data, keys)
        curves[way] = jax.tree.map(np.asarray, trained)
    noisy = curves["noisy"]
    best = np.argmin(noisy["clean_loss"], axis=1)
    return {
        **{way: curve["accuracy"][:, -1] for way, curve in curves.items()},
        "stopped_early": noisy["accuracy"][np.arange(settings.runs), best],
        "wrong_weight": np.mean(curves["reweighted"]["wrong_weight"], axis=1),
    }


def start(settings: ReweightSettings) -> int:
    """Runs the example, and prints and writes the results.

    Args:
      settings: Settings of the example.

    Returns:
      Exit status.
    """
    result = run(settings)
    gains = {way: result["reweighted"] - result[way] for way in ("stopped_early", "clean")}
    rows = [
        ("test accuracy of", f"mean of {settings.runs} runs with its 95% interval"),
        ("reweighted", shown(result["reweighted"])),
        ("noisy labels", shown(result["noisy"])),
        ("noisy, stopped early", f"{shown(result['stopped_early'])}, by the clean loss"),
        ("clean labels alone", f"{shown(result['clean'])}, {settings.clean} digits"),
        ("gain over clean", f"{shown(gains['clean'])}, paired by split"),
        ("gain over early stop", f"{shown(gains['stopped_early'])}, paired by split"),
        (
            "weight on wrong labels",
            f"{shown(result['wrong_weight'])}, where {100 * settings.noise:.0f}% are wrong",
        ),
        ("seed", str(settings.seed)),
    ]
    return finish(settings, rows, result)


def main() -> None:
    """Runs the example on the command line's flags."""
    launch(ReweightSettings, __doc__, start)


if __name__ == "__main__":
    main()
