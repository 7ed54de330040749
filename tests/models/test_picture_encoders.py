"""Pre-trained encoders of pictures compute what forward passes in NumPy do."""

import math

import jax
import numpy as np
import pytest

pytest.importorskip("flax")

from helpers.encoders import SIZES, dinov2_arrays
from metajax.models.dinov2 import DinoV2, _cubic_weights, dinov2_params
from metajax.models.efficientnet import _STAGES, EfficientNetLite0, efficientnet_params


def efficientnet_arrays(seed=0, classes=5):
    """Draws arrays of EfficientNet-Lite0, by the names of its file."""
    rng, arrays = np.random.default_rng(seed), {}

    def conv(name, norm, outputs, inputs, window):
        fan = inputs * window * window
        arrays[f"{name}.weight"] = rng.normal(size=(outputs, inputs, window, window)) / fan**0.5
        for leaf, low in (
            ("weight", 0.8),
            ("running_var", 0.5),
            ("bias", 0.0),
            ("running_mean", -0.3),
        ):
            arrays[f"{norm}.{leaf}"] = rng.uniform(low, low + 0.7, outputs)

    conv("_conv_stem", "_bn0", 32, 3, 3)
    channels, index = 32, 0
    for blocks, window, _, widen, filters in _STAGES:
        for _ in range(blocks):
            block, within = f"_blocks.{index}", channels * widen
            if widen > 1:
                conv(f"{block}._expand_conv", f"{block}._bn0", within, channels, 1)
            conv(f"{block}._depthwise_conv", f"{block}._bn1", within, 1, window)
            conv(f"{block}._project_conv", f"{block}._bn2", filters, within, 1)
            channels, index = filters, index + 1
    conv("_conv_head", "_bn1", 1280, 320, 1)
    arrays["_fc.weight"], arrays["_fc.bias"] = rng.normal(size=(classes, 1280)), np.ones(classes)
    return arrays


def convolved(inputs, weight, stride):
    """Convolves [C, H, W] by definition, padded as TensorFlow does; each channel alone if I is 1."""
    outputs, width, window, _ = weight.shape
    sides = [-(-side // stride) for side in inputs.shape[1:]]
    more = [
        max((o - 1) * stride + window - s, 0) for o, s in zip(sides, inputs.shape[1:], strict=True)
    ]
    padded = np.pad(inputs, [(0, 0), *((m // 2, m - m // 2) for m in more)])
    patches = np.lib.stride_tricks.sliding_window_view(padded, (window, window), axis=(1, 2))
    patches = patches[:, ::stride, ::stride]
    if width == 1 and inputs.shape[0] == outputs:
        return np.einsum("chwij,cij->chw", patches, weight[:, 0])
    return np.einsum("chwij,ocij->ohw", patches, weight, optimize=True)


def efficientnet_numpy(arrays, picture):
    """Computes the published network on one picture [3, H, W], with its batch norms as they are."""

    def layer(inputs, kernel, norm, stride=1, rectified=True):
        found = convolved(inputs, arrays[f"{kernel}.weight"], stride)
        mean, var, scale, bias = (
            arrays[f"{norm}.{leaf}"][:, None, None]
            for leaf in ("running_mean", "running_var", "weight", "bias")
        )
        found = (found - mean) / np.sqrt(var + 1e-3) * scale + bias
        return np.clip(found, 0, 6) if rectified else found

    hidden, index = layer(picture, "_conv_stem", "_bn0", 2), 0
    for blocks, _, stride, widen, _ in _STAGES:
        for number in range(blocks):
            block, before = f"_blocks.{index}", hidden
            if widen > 1:
                hidden = layer(hidden, f"{block}._expand_conv", f"{block}._bn0")
            step = 1 if number else stride
            hidden = layer(hidden, f"{block}._depthwise_conv", f"{block}._bn1", step)
            hidden = layer(hidden, f"{block}._project_conv", f"{block}._bn2", rectified=False)
            if number:
                hidden = hidden + before
            index += 1
    features = layer(hidden, "_conv_head", "_bn1").mean((1, 2))
    return features, features @ arrays["_fc.weight"].T + arrays["_fc.bias"]


@pytest.fixture(scope="module")
def random_efficientnet():
    return efficientnet_arrays()


def test_efficientnet_is_the_published_network_with_its_norms_folded(random_efficientnet):
    params = efficientnet_params(random_efficientnet)
    # An odd side is padded in another way than an even one.
    pictures = np.random.default_rng(1).normal(size=(2, 37, 32, 3)).astype(np.float32)
    want = efficientnet_numpy(random_efficientnet, pictures[1].transpose(2, 0, 1))
    head = params.pop("head")
    features = jax.jit(EfficientNetLite0().apply)({"params": params}, pictures)[1]
    np.testing.assert_allclose(features, want[0], rtol=1e-3, atol=1e-4)
    assert want[0].std() > 0.01  # which tells pictures apart
    outputs = features @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(outputs, want[1], rtol=1e-3, atol=2e-3)


def test_the_parameters_are_those_of_the_module(random_efficientnet):
    params = efficientnet_params(random_efficientnet)
    picture = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    made = jax.eval_shape(EfficientNetLite0(5).init, key, picture)["params"]
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda leaf: leaf.shape, made)
    # The published network has 4,652,008 parameters with its head of 1,000 classes.
    trained = [leaf.size for name, leaf in random_efficientnet.items() if "running" not in name]
    assert sum(trained) == 4_652_008 - 995 * 1281
    del random_efficientnet["_blocks.3._bn1.bias"]
    with pytest.raises(ValueError, match=r"no array '_blocks\.3\._bn1\.bias' among"):
        efficientnet_params(random_efficientnet)


def dinov2_numpy(arrays, picture, *, depth=2, heads=2, patch=4):
    """Computes the published network on one picture [3, H, W] as large as its table of positions."""

    def linear(name, inputs):
        return inputs @ arrays[f"{name}.weight"].T + arrays[f"{name}.bias"]

    def norm(name, inputs):
        mean, var = inputs.mean(-1, keepdims=True), inputs.var(-1, keepdims=True)
        return (inputs - mean) / np.sqrt(var + 1e-6) * arrays[f"{name}.weight"] + arrays[
            f"{name}.bias"
        ]

    def gelu(inputs):
        return inputs * 0.5 * (1 + np.vectorize(math.erf)(inputs / 2**0.5))

    kernel = arrays["embeddings.patch_embeddings.projection.weight"]
    bias = arrays["embeddings.patch_embeddings.projection.bias"]
    side = picture.shape[1] // patch
    tokens = [arrays["embeddings.cls_token"][0, 0]]
    for row in range(side):
        for column in range(side):
            cut = picture[:, row * patch :, column * patch :][:, :patch, :patch]
            tokens.append((kernel * cut).sum((1, 2, 3)) + bias)
    tokens = np.stack(tokens) + arrays["embeddings.position_embeddings"][0]
    for index in range(depth):
        block = f"encoder.layer.{index}."
        normed = norm(f"{block}norm1", tokens)
        parts = [
            np.split(linear(f"{block}attention.attention.{name}", normed), heads, axis=-1)
            for name in ("query", "key", "value")
        ]
        attended = []
        for query, key, value in zip(*parts, strict=True):
            scores = query @ key.T / query.shape[-1] ** 0.5
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            attended.append(weights / weights.sum(-1, keepdims=True) @ value)
        attended = linear(f"{block}attention.output.dense", np.concatenate(attended, -1))
        tokens = tokens + attended * arrays[f"{block}layer_scale1.lambda1"]
        hidden = gelu(linear(f"{block}mlp.fc1", norm(f"{block}norm2", tokens)))
        tokens = tokens + linear(f"{block}mlp.fc2", hidden) * arrays[f"{block}layer_scale2.lambda1"]
    return norm("layernorm", tokens)[0]


def test_dinov2_is_the_forward_pass_written_out():
    arrays = dinov2_arrays()
    pictures = np.random.default_rng(1).normal(size=(2, 12, 12, 3)).astype(np.float32)
    params = dinov2_params({f"dinov2.{k}": v for k, v in arrays.items()}, depth=2, side=3)
    found = DinoV2(**SIZES).apply({"params": params}, pictures)
    for picture, vector in zip(pictures, np.asarray(found), strict=True):
        want = dinov2_numpy(arrays, picture.transpose(2, 0, 1).astype(np.float64))
        np.testing.assert_allclose(vector, want, rtol=1e-4, atol=1e-4)


def test_positions_are_interpolated_as_pytorch_does():
    # torch.nn.functional.interpolate(grid, size, mode="bicubic", align_corners=False) of PyTorch 2.13.
    grid = np.array([[1.0, 2, 4], [0, -1, 3], [2, 5, 1]])
    five = [
        [0.98157, 1.42832, 2.288, 3.48032, 4.26957],
        [0.47414, 0.20182, 0.404, 2.45082, 4.07779],
        [0.096, -0.676, -1.0, 1.376, 3.384],
        [1.02682, 1.7121, 2.456, 2.08966, 1.63181],
        [1.86714, 3.84829, 5.576, 2.90163, 0.35027],
    ]
    for size, want in ((5, five), (2, [[0.69904, 3.23853], [2.04459, 1.96878]]), (3, grid)):
        weights = _cubic_weights(3, size)
        np.testing.assert_allclose(weights @ grid @ weights.T, want, atol=2e-5)


def test_a_table_of_positions_of_no_square_is_refused():
    arrays = dinov2_arrays() | {"embeddings.position_embeddings": np.zeros((1, 6, 8), np.float32)}
    with pytest.raises(ValueError, match=r"shape \(1, 6, 8\), of no square"):
        dinov2_params(arrays, depth=2, side=3)
