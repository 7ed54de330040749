"""Learns from wrong labels: which examples to trust, from the hyper-gradient of a clean loss.

  python -m experiments.learn_to_reweight

Half of the training labels of real handwritten digits are replaced by wrong ones; a hundred digits are known
to be right. In every step of training, each example of the noisy minibatch weighs as much as a little more of
it would lower the loss on the clean digits after one step of gradient descent. That is one meta-gradient:
the weights are the meta-parameters, and an episode is a noisy support set and a clean query set.

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
from experiments.flags.settings import UsageError, option
from experiments.flags.training import MAX_SEED
from experiments.reports.digits import TEST_DIGITS, digits, finish, shown, take
from experiments.runtime.launch import launch
from metajax.learners.gradient.base import GradientMeta
from metajax.models import MLP, from_flax
from metajax.types import Array, Batch, Key, Metrics, Model, Objective, Params

CHECKS = 10  # how often a run is scored, for the baseline that stops early


@dataclasses.dataclass(frozen=True)
class ReweightSettings:
    """Every option of learning to reweight."""

    noise: float = option(
        0.5, "Fraction of wrong training labels.", section="Data", least=0, most=0.9
    )
    clean: int = option(100, "Digits known to be right.", section="Data", least=10, most=297)
    hidden: int = option(100, "Width of the network's hidden layer.", section="Learner", least=1)
    batch: int = option(300, "Noisy digits a step.", section="Training", least=1, most=1000)
    lr: float = option(1e-3, "Step size of Adam.", section="Training", above=0)
    steps: int = option(700, "Training steps, a multiple of 10.", section="Training", least=10)
    seed: int = option(0, "Seed of everything.", section="Run", least=0, most=MAX_SEED)
    runs: int = option(5, "Runs, each with its own split and labels.", section="Run", least=2)
    workdir: str = option("", "Where result.json is written; nowhere if not given.", section="Run")


class NoisyEpisode(NamedTuple):
    """An episode whose support labels may be wrong; `wrong` [B] bool says which, for the report alone."""

    support: Batch
    query: Batch
    wrong: Array


def weighted_sum(outputs: Array, batch: Batch) -> Array:
    """Cross-entropy, summed by the batch's weights: a mean by weights that are all zero is 0 / 0."""
    losses = optax.softmax_cross_entropy_with_integer_labels(outputs, batch.targets)
    return jnp.sum(batch.weights * losses)


def clean_objective(model: Model, params: Params) -> Objective:
    """Scores example weights [B]: the clean loss after one step on the noisy examples, weighted by them."""
    # The step size scales all weights alike, and they are normalised.
    learner = metajax.learners.gradient_learner(model, weighted_sum, rule=optax.sgd(1.0), steps=1)
    look_ahead = metajax.query_objective(learner, metajax.cross_entropy)

    def objective(weights: Array, key: Key, episode: NoisyEpisode) -> tuple[Array, Metrics]:
        support = episode.support._replace(weights=weights)
        return look_ahead(GradientMeta(params, ()), key, episode._replace(support=support))

    return objective


def example_weights(model: Model, params: Params, key: Key, episode: NoisyEpisode) -> Array:
    """Weighs the support examples: [B], none negative, of sum one, or zero if none helps; eqs. 5 to 7."""
    zeros = jnp.zeros(episode.support.targets.shape, episode.support.inputs.dtype)
    tasks = jax.tree.map(lambda leaf: leaf[None], (key, episode))
    grads, _ = metajax.backprop(clean_objective(model, params))(zeros, *tasks)
    helpful = jnp.maximum(-grads, 0.0)
    total = jnp.sum(helpful)
    return helpful / jnp.where(total > 0, total, 1.0)


def objectives(model: Model) -> dict[str, Objective]:
    """What each way of training minimises: (params, key, episode) -> (loss, metrics)."""

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
    """Deals the digits into noisy, clean and test ones, and draws which labels are wrong, and how."""
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
    """Trains one way; a pure function of its key, which is consumed.

    Returns:
      `accuracy` on the test digits and `clean_loss`, after each of CHECKS parts of the training, and the
      objective's metrics, averaged over each part.
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
    """Trains every way on the same splits; test accuracies [runs] and fractions of weight [runs]."""
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
    """Runs the example; returns the exit status."""
    result = run(settings)
    gains = {way: result["reweighted"] - result[way] for way in ("stopped_early", "clean")}
    rows = [
        ("test accuracy of", f"mean of {settings.runs} runs with its 95% interval"),
        ("reweighted", shown(result["reweighted"])),
        ("noisy labels", shown(result["noisy"])),
        ("noisy, stopped early", f"{shown(result['stopped_early'])}, by the clean loss"),
        ("clean labels alone", f"{shown(result['clean'])}, {settings.clean} digits"),
        ("gain over clean", f"{shown(gains['clean'])}, split by split"),
        ("gain over early stop", f"{shown(gains['stopped_early'])}, split by split"),
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
