import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax import nn

KEYS = jax.random.split(jax.random.key(0), 3)


def operands(queries=2, keys=3, width=4, values=6):
    shapes = ((queries, width), (keys, width), (keys, values))
    return [jax.random.normal(k, shape) for k, shape in zip(KEYS, shapes, strict=True)]


def test_each_head_attends_by_its_share_of_the_numbers():
    q, k, v = map(np.asarray, operands())
    seen = np.array([[True, True, False], [False, True, True]])
    expected = np.zeros((2, 6))
    for head in range(2):
        narrow, wide = slice(2 * head, 2 * head + 2), slice(3 * head, 3 * head + 3)
        scores = np.exp(q[:, narrow] @ k[:, narrow].T / np.sqrt(2)) * seen
        expected[:, wide] = scores / scores.sum(1, keepdims=True) @ v[:, wide]
    np.testing.assert_allclose(nn.attend(q, k, v, heads=2, seen=seen), expected, rtol=1e-5)
    everything, first = nn.attend(q, k, v, heads=2), nn.attend(q, k[:2], v[:2], heads=2)
    np.testing.assert_allclose(nn.attend(q, k, v, heads=2, seen=seen[0]), first, rtol=1e-5)
    assert not np.allclose(everything, first)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_a_query_that_sees_no_key_attends_to_all_equally_and_has_a_derivative(dtype):
    q, k, v = (x.astype(dtype) for x in operands())
    nothing = jnp.zeros(3, bool)
    answers = nn.attend(q, k, v, heads=1, seen=nothing)
    np.testing.assert_allclose(answers, jnp.broadcast_to(v.mean(0), answers.shape), atol=0.02)
    grads = jax.grad(lambda q: nn.attend(q, k, v, heads=1, seen=nothing).sum())(q)
    np.testing.assert_array_equal(grads, 0)


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ({}, "3 heads do not divide queries and keys of 4; use a divisor"),
        ({"width": 3, "values": 5}, "3 heads do not divide values of 5; use a divisor"),
    ],
)
def test_heads_that_do_not_divide_are_refused(sizes, says):
    with pytest.raises(ValueError, match=says):
        nn.attend(*operands(**sizes), heads=3)
