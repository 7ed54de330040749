"""Your learner in metajax: four pure functions, in twenty lines.

    python -m experiments.examples.your_learner

A learner has two pytrees of state: `meta`, learned across tasks by the outer optimizer, and `fast`, learned
within one task. Its functions are written for a single task; metajax vectorizes them over tasks,
differentiates through them, shards them and evaluates them.

- `init(key, inputs) -> meta`: the meta-parameters.
- `start(meta, key, like) -> fast`: the fast state of a new task; shapes stay the same from here on.
- `adapt(meta, fast, key, batch) -> fast`: the fast state after more labelled examples.
- `predict(meta, fast, inputs) -> outputs`: the outputs for new inputs.

The learner here is a Gaussian classifier on learned features. Class means have a Gaussian prior, so that the
mean of few examples is shrunk towards zero, and a class with more examples has a smaller predictive variance.
The prior's variance and the examples' variance are meta-learned, per feature. It is compared with a
prototypical network of the same linear encoder, on tasks whose classes have 1 to 5 examples: 67.9% and 66.1%
of the queries in 1,000 new tasks are correct, with a paired difference of 1.8 +- 0.4.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import metajax
from metajax.models import from_functions

WAYS, INPUTS, FEATURES = 5, 16, 16


class Meta(NamedTuple):
    """Meta-parameters.

    Attributes:
      params: Parameters of the encoder.
      log_prior: Log variance of class means around zero [D].
      log_noise: Log variance of examples around their class mean [D].
    """

    params: Any
    log_prior: jax.Array
    log_noise: jax.Array


class Sums(NamedTuple):
    """Fast state: sufficient statistics of each class, so that more examples can come at any time.

    Attributes:
      features: Sum of the features of each class [N, D].
      counts: Number of examples of each class [N].
    """

    features: jax.Array
    counts: jax.Array


# The learner.
def gaussian_learner(encoder, *, ways, features):
    """Makes a Gaussian classifier on the features [B, D] of an encoder.

    With prior variance p, noise variance s and n examples of sum t, the mean of a class has the posterior
    N(t / (n + s / p), 1 / (n / s + 1 / p)), and an example the predictive variance s more.
    """

    def init(key, inputs):
        return Meta(encoder.init(key, inputs), jnp.zeros(features), jnp.zeros(features))

    def start(meta, key, like=None):
        return Sums(jnp.zeros((ways, features)), jnp.zeros(ways))

    def adapt(meta, fast, key, batch):
        members = jax.nn.one_hot(batch.targets, ways, axis=0)  # [N, B]
        members = members if batch.weights is None else members * batch.weights
        sums = members @ encoder.apply(meta.params, batch.inputs)
        return Sums(fast.features + sums, fast.counts + members.sum(axis=1))

    def predict(meta, fast, inputs):
        prior, noise, counts = (
            jnp.exp(meta.log_prior),
            jnp.exp(meta.log_noise),
            fast.counts[:, None],
        )
        means = fast.features / (counts + noise / prior)
        variances = noise + 1 / (counts / noise + 1 / prior)
        queries = encoder.apply(meta.params, inputs)[:, None]
        densities = -0.5 * ((queries - means) ** 2 / variances + jnp.log(variances))
        return densities.sum(axis=-1)  # logits [B, N]: log densities up to a constant

    return metajax.Learner(init, start, adapt, predict)


# Tasks: each class has its number of support examples, from 1 to 5; the rest is padding of weight zero.
def sample(data, key, *, shots=5, queries=5):
    """Draws a task of 5 classes; 6 of the 16 inputs depend on the class, the others are noise."""
    del data
    number_key, count_key = jax.random.split(key)
    numbers = jax.random.normal(number_key, (WAYS, 1 + shots + queries, INPUTS))
    inputs = jnp.where(jnp.arange(INPUTS) < 6, numbers[:, :1], 0) + numbers[:, 1:]
    counts = jax.random.randint(count_key, (WAYS, 1), 1, shots + 1)
    weights = (jnp.arange(shots) < counts).astype(inputs.dtype).reshape(-1)

    def batch(inputs, weights=None):
        labels = jnp.repeat(jnp.arange(WAYS), inputs.shape[1])
        return metajax.Batch(inputs.reshape(-1, INPUTS), labels, weights)

    return metajax.Episode(batch(inputs[:, :shots], weights), batch(inputs[:, shots:]))


def linear_init(key, inputs):
    """Makes the weights [D', D] of a linear encoder of inputs [B, D']."""
    width = inputs.shape[1]
    return jax.random.normal(key, (width, FEATURES)) / jnp.sqrt(width)


def linear_apply(params, inputs):
    """Maps inputs [B, D'] to features [B, D]."""
    return inputs @ params


def accuracies(learner, *, steps, tasks):
    """Trains a learner; returns the accuracy on each new task."""
    scoring = metajax.Scoring(metajax.cross_entropy, {"accuracy": metajax.accuracy})
    objective = metajax.query_objective(learner, scoring)
    optimizer = optax.adam(1e-2)
    step = metajax.make_step(metajax.backprop(objective), optimizer, sample, num_tasks=16)
    evaluate = jax.jit(metajax.make_evaluate(objective, sample, tasks_at_once=100))

    init_key, train_key, test_key = jax.random.split(jax.random.key(0), 3)
    meta = learner.init(init_key, jnp.zeros((1, INPUTS)))
    state = metajax.init_state(meta, optimizer, train_key)
    trained, _ = jax.jit(metajax.make_run(step, steps=steps))(state, ())
    return evaluate(trained.meta, (), test_key, jnp.arange(tasks))["accuracy"]


def main(steps=500, tasks=1000):
    """Trains both learners on the same tasks; prints their accuracies and the paired difference."""
    encoder = from_functions(linear_init, linear_apply)
    learners = {
        "gaussian": gaussian_learner(encoder, ways=WAYS, features=FEATURES),
        "protonet": metajax.protonet(encoder, ways=WAYS),
    }
    scores = {
        name: accuracies(learner, steps=steps, tasks=tasks) for name, learner in learners.items()
    }
    scores["difference"] = scores["gaussian"] - scores["protonet"]
    for name, values in scores.items():
        mean, width = metajax.confidence_interval(values)
        print(f"{name:10}  {100 * mean:.1f}% +- {100 * width:.1f}")


if __name__ == "__main__":
    main()
