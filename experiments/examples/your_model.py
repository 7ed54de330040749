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

WAYS, QUERIES, FEATURES, HIDDEN = 5, 5, 2, 32


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
    """Draws a task with inputs [B, D]: five clouds of points, with one support example each."""
    del data
    numbers = jax.random.normal(key, (WAYS, 2 + QUERIES, FEATURES))
    inputs = 3 * numbers[:, :1] + numbers[:, 1:]

    def batch(inputs):
        labels = jnp.repeat(jnp.arange(WAYS), inputs.shape[1])
        return metajax.Batch(inputs.reshape(-1, FEATURES), labels)

    return metajax.Episode(batch(inputs[:, :1]), batch(inputs[:, 1:]))


def train(model, *, steps):
    """Trains MAML on a model; returns the accuracy in every step, always on new tasks."""
    loss = metajax.cross_entropy
    learner = metajax.maml(model, loss, rule=optax.sgd(0.1), steps=2)
    scoring = metajax.Scoring(loss, {"accuracy": metajax.accuracy})
    meta_grad = metajax.backprop(metajax.query_objective(learner, scoring))
    optimizer = optax.adam(3e-3)
    step = metajax.make_step(meta_grad, optimizer, sample, num_tasks=8)

    init_key, train_key = jax.random.split(jax.random.key(0))
    meta = learner.init(init_key, jnp.zeros((1, FEATURES)))
    state = metajax.init_state(meta, optimizer, train_key)
    _, history = jax.jit(metajax.make_run(step, steps=steps))(state, ())
    return history.train["accuracy"]


def main(steps=500):
    """Trains every model in the same way; prints the accuracy of the first and last tenth of steps."""
    for name, model in MODELS.items():
        tenths = train(model, steps=steps).reshape(10, -1).mean(axis=1)
        print(
            f"{name:10}  {100 * tenths[0]:.1f}% of queries at first, {100 * tenths[-1]:.1f}% at last"
        )


if __name__ == "__main__":
    main()
