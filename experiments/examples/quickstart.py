"""The smallest complete program: a learner, a task sampler, training and evaluation.

    python -m experiments.examples.quickstart

Each task has five new classes and one labelled example per class. Only 4 of the 20 input numbers depend on
the class, the same 4 in every task. The encoder of a prototypical network (Snell et al., 2017,
https://arxiv.org/abs/1703.05175) learns which, so that new classes are recognized from one example.
"""

import jax
import jax.numpy as jnp
import optax

import metajax
from metajax.toys import toy_episode, toy_model

WAYS, FEATURES, NOISE = 5, 4, 16

# 1. A learner. This one averages the encoder's features per class and compares queries with the averages.
learner = metajax.protonet(toy_model(None, features=32), ways=WAYS)


# 2. A task sampler: a pure function of data (none here) and a random key.
def sample(data, key):
    """Draws an episode whose inputs [B, 20] are 4 informative numbers and 16 of noise."""
    del data
    task_key, support_key, query_key = jax.random.split(key, 3)
    task = toy_episode(task_key, ways=WAYS, shots=1, queries=5, features=FEATURES)

    def with_noise(batch, key):
        noise = 3 * jax.random.normal(key, (len(batch.targets), NOISE))
        return batch._replace(inputs=jnp.concatenate([batch.inputs, noise], axis=1))

    return metajax.Episode(with_noise(task.support, support_key), with_noise(task.query, query_key))


# 3. An objective scores one task; `backprop` averages its gradient over tasks; optax applies it.
scoring = metajax.Scoring(metajax.cross_entropy, {"accuracy": metajax.accuracy})
objective = metajax.query_objective(learner, scoring)
optimizer = optax.adam(1e-2)
step = metajax.make_step(metajax.backprop(objective), optimizer, sample, num_tasks=16)
evaluate = jax.jit(metajax.make_evaluate(objective, sample, tasks_at_once=100))


def main(steps=300, tasks=600):
    """Trains for `steps` meta-steps; prints the accuracy on new tasks before and after."""
    init_key, train_key, test_key = jax.random.split(jax.random.key(0), 3)
    meta = learner.init(init_key, jnp.zeros((1, FEATURES + NOISE)))
    state = metajax.init_state(meta, optimizer, train_key)
    trained, _ = jax.jit(metajax.make_run(step, steps=steps))(state, ())
    for name, meta in (("before", state.meta), ("after", trained.meta)):
        scores = evaluate(meta, (), test_key, jnp.arange(tasks))["accuracy"]
        mean, width = metajax.confidence_interval(scores)
        print(f"{name} training: {100 * mean:.1f}% +- {100 * width:.1f} of queries are correct")


if __name__ == "__main__":
    main()
