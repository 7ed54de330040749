"""The smallest complete program: a learner, a task sampler, training and evaluation.

    python -m experiments.examples.quickstart

A task has five new classes and one labelled example per class. Only 4 of the 20 inputs depend on the class;
the encoder of a prototypical network (Snell et al., 2017, https://arxiv.org/abs/1703.05175) learns which.
"""

import jax
import jax.numpy as jnp
import optax

import metajax
from metajax.toys import toy_model

WAYS, QUERIES, INPUTS, INFORMATIVE = 5, 5, 20, 4

# 1. A learner. This one averages the encoder's features per class and compares queries with the averages.
learner = metajax.protonet(toy_model(None, features=32), ways=WAYS)


# 2. A task sampler: a pure function of data (none here) and a random key.
def sample(data, key):
    """Draws an episode with inputs [B, 20]: five clouds of points around random centers."""
    del data
    numbers = jax.random.normal(key, (WAYS, 2 + QUERIES, INPUTS))
    informative = jnp.arange(INPUTS) < INFORMATIVE
    centers = jnp.where(informative, 3 * numbers[:, :1], 0)
    inputs = centers + jnp.where(informative, 0.5, 3) * numbers[:, 1:]

    def batch(inputs):
        labels = jnp.repeat(jnp.arange(WAYS), inputs.shape[1])
        return metajax.Batch(inputs.reshape(-1, INPUTS), labels)

    return metajax.Episode(batch(inputs[:, :1]), batch(inputs[:, 1:]))


# 3. An objective scores one task; `backprop` averages its gradient over tasks; optax applies it.
scoring = metajax.Scoring(metajax.cross_entropy, {"accuracy": metajax.accuracy})
objective = metajax.query_objective(learner, scoring)
optimizer = optax.adam(1e-2)
step = metajax.make_step(metajax.backprop(objective), optimizer, sample, num_tasks=16)
evaluate = jax.jit(metajax.make_evaluate(objective, sample, tasks_at_once=100))


def main(steps=300, tasks=600):
    """Trains for `steps` meta-steps; prints the accuracy on new tasks before and after."""
    init_key, train_key, test_key = jax.random.split(jax.random.key(0), 3)
    meta = learner.init(init_key, jnp.zeros((1, INPUTS)))
    state = metajax.init_state(meta, optimizer, train_key)
    trained, _ = jax.jit(metajax.make_run(step, steps=steps))(state, ())
    for name, meta in (("before", state.meta), ("after", trained.meta)):
        scores = evaluate(meta, (), test_key, jnp.arange(tasks))["accuracy"]
        mean, width = metajax.confidence_interval(scores)
        print(f"{name} training: {100 * mean:.1f}% +- {100 * width:.1f} of queries are correct")


if __name__ == "__main__":
    main()
