"""`unroll` on any trees, without a learner: its derivatives equal a Python loop's."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metajax
from metajax.inner.adjoints import ADJOINTS, Adjoint

STEPS = 4
# All exact adjoints; some differ only from five steps on, and the host's memory needs a compiled loop.
EXACT = [name for name in ADJOINTS if name not in ("truncated", "first_order")]


def loss(params, reading):
    """Computes a loss with curvature of a tuple of parameters, on one minibatch."""
    (kernel, bias), (inputs, targets) = params, reading
    return jnp.mean((jnp.tanh(inputs @ kernel + bias["b"]) - targets) ** 2)


def update(operands, grads, params, state):
    """Updates with momentum and a step size per step; the state is a dictionary with a counter."""
    rate = jnp.exp(operands["log_rates"][state["count"]])
    trace = jax.tree.map(lambda t, g: 0.9 * t + g, state["trace"], grads)
    params = jax.tree.map(lambda p, t: p - rate * t, params, trace)
    return params, {"trace": trace, "count": state["count"] + 1}


def read(operands, state):
    return jax.tree.map(lambda leaf: leaf[state["count"]], operands["batches"])


def setting():
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape))  # noqa: E731
    params = (normal(3, 2), {"b": normal(2)})
    state = {"trace": jax.tree.map(lambda p: 0.1 * p, params), "count": jnp.int32(0)}
    batches = (normal(STEPS, 5, 3), normal(STEPS, 5, 2))
    operands = {"log_rates": -1.5 + 0.1 * normal(STEPS), "batches": batches}
    return params, state, operands, (normal(7, 3), normal(7, 2))


def by_hand(params, state, operands):
    for _ in range(STEPS):
        grads = jax.grad(loss)(params, read(operands, state))
        params, state = update(operands, grads, params, state)
    return params, state


def gradients(loop):
    params, state, operands, test = setting()

    def outer(params, trace, log_rates, batches):
        given = {"log_rates": log_rates, "batches": batches}
        found, after = loop(params, state | {"trace": trace}, given)
        return loss(found, test) + jnp.sum(after["trace"][0] ** 2)

    args = (params, state["trace"], operands["log_rates"], operands["batches"])
    return jax.jit(jax.value_and_grad(outer, (0, 1, 2, 3)))(*args)


@pytest.mark.parametrize("adjoint", EXACT)
def test_derivatives_equal_a_hand_written_loop(float64, adjoint):
    def loop(params, state, operands):
        options = {"steps": STEPS, "adjoint": adjoint, "read": read}
        return metajax.unroll(loss, update, params, state, operands, **options)

    got, want = gradients(loop), gradients(by_hand)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14), got, want)


def test_mixed_gradient_is_the_gradient_and_so_is_its_derivative(float64):
    params, state, operands, _ = setting()
    batch = read(operands, state)

    def outer(gradient):
        return lambda batch: jnp.sum(gradient(loss)(params, batch)[0] ** 3)

    got, want = (
        jax.value_and_grad(outer(gradient))(batch)
        for gradient in (metajax.mixed_gradient, jax.grad)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14), got, want)


def run(update=lambda operands, grads, params, state: (params, state), **options):
    options = {"steps": 2, "loss": lambda params, _: jnp.sum(params["w"] ** 2)} | options
    loss, params = options.pop("loss"), options.pop("params", {"w": jnp.ones(3)})
    return metajax.unroll(loss, update, params, (jnp.int32(0),), (), **options)


@pytest.mark.parametrize("steps", [1, 2])
def test_wrong_functions_say_which_leaf(steps):
    wrong = {
        "other params than it got: leaf w was float32[3] and is bfloat16[3]; return": lambda p, s: (
            {"w": p["w"].astype(jnp.bfloat16)},
            s,
        ),
        "other params than it got: leaf v is new; return": lambda p, s: ({**p, "v": p["w"]}, s),
        "other state than it got: leaf 0 was int32[] and is int32[2]; return": lambda p, s: (
            p,
            (jnp.arange(2),),
        ),
        "other state than it got: leaf 0 is missing; return": lambda p, s: (p, ()),
        "other state than it got: the structure was PyTreeDef((*,)) and is PyTreeDef([*])": (
            lambda p, s: (p, list(s))
        ),
        "update returns dict; return a pair (params, state)": lambda p, s: p,
    }
    for says, function in wrong.items():
        with pytest.raises(ValueError, match=re.escape(says)):
            run(lambda _, grads, params, state, f=function: f(params, state), steps=steps)


def test_wrong_arguments_say_so():
    with pytest.raises(ValueError, match="steps is -1; use 0 or more"):
        run(steps=-1)
    with pytest.raises(ValueError, match=r"named 'remt'; the nearest are remat"):
        run(adjoint="remt")
    with pytest.raises(TypeError, match=r"adjoint is 5; use an Adjoint or the name of one"):
        run(adjoint=5)
    with pytest.raises(ValueError, match="last is -2"):
        run(adjoint=Adjoint("mixed", "all", last=-2))
    with pytest.raises(ValueError, match=r"The loss has the shape \(3,\); return one scalar"):
        run(loss=lambda params, _: params["w"])
    with pytest.raises(ValueError, match=r"these leaves are not: w \(int32\)"):
        run(params={"w": jnp.arange(3)})
    with pytest.raises(ValueError, match="There are no parameters"):
        run(params={})


def test_a_python_number_in_the_state_is_a_counter(float64):
    for steps in (1, 3):
        _, count = metajax.unroll(
            lambda params, _: params**2,
            lambda operands, grads, params, count: (params - grads, count + 1),
            jnp.float64(1),
            0,
            (),
            steps=steps,
        )
        assert count == steps
