"""Second-order MAML in one file, with nothing but JAX and optax.

    python -m experiments.examples.minimal_maml

Every task is a sine wave with its amplitude and phase. The meta-learner never sees a whole wave: it learns
*initial parameters* from which one gradient step on ten points fits any of them (Finn et al., 2017,
https://arxiv.org/abs/1703.03400, section 5.1). Read it from top to bottom; metajax has the same parts, made
interchangeable.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import optax

SHOTS = 10  # support points of a task
TASKS = 25  # tasks per meta-step
INNER_LR = 0.01
STEPS = 20_000


# 1. A network is a pure function of its parameters. This one has two hidden layers of 40 units.
def init(key, widths=(1, 40, 40, 1)):
    """Makes the layers' kernels and biases."""
    keys = jax.random.split(key, len(widths) - 1)
    shapes = itertools.pairwise(widths)
    glorot = jax.nn.initializers.glorot_uniform()
    return [(glorot(k, shape), jnp.zeros(shape[1])) for k, shape in zip(keys, shapes, strict=True)]


def apply(params, x):
    """Maps inputs [B, 1] to outputs [B, 1]."""
    *hidden, (kernel, bias) = params
    for hidden_kernel, hidden_bias in hidden:
        x = jax.nn.relu(x @ hidden_kernel + hidden_bias)
    return x @ kernel + bias


def loss(params, points):
    """Computes the mean squared error on points (x [B, 1], y [B, 1])."""
    x, y = points
    return jnp.mean((apply(params, x) - y) ** 2)


# 2. A task is a pure function of its key: points to adapt to (support) and points to evaluate on (query).
def draw_task(key):
    """Draws a support and a query set of one wave; the key is consumed."""
    amplitude_key, phase_key, x_key = jax.random.split(key, 3)
    amplitude = jax.random.uniform(amplitude_key, minval=0.1, maxval=5.0)
    phase = jax.random.uniform(phase_key, minval=0.0, maxval=math.pi)
    x = jax.random.uniform(x_key, (2 * SHOTS, 1), minval=-5.0, maxval=5.0)
    y = amplitude * jnp.sin(x - phase)
    return (x[:SHOTS], y[:SHOTS]), (x[SHOTS:], y[SHOTS:])


# 3. Adaptation is gradient descent on the support points. It mutates nothing: parameters in, parameters out.
def adapt(params, support, steps):
    """Takes gradient steps on the support points."""

    def step(params, _):
        grads = jax.grad(loss)(params, support)
        return jax.tree.map(lambda p, g: p - INNER_LR * g, params, grads), None

    return jax.lax.scan(step, params, length=steps)[0]


# 4. The meta-objective: the loss of the *adapted* parameters on the query points, averaged over tasks. It is
#    written for one task and vectorized by vmap.
def meta_loss(params, keys, steps=1):
    """Averages the query loss after adaptation over tasks with keys [T]."""

    def one_task(key):
        support, query = draw_task(key)
        return loss(adapt(params, support, steps), query)

    return jnp.mean(jax.vmap(one_task)(keys))


# 5. MAML is one line: jax.grad goes *through* the inner jax.grad, which is where the second derivatives are.
meta_grad = jax.value_and_grad(meta_loss)
optimizer = optax.adam(1e-3)


# 6. A meta-step draws tasks, computes that gradient, and optax applies it. Everything, drawing included, is
#    one compiled program; a scan takes a thousand steps before it returns to Python.
@jax.jit
def train(params, opt_state, key):
    """Takes a thousand meta-steps."""

    def step(carry, key):
        params, opt_state = carry
        value, grads = meta_grad(params, jax.random.split(key, TASKS))
        updates, opt_state = optimizer.update(grads, opt_state)
        return (optax.apply_updates(params, updates), opt_state), value

    (params, opt_state), values = jax.lax.scan(
        step, (params, opt_state), jax.random.split(key, 1000)
    )
    return params, opt_state, values.mean()


def main():
    """Trains, and prints the error on new waves after 0 to 10 inner steps."""
    init_key, test_key, key = jax.random.split(jax.random.key(0), 3)
    params = init(init_key)
    opt_state = optimizer.init(params)
    for thousand in range(STEPS // 1000):
        params, opt_state, value = train(params, opt_state, jax.random.fold_in(key, thousand))
        print(
            f"step {1000 * (thousand + 1):6,}: error on query points after one inner step {value:.3f}"
        )

    # 7. On new waves the error falls with every gradient step, even after the one step that was trained.
    test_keys = jax.random.split(test_key, 600)
    for steps in (0, 1, 2, 5, 10):
        error = jax.jit(meta_loss, static_argnames="steps")(params, test_keys, steps=steps)
        print(f"600 new tasks, {steps:2} inner steps: mean squared error {error:.3f}")


if __name__ == "__main__":
    main()
