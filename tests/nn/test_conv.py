import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

from metajax.nn import Implementations, conv2d, conv_implementations
from metajax.nn.conv_implementations import NAMES
from metajax.sharding import task_mesh


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def reference(inputs, kernel, *, strides, padding):
    return lax.conv_general_dilated(
        inputs, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def draw(image, kernel, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=image), dtype), jnp.asarray(rng.normal(size=kernel), dtype)


CASES = [
    # image, kernel, strides, padding
    ((2, 5, 6, 3), (3, 3, 3, 4), (1, 1), "SAME"),
    ((2, 6, 6, 2), (3, 3, 2, 3), (2, 2), "SAME"),
    ((2, 7, 5, 2), (3, 3, 2, 3), (2, 2), "SAME"),
    ((1, 6, 7, 1), (2, 4, 1, 2), (2, 3), "SAME"),
    ((1, 4, 4, 2), (5, 5, 2, 2), (1, 1), "SAME"),
    ((2, 4, 5, 3), (1, 1, 3, 4), (1, 1), "SAME"),
    ((2, 4, 5, 3), (1, 1, 3, 4), (2, 2), "SAME"),
    ((2, 5, 6, 3), (3, 3, 3, 4), (1, 1), "VALID"),
    ((2, 6, 7, 2), (3, 3, 2, 3), (2, 2), "VALID"),
    ((1, 6, 7, 1), (2, 4, 1, 2), (2, 3), "VALID"),
]


@pytest.mark.parametrize(("image", "kernel", "strides", "padding"), CASES)
def test_values_and_derivatives_match_lax(x64, image, kernel, strides, padding):
    args = draw(image, kernel)
    options = {"strides": strides, "padding": padding}

    def derivatives(conv):
        def loss(inputs, weights):
            return jnp.sum(jnp.sin(conv(inputs, weights, **options)))

        gradient = jax.grad(loss, (0, 1))
        directions = (jnp.cos(args[0]), jnp.cos(args[1]))
        value, second = jax.jvp(gradient, args, directions)

        def along(*at):
            return sum(jnp.vdot(g, d) for g, d in zip(gradient(*at), directions, strict=True))

        # Reverse over reverse, the order that backpropagation through an inner step takes.
        return conv(*args, **options), value, second, jax.grad(along, (0, 1))(*args)

    got, want = (jax.jit(derivatives, static_argnums=0)(c) for c in (conv2d, reference))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-10), got, want)
    assert jax.tree.leaves(got)[0].dtype == jnp.float64


def test_derivatives_match_finite_differences(x64):
    args = draw((1, 4, 4, 2), (3, 3, 2, 2))
    f = jax.jit(lambda *a: jnp.sin(conv2d(*a, strides=(2, 2))))
    check_grads(f, args, order=2, modes=["rev"])


def test_by_hand():
    inputs = jnp.arange(9.0).reshape(1, 3, 3, 1)
    kernel = jnp.array([[1.0, 2.0], [3.0, 4.0]]).reshape(2, 2, 1, 1)
    # 0*1 + 1*2 + 3*3 + 4*4 = 27, and one step right or down adds 10 or 30.
    valid = conv2d(inputs, kernel, padding="VALID")
    np.testing.assert_array_equal(valid[0, :, :, 0], [[27.0, 37.0], [57.0, 67.0]])
    # A kernel of even size is padded only at the bottom and on the right.
    same = conv2d(inputs, kernel)[0, :, :, 0]
    np.testing.assert_array_equal(same, [[27, 37, 2 + 15], [57, 67, 5 + 24], [20, 23, 8]])


def test_vmap_over_kernels_is_a_loop_and_jit_changes_nothing():
    inputs, kernels = draw((3, 2, 6, 6, 2), (3, 3, 3, 2, 4), np.float32)
    f = functools.partial(conv2d, strides=(2, 2))
    looped = jnp.stack([f(x, w) for x, w in zip(inputs, kernels, strict=True)])
    np.testing.assert_allclose(jax.vmap(f)(inputs, kernels), looped, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(jax.jit(jax.vmap(f))(inputs, kernels), looped, rtol=1e-5, atol=1e-5)


SHAPES = [
    ((3, 7, 6, 2), (3, 3, 2, 4), (1, 1), "SAME"),
    ((3, 7, 6, 2), (3, 3, 2, 4), (2, 2), "SAME"),
    ((20, 8, 5, 2), (2, 3, 2, 3), (2, 1), "VALID"),
    ((20, 14, 14, 1), (3, 3, 1, 2), (1, 1), "SAME"),  # more images than one chunk, and a remainder
    ((2, 9, 9, 3), (4, 5, 3, 2), (3, 2), "VALID"),
    ((2, 6, 6, 3), (1, 1, 3, 2), (2, 2), "SAME"),
]


@pytest.mark.parametrize("implementation", [None, *NAMES])
@pytest.mark.parametrize(("image", "kernel", "strides", "padding"), SHAPES)
def test_every_kernel_and_derivative_is_that_of_lax(
    float64, implementation, image, kernel, strides, padding
):
    x, w = draw(image, kernel)
    dx, dw = draw(image, kernel, seed=1)

    def derivatives(conv):
        grad = jax.grad(lambda x, w: jnp.sum(jnp.sin(conv(x, w))), (0, 1))

        def along(x, w):
            gx, gw = grad(x, w)
            return jnp.vdot(gx, dx) + jnp.vdot(gw, dw)

        return {
            "value": conv(x, w),
            "grad": grad(x, w),
            "jvp of grad": jax.jvp(grad, (x, w), (dx, dw))[1],
            "grad of grad": jax.grad(along, (0, 1))(x, w),
            "images": jax.vmap(grad, (0, None))(jnp.stack([x, dx]), w),
            "tasks": jax.vmap(grad)(jnp.stack([x, dx]), jnp.stack([w, dw])),
            "kernels": jax.vmap(grad, (None, 0))(x, jnp.stack([w, dw])),
            "remat": jax.checkpoint(grad)(x, w),
        }

    ours = functools.partial(
        conv2d, strides=strides, padding=padding, implementation=implementation
    )
    measured = jax.jit(derivatives, static_argnums=0)(ours)
    expected = jax.jit(derivatives, static_argnums=0)(
        functools.partial(reference, strides=strides, padding=padding)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10), measured, expected
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_forced_implementation_is_the_one_that_runs(name):
    x, w = draw((3, 2, 6, 6, 2), (3, 3, 3, 2, 4), np.float32)

    def loss(x, w):
        return jnp.sum(
            jax.grad(lambda w: jnp.sum(jnp.sin(conv2d(x, w, implementation=name))))(w) ** 2
        )

    text = jax.jit(jax.vmap(jax.grad(loss, (0, 1)))).lower(x, w).as_text()
    assert ("stablehlo.convolution" in text) == (name != "matmul")
    assert ("feature_group_count = 3" in text) == (name == "grouped")


@pytest.mark.parametrize(("channels", "summed"), [(1, 1), (2, 2), (3, 4), (5, 6)])
def test_lax_sums_over_one_channel_or_an_even_number(channels, summed):
    x, w = draw((2, 6, 6, channels), (3, 3, channels, 4), np.float32)
    convolve = jax.jit(functools.partial(conv2d, implementation="lax"))
    lines = convolve.lower(x, w).as_text().splitlines()
    (convolution,) = (line for line in lines if "stablehlo.convolution" in line)
    assert f"tensor<2x6x6x{summed}xf32>, tensor<3x3x{summed}x4xf32>" in convolution


def test_implementations_may_differ_between_the_three_and_unknown_ones_are_refused():
    x, w = draw((2, 5, 5, 2), (3, 3, 2, 3), np.float32)
    mixed = Implementations(forward="lax", input_grad="matmul", weight_grad="grouped")
    grads = [
        jax.grad(lambda w, k=k: jnp.sum(conv2d(x, w, implementation=k) ** 2))(w)
        for k in (mixed, None)
    ]
    np.testing.assert_allclose(*grads, rtol=1e-4, atol=1e-4)
    with pytest.raises(
        ValueError, match="no implementation 'cudnn'; use one of matmul, lax, grouped"
    ):
        conv2d(x, w, implementation="cudnn")


def test_the_old_name_of_the_option_warns_and_works():
    x, w = draw((2, 5, 5, 2), (3, 3, 2, 3), np.float32)
    with pytest.warns(
        DeprecationWarning, match=r"conv2d\(kernels=\.\.\.\) is now .*implementation"
    ):
        old = conv2d(x, w, kernels="matmul")
    np.testing.assert_array_equal(old, conv2d(x, w, implementation="matmul"))


def test_gradients_within_shard_map_that_checks_replication():
    x, w = draw((8, 5, 5, 2), (3, 3, 2, 3), np.float32)
    grad = jax.grad(lambda w, x: jnp.sum(jnp.sin(conv2d(x, w))))
    mesh = jax.make_mesh((4,), ("i",), (jax.sharding.AxisType.Auto,))
    specs = (jax.P(), jax.P("i"))
    spread = jax.jit(jax.shard_map(grad, mesh=mesh, in_specs=specs, out_specs=jax.P()))
    np.testing.assert_allclose(spread(w, x), grad(w, x), rtol=1e-4, atol=1e-5)


def test_bfloat16_stays_bfloat16_through_both_derivatives():
    x, w = (a.astype(jnp.bfloat16) for a in draw((2, 5, 5, 2), (3, 3, 2, 3), np.float32))
    grad = jax.grad(lambda w: jnp.sum(conv2d(x, w).astype(jnp.float32) ** 2))
    second = jax.jvp(grad, (w,), (w,))[1]
    assert second.dtype == jnp.bfloat16
    np.testing.assert_allclose(second.astype(np.float32), grad(w).astype(np.float32), rtol=0.05)


@pytest.mark.parametrize(
    ("image", "kernel", "options", "message"),
    [
        ((5, 5, 3), (3, 3, 3, 4), {}, r"\(5, 5, 3\).*vmap"),
        ((1, 5, 5, 3), (3, 3, 4), {}, r"kernel \[h, w, C, F\]"),
        ((1, 5, 5, 3), (3, 3, 1, 4), {}, r"3 channels.*reads 1"),
        ((1, 5, 5, 3), (3, 3, 3, 4), {"padding": "FULL"}, "'FULL'.*SAME, VALID"),
        ((1, 5, 5, 3), (3, 3, 3, 4), {"strides": (0, 1)}, r"\(0, 1\).*at least 1"),
        ((1, 2, 5, 3), (3, 3, 3, 4), {"padding": "VALID"}, r"\(3, 3\).*\(2, 5\)"),
    ],
)
def test_errors_say_what_does_not_fit(image, kernel, options, message):
    with pytest.raises(ValueError, match=message):
        conv2d(jnp.zeros(image), jnp.zeros(kernel), **options)


@pytest.mark.parametrize("batch", range(1, 8))
@pytest.mark.parametrize("check_vma", [False, True])
def test_weight_gradients_add_up_over_chunks_of_images(x64, monkeypatch, batch, check_vma):
    monkeypatch.setattr(conv_implementations, "_CHUNK", 8)  # two images of 2 x 2
    inputs, kernel = draw((2 * batch, 2, 2, 3), (3, 3, 3, 2), seed=batch)

    def gradient(conv):
        return jax.grad(lambda w: jnp.sum(jnp.sin(conv(inputs, w))))(kernel)

    tasks, mesh = jax.sharding.PartitionSpec("tasks"), task_mesh(jax.devices()[:2])
    spread = jax.shard_map(
        functools.partial(conv2d, implementation="lax"),
        mesh=mesh,
        in_specs=(tasks, jax.sharding.PartitionSpec()),
        out_specs=tasks,
        check_vma=check_vma,
    )
    expected = gradient(functools.partial(reference, strides=(1, 1), padding="SAME"))
    np.testing.assert_allclose(gradient(jax.jit(spread)), expected, atol=1e-12)


def test_weight_gradients_of_many_chunks_are_as_good_in_bfloat16(monkeypatch):
    monkeypatch.setattr(conv_implementations, "_CHUNK", 8)
    inputs, kernel = draw((400, 2, 2, 3), (3, 3, 3, 2), np.float32)
    inputs = jnp.abs(inputs)  # of one sign, so that sums grow

    def gradient(dtype):
        conv = functools.partial(conv2d, inputs.astype(dtype), implementation="lax")
        return jax.grad(lambda w: conv(w).sum(dtype=jnp.float32))(kernel.astype(dtype))

    exact = gradient(jnp.float32)
    error = jnp.abs(gradient(jnp.bfloat16).astype(jnp.float32) - exact).max()
    assert error < 0.02 * jnp.abs(exact).max()
