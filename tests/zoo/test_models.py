import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax import models, zoo

ROOT = pathlib.Path(__file__).parents[2]


def shapes(model, *shape):
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))
    return jax.tree.map(lambda leaf: leaf.shape, params)


@pytest.mark.parametrize("name", zoo.MODELS)
def test_builds_every_model(name):
    model = zoo.build_model(name, outputs=5)
    params = shapes(model, 1, 28, 28, 1)
    assert params["head"]["bias"] == (5,)
    assert "head" not in shapes(zoo.build_model(name, outputs=None), 1, 28, 28, 1)


def test_each_name_builds_its_network():
    features = {
        name: shapes(zoo.build_model(name, outputs=5), 1, 48, 48, 1)["head"]["kernel"][0]
        for name in zoo.MODELS
    }
    # Flattened, 3 x 3 positions of 64 channels remain of 48 pooled four times.
    # Concatenated: 6 x 6 positions of 384 and 3 x 3 of 512.
    assert features == {
        "mlp": 40,
        "conv4": 576,
        "conv4_stride": 64,
        "conv4_wide": 18_432,
        "resnet12": 640,
        "resnet18": 512,
        "vit": 128,
    }


def test_options_reach_the_model():
    conv4 = shapes(zoo.build_model("conv4", outputs=5, filters=8, norm="none"), 1, 28, 28, 1)
    assert conv4["conv1"] == {"kernel": (3, 3, 8, 8), "bias": (8,)} and "norm1" not in conv4
    resnet = shapes(zoo.build_model("resnet12", outputs=5, filters=16, norm="group"), 1, 28, 28, 1)
    assert [resnet[f"block{i}"]["norm0"]["scale"] for i in range(4)] == [
        (16,),
        (40,),
        (80,),
        (160,),
    ]
    mlp = shapes(zoo.build_model("mlp", outputs=1, features=(7,)), 1, 1)
    assert mlp["hidden0"]["kernel"] == (1, 7) and mlp["head"]["kernel"] == (7, 1)


def test_a_built_model_runs():
    model = zoo.build_model("mlp", outputs=1, features=())
    params = {"head": {"kernel": jnp.array([[2.0]]), "bias": jnp.array([1.0])}}
    np.testing.assert_allclose(model.apply(params, jnp.array([[3.0]])), [[7.0]])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("conv5", {}, "No model is named 'conv5'; the nearest are conv4"),
        ("resnet", {}, "resnet18, resnet12"),
        ("?", {}, "conv4, conv4_stride, conv4_wide, mlp, resnet12, resnet18, vit"),
        ("conv4_wide", {"filters": 64}, "64 of the first block.*multiple of 3"),
        (
            "resnet18",
            {"drop_rate": 0.1},
            "'resnet18' has no option drop_rate; it takes filters, norm",
        ),
        ("mlp", {"filters": 8}, "'mlp' has no option filters; it takes none"),
        ("conv4", {"features": (8,)}, "'conv4' has no option features; it is for mlp"),
        (
            "conv4",
            {"norm": "instance"},
            "norm=instance is unknown; did you mean none",
        ),
    ],
)
def test_errors_list_the_known_names(name, options, message):
    with pytest.raises(ValueError, match=message):
        zoo.build_model(name, outputs=5, **options)


def test_the_package_lists_its_names_without_a_framework():
    code = """
import sys
sys.modules["flax"] = sys.modules["equinox"] = None
import metajax.models.adapters
from metajax import zoo
assert "conv4" in zoo.MODELS and len(zoo.MODELS) == 7
try:
    zoo.build_model("mlp", outputs=1)
except ImportError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "pip install 'metajax[flax]'" in done.stdout


def test_an_unknown_name_is_an_attribute_error():
    assert models.Conv4.__name__ == "Conv4"
    with pytest.raises(AttributeError, match="Conv5"):
        models.Conv5  # noqa: B018
