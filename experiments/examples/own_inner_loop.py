"""A hand-written inner loop, with nothing but JAX, optax and `metajax.unroll`: no learner, no episode.

    python -m experiments.examples.own_inner_loop

A linear classifier is trained in 20 steps on examples of which 40% have a wrong label. Hyper-parameters of
that training are learned: a positive step size for each step, and a weight for each example. A gradient
through all steps lowers the loss on a few examples whose labels are known to be right (Maclaurin et al.,
2015, https://arxiv.org/abs/1502.03492; Ren et al., 2018, https://arxiv.org/abs/1803.09050). Read it from top
to bottom.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

import metajax

CLASSES, FEATURES = 4, 16
TRAIN, CLEAN, TEST = 300, 40, 2000  # numbers of noisy, clean and test examples
WRONG = 0.4  # share of wrong labels among the noisy examples
INNER_STEPS = 20
OUTER_STEPS = 100


# 1. The operands of the training: the hyper-parameters to learn, and the data.
class Hyper(NamedTuple):
    """Hyper-parameters, learned by the outer loop.

    Attributes:
      log_rates: Logarithms of the step sizes [INNER_STEPS], which are therefore positive.
      logits: Logits of the example weights [TRAIN]; a softmax makes them positive with sum one.
    """

    log_rates: jax.Array
    logits: jax.Array


class Operands(NamedTuple):
    """Arrays that the training reads and does not change.

    Attributes:
      hyper: Hyper-parameters.
      inputs: Inputs [TRAIN, FEATURES].
      labels: Labels [TRAIN], int.
    """

    hyper: Hyper
    inputs: jax.Array
    labels: jax.Array


# 2. The inner loss is a function of the parameters, any tree of arrays, and the operands.
def losses_of(params, inputs, labels):
    """Computes the cross-entropy of each example [B]."""
    outputs = inputs @ params["kernel"] + params["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(outputs, labels)


def weighted_loss(params, operands):
    """Computes the inner loss: the weighted sum of the examples' losses."""
    weights = jax.nn.softmax(operands.hyper.logits)
    return weights @ losses_of(params, operands.inputs, operands.labels)


# 3. One step: momentum and this step's step size. The state is any tree, here momenta and a counter.
def update(operands, grads, params, state):
    """Takes one step of gradient descent with momentum; returns parameters and state."""
    momenta, step = state
    momenta = jax.tree.map(lambda m, g: 0.9 * m + g, momenta, grads)
    rate = jnp.exp(operands.hyper.log_rates[step])
    return jax.tree.map(lambda p, m: p - rate * m, params, momenta), (momenta, step + 1)


# 4. The whole training is one differentiable function of the hyper-parameters. `adjoint` changes the memory
# and    time of the derivative, not its value: see `metajax.unroll`.
def fit(hyper, examples, *, adjoint="mixed"):
    """Trains from zero; differentiable in the hyper-parameters."""
    dtype = examples[0].dtype
    params = {"kernel": jnp.zeros((FEATURES, CLASSES), dtype), "bias": jnp.zeros(CLASSES, dtype)}
    state = (jax.tree.map(jnp.zeros_like, params), 0)
    options = {"steps": len(hyper.log_rates), "adjoint": adjoint}
    operands = Operands(hyper, *examples)
    return metajax.unroll(weighted_loss, update, params, state, operands, **options)[0]


# 5. The outer loss is the loss on clean examples after training on the noisy ones.
def clean_loss(hyper, noisy, clean, *, adjoint="mixed"):
    """Computes the outer loss: the mean loss on clean examples after training on noisy ones."""
    return jnp.mean(losses_of(fit(hyper, noisy, adjoint=adjoint), *clean))


def initial(examples):
    """Makes the hyper-parameters to start from: equal step sizes and equal weights."""
    dtype = examples[0].dtype
    return Hyper(jnp.full(INNER_STEPS, jnp.log(0.1), dtype), jnp.zeros(len(examples[0]), dtype))


# 6. Hyper-parameters are learned by gradient descent. Without `weighs`, only the schedule is learned.
@functools.partial(jax.jit, static_argnames="weighs")
def learn(noisy, clean, *, weighs):
    """Learns the hyper-parameters by gradient descent; the weights too if `weighs`."""
    optimizer = optax.adam(0.05)

    def step(carry, _):
        hyper, opt_state = carry
        grads = jax.grad(clean_loss)(hyper, noisy, clean)
        grads = grads if weighs else grads._replace(logits=jnp.zeros_like(grads.logits))
        updates, opt_state = optimizer.update(grads, opt_state)
        return (optax.apply_updates(hyper, updates), opt_state), None

    hyper = initial(noisy)
    return jax.lax.scan(step, (hyper, optimizer.init(hyper)), length=OUTER_STEPS)[0][0]


# 7. Data: a cloud of points per class. Wrong labels always name the next class, which misleads
# systematically.
def draw(key):
    """Draws noisy, clean and test examples, and whether each noisy label is wrong [TRAIN]."""
    center_key, label_key, noise_key, wrong_key = jax.random.split(key, 4)
    centers = 0.6 * jax.random.normal(center_key, (CLASSES, FEATURES))
    labels = jax.random.randint(label_key, (TRAIN + CLEAN + TEST,), 0, CLASSES)
    inputs = centers[labels] + jax.random.normal(noise_key, (len(labels), FEATURES))
    wrong = jax.random.bernoulli(wrong_key, WRONG, (TRAIN,))
    ends = (TRAIN, TRAIN + CLEAN)
    noisy, clean, test = zip(jnp.split(inputs, ends), jnp.split(labels, ends), strict=True)
    noisy = noisy[0], jnp.where(wrong, (noisy[1] + 1) % CLASSES, noisy[1])
    return noisy, clean, test, wrong


def accuracy(params, examples):
    """Computes the share of examples that are classified correctly."""
    inputs, labels = examples
    outputs = inputs @ params["kernel"] + params["bias"]
    return float(jnp.mean(jnp.argmax(outputs, axis=1) == labels))


def main():
    """Trains on clean and on noisy examples, with and without learned hyper-parameters; prints accuracies."""
    noisy, clean, test, wrong = draw(jax.random.key(0))
    schedule, both = (learn(noisy, clean, weighs=weighs) for weighs in (False, True))
    on_wrong = jax.nn.softmax(both.logits) @ wrong
    for name, hyper, examples in (
        ("clean examples alone", initial(clean), clean),
        ("noisy examples", initial(noisy), noisy),
        ("noisy, schedule learned", schedule, noisy),
        ("noisy, schedule and weights learned", both, noisy),
    ):
        print(
            f"{name:36} {100 * accuracy(fit(hyper, examples), test):.1f}% of {TEST} test examples"
        )
    print(
        f"{100 * wrong.mean():.0f}% of the labels are wrong; they have {100 * on_wrong:.0f}% of the weight"
    )


if __name__ == "__main__":
    main()
