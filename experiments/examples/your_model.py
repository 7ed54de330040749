"""Your network in metajax: Flax Linen, Flax NNX, Equinox, or plain functions.

    python -m experiments.examples.your_model

metajax reads a network as a `Model`: a pure function `init(key, inputs) -> params` and a pure function
`apply(params, inputs) -> outputs`. An adapter makes one of each framework's modules. Everything after
that, learners, objectives and training, is the same for all of them; the parameters may be any pytree.

A model has no state besides its parameters: batch norm normalizes by the batch at hand, without running
statistics, and dropout is deterministic. Adapters refuse modules that hold other state and name it.
"""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import nnx

import metajax
from metajax.models import from_equinox, from_flax, from_functions, from_nnx
from metajax.toys import toy_episode

WAYS, FEATURES, HIDDEN = 5, 2, 32


# 1. Flax Linen: adapt an instance of the module.
class LinenNet(nn.Module):
    """Two layers; __call__ reads a batch [B, D]."""

    @nn.compact
    def __call__(self, inputs):
        """Maps inputs [B, D] to logits [B, N]."""
        hidden = nn.tanh(nn.Dense(HIDDEN)(inputs))
        return nn.Dense(WAYS, name="head")(
            hidden
        )  # learners such as `anil` look for the name `head`


# 2. Flax NNX: adapt a function that makes the module from its generators, so that `init` can make it anew.
class NnxNet(nnx.Module):
    """Two layers; __call__ reads a batch [B, D]."""

    def __init__(self, rngs):
        self.hidden = nnx.Linear(FEATURES, HIDDEN, rngs=rngs)
        self.head = nnx.Linear(HIDDEN, WAYS, rngs=rngs)

    def __call__(self, inputs):
        """Maps inputs [B, D] to logits [B, N]."""
        return self.head(jnp.tanh(self.hidden(inputs)))


# 3. Equinox: adapt a function of a key. Its modules read one example; the adapter vmaps them.
class EquinoxNet(eqx.Module):
    """Two layers; __call__ reads one example [D]."""

    hidden: eqx.nn.Linear
    head: eqx.nn.Linear

    def __init__(self, key):
        hidden_key, head_key = jax.random.split(key)
        self.hidden = eqx.nn.Linear(FEATURES, HIDDEN, key=hidden_key)
        self.head = eqx.nn.Linear(HIDDEN, WAYS, key=head_key)

    def __call__(self, inputs):
        """Maps inputs [D] to logits [N]."""
        return self.head(jnp.tanh(self.hidden(inputs)))


# 4. Plain functions: nothing to adapt. Parameters are any tree of floating-point arrays.
def init(key, inputs):
    """Makes the parameters for inputs [B, D]."""
    hidden_key, head_key = jax.random.split(key)
    lecun = jax.nn.initializers.lecun_normal()
    return {
        "hidden": lecun(hidden_key, (inputs.shape[1], HIDDEN)),
        "head": lecun(head_key, (HIDDEN, WAYS)),
    }


def apply(params, inputs):
    """Maps inputs [B, D] to logits [B, N]."""
    return jnp.tanh(inputs @ params["hidden"]) @ params["head"]


MODELS = {
    "Flax Linen": from_flax(LinenNet()),
    "Flax NNX": from_nnx(NnxNet),
    "Equinox": from_equinox(EquinoxNet),
    "functions": from_functions(init, apply),
}


def sample(data, key):
    """Draws a task of 5 classes with one support example each; there are no data to read."""
    del data
    return toy_episode(key, ways=WAYS, shots=1, features=FEATURES)


def accuracies(model, *, steps, tasks):
    """Trains MAML on a model; returns its mean accuracy on new tasks before and after."""
    loss = metajax.cross_entropy
    learner = metajax.maml(model, loss, rule=optax.sgd(0.1), steps=2)
    objective = metajax.query_objective(
        learner, metajax.Scoring(loss, {"accuracy": metajax.accuracy})
    )
    optimizer = optax.adam(3e-3)
    step = metajax.make_step(metajax.backprop(objective), optimizer, sample, num_tasks=8)
    evaluate = jax.jit(metajax.make_evaluate(objective, sample, tasks_at_once=100))

    init_key, train_key, test_key = jax.random.split(jax.random.key(0), 3)
    meta = learner.init(init_key, jnp.zeros((1, FEATURES)))
    state = metajax.init_state(meta, optimizer, train_key)
    trained, _ = jax.jit(metajax.make_run(step, steps=steps))(state, ())
    scores = [
        evaluate(meta, (), test_key, jnp.arange(tasks)) for meta in (state.meta, trained.meta)
    ]
    return [float(jnp.mean(values["accuracy"])) for values in scores]


def main(steps=300, tasks=400):
    """Trains every model in the same way; prints accuracies before and after."""
    for name, model in MODELS.items():
        before, after = accuracies(model, steps=steps, tasks=tasks)
        print(f"{name:10}  {100 * before:.1f}% before training, {100 * after:.1f}% after")


if __name__ == "__main__":
    main()
