import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen
from jax import lax

from metajax.models import MLP, Conv4, ResNet12, ResNet18, ViT, WideConv4, layers

POLICIES = ["batch", "group", "layer", "none"]
SMALL = {
    "mlp": MLP(features=(8,), outputs=3),
    "conv4": Conv4(3, filters=8),
    "conv4_stride": Conv4(3, filters=8, pooling="stride"),
    "conv4_wide": WideConv4(3, filters=(8, 8, 8)),
    "resnet12": ResNet12(3, filters=(8, 8)),
    "resnet18": ResNet18(3, filters=(8, 16)),
    "vit": ViT(3, width=8, depth=1, heads=2),
}


def images(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def params_of(module, inputs):
    """Draws all leaves from one distribution, so that no bias is zero and no scale one."""
    params = jax.eval_shape(module.init, jax.random.key(0), inputs)["params"]
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda p: jnp.asarray(rng.normal(0, 0.4, p.shape), p.dtype), params)


def run(module, params, inputs):
    return jax.jit(module.apply)({"params": params}, inputs)


def count(module, *shape):
    abstract = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros(shape))
    return sum(leaf.size for leaf in jax.tree.leaves(abstract))


def lax_conv(x, layer, stride=1):
    y = lax.conv_general_dilated(
        x, layer["kernel"], (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return y + layer.get("bias", 0.0)


def lax_pool(x):
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def batch_normed(x, layer):
    x = (x - x.mean((0, 1, 2))) / jnp.sqrt(x.var((0, 1, 2)) + 1e-3)
    return x * layer["scale"] + layer["bias"]


def dense(x, layer):
    return x @ layer["kernel"] + layer["bias"]


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("pooling", ["max", "stride"])
def test_conv4_is_the_published_network(pooling, norm):
    inputs = images(3, 18, 21, 2)
    module = Conv4(5, filters=4, pooling=pooling, norm=norm)
    params = params_of(module, inputs)

    def expected(x):
        for index in range(4):
            x = lax_conv(x, params[f"conv{index}"], 1 if pooling == "max" else 2)
            x = batch_normed(x, params[f"norm{index}"]) if norm == "batch" else x
            x = jnp.maximum(x, 0.0)
            x = lax_pool(x) if pooling == "max" else x
        x = x.reshape(3, -1) if pooling == "max" else x.mean((1, 2))
        return dense(x, params["head"])

    want = jax.jit(expected)(inputs)
    np.testing.assert_allclose(run(module, params, inputs), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_wide_conv4_is_the_published_network(norm):
    inputs = images(2, 17, 16, 2)
    module = WideConv4(5, filters=(3, 4, 5, 6), norm=norm)
    params = params_of(module, inputs)

    def expected(x):
        maps = []
        for index in range(4):
            x = lax_conv(x, params[f"conv{index}"])
            x = batch_normed(x, params[f"norm{index}"]) if norm == "batch" else x
            x = lax_pool(x)
            x = jnp.where(x > 0, x, 0.1 * x) if index < 3 else x
            maps.append(x.reshape(2, -1))
        return dense(jnp.concatenate(maps[2:], axis=1), params["head"])

    want = jax.jit(expected)(inputs)
    np.testing.assert_allclose(run(module, params, inputs), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_resnet18_is_the_published_network(norm):
    inputs = images(2, 8, 9, 3)
    module = ResNet18(5, filters=(4, 8), norm=norm)
    params = params_of(module, inputs)

    def conv(x, block, suffix="", stride=1):
        x = lax_conv(x, block[f"conv{suffix}"], stride)
        return batch_normed(x, block[f"norm{suffix}"]) if norm == "batch" else x

    def expected(x):
        x = jnp.maximum(conv(x, params), 0.0)
        for index in range(4):
            block, stride = params[f"block{index}"], 2 if index == 2 else 1
            y = conv(jnp.maximum(conv(x, block, "0", stride), 0.0), block, "1")
            x = jnp.maximum(y + (conv(x, block, "_shortcut", stride) if index == 2 else x), 0.0)
        return dense(x.mean((1, 2)), params["head"])

    want = jax.jit(expected)(inputs)
    np.testing.assert_allclose(run(module, params, inputs), want, rtol=1e-4, atol=1e-5)


def test_vit_is_the_published_network():
    inputs = images(2, 8, 12, 3)
    module = ViT(5, width=6, depth=2, heads=2)
    params = params_of(module, inputs)

    def normed(x, layer):
        x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-3)
        return x * layer["scale"] + layer["bias"]

    def expected(image):
        cut = image.reshape(2, 4, 3, 4, 3).swapaxes(1, 2).reshape(6, -1)  # 2 x 3 patches of 4 x 4
        kernel = params["patches"]["kernel"].reshape(-1, 6)
        tokens = cut @ kernel + params["patches"]["bias"] + params["positions"]
        for index in range(2):
            block = params[f"block{index}"]
            x = normed(tokens, block["norm0"])
            q, k, v = (dense(x, block[name]) for name in ("query", "key", "value"))
            heads = [
                jax.nn.softmax(q[:, part] @ k[:, part].T / 3**0.5) @ v[:, part]
                for part in (slice(0, 3), slice(3, 6))
            ]
            tokens = tokens + dense(jnp.concatenate(heads, axis=1), block["out"])
            hidden = jax.nn.gelu(dense(normed(tokens, block["norm1"]), block["widen"]))
            tokens = tokens + dense(hidden, block["narrow"])
        return dense(normed(tokens, params["norm"]).mean(0), params["head"])

    want = jax.jit(jax.vmap(expected))(inputs)
    np.testing.assert_allclose(run(module, params, inputs), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_resnet12_is_the_published_network(norm):
    inputs = images(2, 8, 9, 3)
    module = ResNet12(5, filters=(4, 8), norm=norm)
    params = params_of(module, inputs)

    def conv(x, block, suffix):
        x = lax_conv(x, block[f"conv{suffix}"])
        return batch_normed(x, block[f"norm{suffix}"]) if norm == "batch" else x

    def leaky(x):
        return jnp.where(x > 0, x, 0.1 * x)

    def expected(x):
        for index in range(2):
            block = params[f"block{index}"]
            y = conv(leaky(conv(leaky(conv(x, block, "0")), block, "1")), block, "2")
            x = lax_pool(leaky(y + conv(x, block, "_shortcut")))
        return dense(x.mean((1, 2)), params["head"])

    want = jax.jit(expected)(inputs)
    np.testing.assert_allclose(run(module, params, inputs), want, rtol=1e-4, atol=1e-5)


def test_mlp_is_the_sinusoid_network():
    inputs = images(6, 1)
    params = params_of(MLP(), inputs)
    hidden = jnp.maximum(dense(inputs, params["hidden0"]), 0.0)
    hidden = jnp.maximum(dense(hidden, params["hidden1"]), 0.0)
    want = dense(hidden, params["head"])
    np.testing.assert_allclose(run(MLP(), params, inputs), want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(MLP().apply({"params": params}, inputs), want, rtol=1e-5, atol=1e-6)
    flat = run(MLP(activation=jnp.tanh), params, inputs.reshape(6, 1, 1))
    assert flat.shape == (6, 1) and not np.allclose(flat, want)


def test_parameter_counts():
    # Kernels 9 * 1 * 64 + 3 * 9 * 64 * 64, four norms of 2 * 64, and a head of 64 * 5 + 5.
    assert count(Conv4(5, pooling="stride"), 1, 28, 28, 1) == 576 + 110_592 + 512 + 325 == 112_005
    # Without a norm its 2 * 64 numbers give way to a bias of 64.
    bare = count(Conv4(5, pooling="stride", norm="none"), 1, 28, 28, 1)
    assert bare == 576 + 110_592 + 256 + 325
    # Five rows and columns remain of 84: MAML's miniImageNet network.
    mini = count(Conv4(5, filters=32), 1, 84, 84, 3)
    assert mini == 9 * 32 * (3 + 3 * 32) + 4 * 64 + 5 * 5 * 32 * 5 + 5 == 32_773
    # A block has kernels 9 * c * f + 2 * 9 * f * f + c * f and four norms of 2 * f.
    blocks = [10 * c * f + 18 * f * f + 8 * f for c, f in WIDTHS]
    assert count(ResNet12(5), 1, 84, 84, 3) == sum(blocks) + 640 * 5 + 5 == 12_427_525
    # Torchvision's 11,689,512, less its head of 1,000 outputs and the surplus of its first kernel, 7 x 7.
    torchvision = 11_689_512 - (512 * 1_000 + 1_000) - (49 - 9) * 3 * 64
    assert count(ResNet18(5), 1, 32, 32, 3) == torchvision + 512 * 5 + 5
    wide = [9 * c * f + 2 * f for c, f in [(3, 96), (96, 192), (192, 384), (384, 512)]]
    features = 10 * 10 * 384 + 5 * 5 * 512  # as the paper counts them: 51,200
    assert features == 51_200
    assert count(WideConv4(5), 1, 84, 84, 3) == sum(wide) + features * 5 + 5
    assert count(MLP(), 1, 1) == 80 + 1_640 + 41


WIDTHS = [(3, 64), (64, 160), (160, 320), (320, 640)]


@pytest.mark.parametrize("name", SMALL)
def test_the_head_is_linear_in_the_features(name):
    inputs = images(2, 16, 16, 1)
    module = SMALL[name]
    params = params_of(module, inputs)
    body = {layer: leaf for layer, leaf in params.items() if layer != "head"}
    features = run(module.clone(outputs=None), body, inputs)
    assert features.shape == (2, params["head"]["kernel"].shape[0])
    want = dense(features, params["head"])
    np.testing.assert_allclose(run(module, params, inputs), want, rtol=1e-5, atol=1e-6)
    without = jax.eval_shape(module.clone(outputs=None).init, jax.random.key(0), inputs)["params"]
    assert jax.tree.structure(without) == jax.tree.structure(body)


@pytest.mark.parametrize("name", SMALL)
def test_vmap_over_params_is_a_loop(name):
    inputs = images(2, 16, 16, 1)
    module = SMALL[name]
    one = params_of(module, inputs)
    stacked = jax.tree.map(lambda p: jnp.stack([p, 0.5 * p]), one)

    def gradient(params):
        def loss(p):
            return jnp.sum(module.apply({"params": p}, inputs) ** 2)

        return module.apply({"params": params}, inputs), jax.grad(loss)(params)

    together = jax.jit(jax.vmap(gradient))(stacked)
    single = jax.jit(gradient)
    for index in range(2):
        alone = single(jax.tree.map(lambda p, i=index: p[i], stacked))
        for got, want in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(got[index], want, rtol=1e-3, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize("norm", POLICIES)
@pytest.mark.parametrize("name", [name for name in SMALL if name not in ("mlp", "conv4")])
def test_only_the_batch_policy_is_transductive(name, norm):
    module = SMALL[name].clone(norm=norm)
    inputs = images(3, 8, 8, 1)
    params = params_of(module, inputs)
    others = inputs.at[1:].add(images(2, 8, 8, 1, seed=2))
    apply = jax.jit(module.apply)
    before, after = (apply({"params": params}, x)[0] for x in (inputs, others))
    assert np.allclose(before, after, rtol=1e-4, atol=1e-5) == (norm != "batch")


@pytest.mark.parametrize("norm", POLICIES)
def test_norm_has_a_scale_and_bias_and_convolutions_one_bias_at_most(norm):
    params = params_of(Conv4(3, filters=8, norm=norm), images(1, 16, 16, 1))
    assert ("norm0" in params) == (norm != "none")
    assert ("bias" in params["conv0"]) == (norm == "none")


def test_a_bias_before_batch_norm_has_no_gradient():
    class Biased(linen.Module):
        @linen.compact
        def __call__(self, x):
            return jnp.sin(layers.Norm("batch")(layers.Conv(4, name="conv")(x)))

    inputs = images(3, 6, 6, 2)
    params = params_of(Biased(), inputs)
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(Biased().apply({"params": p}, inputs))))(params)
    np.testing.assert_allclose(gradient["conv"]["bias"], 0.0, atol=1e-4)
    assert np.abs(gradient["conv"]["kernel"]).max() > 1e-2


def test_initial_values_are_the_papers():
    init = functools.partial(Conv4(5, norm="none").init, jax.random.key(0))
    conv4 = jax.jit(init)(images(1, 16, 16, 1))["params"]
    kernel = np.asarray(conv4["conv1"]["kernel"])
    limit = (6.0 / (9 * 64 + 9 * 64)) ** 0.5
    assert 0.99 * limit < np.abs(kernel).max() <= limit
    np.testing.assert_allclose(kernel.std(), limit / 3**0.5, rtol=0.02)
    for bias in (conv4["conv1"]["bias"], conv4["head"]["bias"]):
        np.testing.assert_array_equal(bias, 0.0)

    init = functools.partial(ResNet12(5, filters=(64,)).init, jax.random.key(0))
    block = jax.jit(init)(images(1, 4, 4, 3))["params"]["block0"]
    np.testing.assert_allclose(np.std(block["conv1"]["kernel"]), (2 / (9 * 64)) ** 0.5, rtol=0.02)
    np.testing.assert_array_equal(block["norm0"]["scale"], 1.0)


@pytest.mark.parametrize(
    ("make", "shape", "message"),
    [
        (lambda: Conv4(5), (1, 15, 28, 1), "at least 16 x 16, not 15 x 28"),
        (lambda: ResNet12(5), (1, 84, 14, 3), "at least 16 x 16, not 84 x 14"),
        (lambda: Conv4(5), (28, 28, 1), r"\[B, H, W, C\], not \(28, 28, 1\)"),
        (lambda: Conv4(5, norm="instance"), None, "'instance'.*batch, group, layer, running, none"),
        (
            lambda: ResNet12(5, norm="instance"),
            None,
            "'instance'.*batch, group, layer, running, none",
        ),
        (lambda: layers.Norm("instance"), None, "'instance'.*batch, group, layer, running"),
        (lambda: Conv4(5, pooling="mean"), None, "'mean'.*max, stride"),
        (lambda: ViT(5), (1, 30, 32, 1), "4 pixels do not divide images of 30 x 32"),
        (lambda: ViT(5, width=10), None, "4 heads do not divide a token of 10"),
        (lambda: Conv4(5, filters=12, norm="group"), (1, 16, 16, 1), "12 channels.*8 groups"),
    ],
)
def test_errors_name_the_value_and_the_options(make, shape, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(make().init, jax.random.key(0), jnp.zeros(shape))


def test_stride_takes_small_images():
    assert count(Conv4(5, filters=8, pooling="stride"), 1, 3, 3, 1) > 0
