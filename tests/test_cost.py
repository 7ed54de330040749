"""Operations counted against closed forms, and against XLA where it counts right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import Primitive
from jax.sharding import PartitionSpec as P

import metajax
from metajax.nn.conv import conv2d

M, K, N = 3, 5, 7


def shaped(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def product(x, w):
    return jnp.tanh(x @ w)


X, W = shaped(M, K), shaped(K, N)
PRODUCT = 2 * M * K * N
SQUARE = shaped(K, K)


def test_a_product_and_a_batch_of_them():
    assert metajax.flops(product, X, W) == PRODUCT
    assert metajax.flops(jax.vmap(product), shaped(4, M, K), shaped(4, K, N)) == 4 * PRODUCT
    assert metajax.flops(jax.vmap(product, (None, 0)), X, shaped(4, K, N)) == 4 * PRODUCT
    assert metajax.flops(product, np.ones((M, K), np.float32), W) == PRODUCT
    assert metajax.flops(jnp.sin, X) == 0


def test_loops_count_as_often_as_they_run():
    turn = 2 * K**3

    def repeat(body, length):
        return lambda x: lax.scan(lambda x, _: (body(x), None), x, length=length)[0]

    def square(x):
        return x @ x

    assert metajax.flops(repeat(square, 7), SQUARE) == 7 * turn
    assert metajax.flops(repeat(repeat(square, 3), 2), SQUARE) == 6 * turn
    assert metajax.flops(lambda x: lax.fori_loop(0, 7, lambda _, x: x @ x, x), SQUARE) == 7 * turn
    assert metajax.flops(lambda x: lax.map(lambda row: row @ x, x), SQUARE) == turn


def test_a_loop_of_unknown_length_is_refused_where_it_matters():
    def until_large(body):
        return lambda x: lax.while_loop(lambda x: x.sum() < 9, body, x)

    assert metajax.flops(until_large(lambda x: x + 1), SQUARE) == 0
    with pytest.raises(ValueError, match=r"while_loop .* use jax\.lax\.scan"):
        metajax.flops(until_large(lambda x: x @ x), SQUARE)


def test_the_most_expensive_branch_counts():
    def either(x):
        return lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

    assert metajax.flops(either, SQUARE) == 2 * (2 * K**3)


def test_a_gradient_is_twice_its_function_for_each_operand_and_once_before():
    def loss(x, w):
        return product(x, w).sum()

    assert metajax.flops(jax.grad(loss, (0, 1)), X, W) == 3 * PRODUCT
    assert metajax.flops(jax.grad(loss, 1), X, W) == 2 * PRODUCT
    # The gradient of a linear function does not read its value, so the value is not computed.
    assert metajax.flops(jax.grad(lambda x, w: (x @ w).sum(), 1), X, W) == PRODUCT


def test_recomputation_counts_again():
    def loss(x, w):
        return jnp.sin(jax.checkpoint(product)(x, w)).sum()

    assert metajax.flops(loss, X, W) == PRODUCT
    assert metajax.flops(jax.grad(loss, (0, 1)), X, W) == 4 * PRODUCT


def test_functions_within_functions_are_looked_into():
    @jax.custom_vjp
    def by_hand(x, w):
        return jax.jit(product)(x, w)

    by_hand.defvjp(lambda x, w: (by_hand(x, w), w), lambda w, ct: (ct @ w.T, None))
    assert metajax.flops(by_hand, X, W) == PRODUCT
    assert metajax.flops(jax.grad(lambda x, w: by_hand(x, w).sum()), X, W) == PRODUCT
    other = jax.custom_jvp(product)
    other.defjvp(lambda primals, tangents: (product(*primals), product(*tangents)))
    assert metajax.flops(other, X, W) == PRODUCT


def test_a_primitive_without_a_formula_costs_as_its_implementation():
    primitive = Primitive("metajax_powers")

    def power(x, *, turns):
        return lax.fori_loop(0, turns, lambda _, y: y @ x, x)

    primitive.def_impl(jax.jit(power, static_argnames="turns"))
    primitive.def_abstract_eval(lambda x, *, turns: x)
    assert metajax.flops(lambda x: primitive.bind(x, turns=4), SQUARE) == 4 * (2 * K**3)


@pytest.mark.parametrize("num_devices", [1, 2, 4])
def test_devices_count_together(num_devices):
    mesh = metajax.task_mesh(jax.devices()[:num_devices])

    def spread(in_specs):
        return jax.shard_map(
            product, mesh=mesh, in_specs=in_specs, out_specs=in_specs[0], check_vma=False
        )

    rows = shaped(8, K)
    assert metajax.flops(spread((P("tasks"), P())), rows, W) == 2 * 8 * K * N
    # Every device computes all of it, and all of them count.
    assert metajax.flops(spread((P(), P())), rows, W) == num_devices * 2 * 8 * K * N


CONVOLUTIONS = [
    dict(x=(2, 9, 8, 4), w=(3, 3, 4, 6), strides=(1, 1), padding="VALID"),
    dict(x=(2, 9, 8, 4), w=(3, 2, 4, 6), strides=(2, 1), padding="SAME"),
    dict(x=(2, 9, 8, 4), w=(3, 3, 4, 6), strides=(1, 2), padding=((0, 2), (3, 1)), rhs=(2, 1)),
    dict(x=(2, 5, 4, 4), w=(3, 3, 4, 6), strides=(1, 1), padding=((2, 2), (1, 2)), lhs=(2, 3)),
    dict(x=(2, 9, 8, 4), w=(3, 3, 2, 6), strides=(1, 1), padding="SAME", groups=2),
    dict(x=(4, 9, 8, 3), w=(3, 3, 3, 6), strides=(1, 1), padding="SAME", batch_groups=2),
]


def convolution(case):
    def convolve(x, w):
        return lax.conv_general_dilated(
            x,
            w,
            case["strides"],
            case["padding"],
            lhs_dilation=case.get("lhs"),
            rhs_dilation=case.get("rhs"),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=case.get("groups", 1),
            batch_group_count=case.get("batch_groups", 1),
        )

    return convolve, shaped(*case["x"]), shaped(*case["w"])


def test_a_convolution_by_its_formula():
    case = CONVOLUTIONS[0]  # no padding, so that every weight meets an input at every output
    assert metajax.flops(*convolution(case)) == 2 * (2 * 7 * 6 * 6) * (3 * 3 * 4)
    case = CONVOLUTIONS[4]  # each of 9 x 8 outputs, less the weights that reach over a border
    assert metajax.flops(*convolution(case)) == 2 * 2 * 6 * (3 * 9 - 2) * (3 * 8 - 2) * 2


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_a_convolution_outside_loops_costs_as_xla_counts(case):
    convolve, x, w = convolution(case)
    analysis = jax.jit(convolve).lower(x, w).compile().cost_analysis()
    assert metajax.flops(convolve, x, w) == analysis["flops"]


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_both_gradients_of_a_convolution_cost_as_much_as_it(case):
    convolve, x, w = convolution(case)
    gradients = jax.grad(lambda x, w: (convolve(x, w) ** 2).sum(), (0, 1))
    assert metajax.flops(gradients, x, w) == 3 * metajax.flops(convolve, x, w)


@pytest.mark.parametrize(
    ("strides", "padding"), [((1, 1), "SAME"), ((2, 2), "SAME"), ((2, 1), "VALID")]
)
def test_conv2d_costs_as_much_as_the_convolution_of_jax(strides, padding):
    x, w = shaped(2, 9, 8, 4), shaped(3, 3, 4, 6)

    def ours(x, w):
        return conv2d(x, w, strides=strides, padding=padding)

    def theirs(x, w):
        return lax.conv_general_dilated(
            x, w, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def gradients(convolve):
        return jax.grad(lambda x, w: (convolve(x, w) ** 2).sum(), (0, 1))

    expected = metajax.flops(theirs, x, w)
    assert metajax.flops(ours, x, w) == expected > 0
    assert metajax.flops(gradients(ours), x, w) == 3 * expected
    tasks = shaped(5, *x.shape), shaped(5, *w.shape)
    assert metajax.flops(jax.vmap(gradients(ours)), *tasks) == 15 * expected


def test_only_the_solve_of_a_linear_solve_counts():
    matrix = jax.ShapeDtypeStruct((8, 8), np.float32)

    def solved(matrix, vector):
        def solve(matvec, vector):
            return matvec(matvec(vector))

        return jax.lax.custom_linear_solve(
            lambda x: matrix @ x, vector, solve, transpose_solve=solve
        )

    vector = jax.ShapeDtypeStruct((8,), np.float32)
    assert metajax.flops(solved, matrix, vector) == 2 * 2 * 8 * 8
    assert metajax.flops(jnp.linalg.solve, matrix, vector) == 0
