"""An inner loop of one's own, with nothing but JAX, optax and `metajax.unroll`: no learner, no episode.

    python -m experiments.examples.own_inner_loop

A linear classifier is trained in 20 steps on examples of which four in ten have a wrong label. Learned around
that training are its schedule, a positive step size for each of the steps, and a weight for each of the
examples: a gradient through all steps lowers the loss on a few examples whose labels are known to be right
(Maclaurin et al., 2015, https://arxiv.org/abs/1502.03492; Ren et al., 2018, https://arxiv.org/abs/1803.09050).
Read it from top to bottom.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

import metajax

CLASSES, FEATURES = 4, 16
TRAIN, CLEAN, TEST = (
    300,
    40,
    2000,
)  # examples with some wrong labels, with right ones, and to be judged on
WRONG = 0.4
INNER_STEPS = 20
OUTER_STEPS = 100


# 1. What the training reads and does not change, its operands: the data, and what is to be learned about it.
class Hyper(NamedTuple):
    log_rates: jax.Array  # [INNER_STEPS] logarithms, so that step sizes are positive
    logits: (
        jax.Array
    )  # [TRAIN] of the weights, by a softmax, so that they are positive and sum to one


class Operands(NamedTuple):
    hyper: Hyper
    inputs: jax.Array
    labels: jax.Array


# 2. The inner loss is a function of the parameters, any tree of arrays, and of these operands.
def losses_of(params, inputs, labels):
    outputs = inputs @ params["kernel"] + params["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(outputs, labels)


def weighted_loss(params, operands):
    weights = jax.nn.softmax(operands.hyper.logits)
    return weights @ losses_of(params, operands.inputs, operands.labels)


# 3. One step: momentum, and the step size of this step. Its state is any tree, here momenta and a counter.
def update(operands, grads, params, state):
    momenta, step = state
    momenta = jax.tree.map(lambda m, g: 0.9 * m + g, momenta, grads)
    rate = jnp.exp(operands.hyper.log_rates[step])
    return jax.tree.map(lambda p, m: p - rate * m, params, momenta), (momenta, step + 1)


# 4. The whole training is one differentiable function of the hyper-parameters. `adjoint` chooses what its
#    derivative costs, and nothing else: see `metajax.unroll`.
def fit(hyper, examples, *, adjoint="mixed"):
    dtype = examples[0].dtype
    params = {"kernel": jnp.zeros((FEATURES, CLASSES), dtype), "bias": jnp.zeros(CLASSES, dtype)}
    state = (jax.tree.map(jnp.zeros_like, params), 0)
    options = {"steps": len(hyper.log_rates), "adjoint": adjoint}
    operands = Operands(hyper, *examples)
    return metajax.unroll(weighted_loss, update, params, state, operands, **options)[0]


# 5. Hyper-parameters are judged by the loss on clean examples, after training on the noisy ones.
def clean_loss(hyper, noisy, clean, *, adjoint="mixed"):
    return jnp.mean(losses_of(fit(hyper, noisy, adjoint=adjoint), *clean))


def initial(examples):
    dtype = examples[0].dtype
    return Hyper(jnp.full(INNER_STEPS, jnp.log(0.1), dtype), jnp.zeros(len(examples[0]), dtype))


# 6. Learning them is gradient descent like any other. Unless it `weighs`, the schedule alone is learned.
@functools.partial(jax.jit, static_argnames="weighs")
def learn(noisy, clean, *, weighs):
    optimizer = optax.adam(0.05)

    def step(carry, _):
        hyper, opt_state = carry
        grads = jax.grad(clean_loss)(hyper, noisy, clean)
        grads = grads if weighs else grads._replace(logits=jnp.zeros_like(grads.logits))
        updates, opt_state = optimizer.update(grads, opt_state)
        return (optax.apply_updates(hyper, updates), opt_state), None

    hyper = initial(noisy)
    return jax.lax.scan(step, (hyper, optimizer.init(hyper)), length=OUTER_STEPS)[0][0]


# 7. Clouds of points, one for each class. A wrong label is always that of the next class, which misleads.
def draw(key):
    centre_key, label_key, noise_key, wrong_key = jax.random.split(key, 4)
    centres = 0.6 * jax.random.normal(centre_key, (CLASSES, FEATURES))
    labels = jax.random.randint(label_key, (TRAIN + CLEAN + TEST,), 0, CLASSES)
    inputs = centres[labels] + jax.random.normal(noise_key, (len(labels), FEATURES))
    wrong = jax.random.bernoulli(wrong_key, WRONG, (TRAIN,))
    ends = (TRAIN, TRAIN + CLEAN)
    noisy, clean, test = zip(jnp.split(inputs, ends), jnp.split(labels, ends), strict=True)
    noisy = noisy[0], jnp.where(wrong, (noisy[1] + 1) % CLASSES, noisy[1])
    return noisy, clean, test, wrong


def accuracy(params, examples):
    inputs, labels = examples
    outputs = inputs @ params["kernel"] + params["bias"]
    return float(jnp.mean(jnp.argmax(outputs, axis=1) == labels))


def main():
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
