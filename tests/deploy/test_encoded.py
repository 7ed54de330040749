"""Bundles whose pictures a frozen encoder reads: they name it, find it, and answer as its vectors do."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("flax")
pytest.importorskip("safetensors")

from helpers.encoders import packaged, write_dinov2
from metajax import deploy
from metajax.data.features import pictures
from metajax.deploy import encoded
from metajax.errors import DataError
from metajax.zoo.learners import find_learner

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(256, size=(4, 40, 40, 3), dtype=np.uint8)


@pytest.fixture
def form(tmp_path, monkeypatch):
    """Makes the form of an encoder that is found by the name of the packaged one."""
    packaged(write_dinov2(tmp_path / "dino"), monkeypatch)
    encoded._encoder.cache_clear()
    sha256 = pictures.load_picture_encoder(side=32).sha256
    yield deploy.EncodedForm((40, 40, 3), (0.5,) * 3, (0.5,) * 3, sha256=sha256, side=32)
    encoded._encoder.cache_clear()


def bundle_of(form, learner="protonet", network="frozen_pictures", **options):
    form = dataclasses.replace(form, flat=network == "mlp")
    classes = 3 if find_learner(learner).objective else None
    spec = deploy.LearnerSpec(learner, network, 2, 2, options=options, classes=classes)
    learner = deploy.make_learner_of(spec, about=form.about)
    example = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), form.example)
    return deploy.Bundle(spec, form, learner.init(jax.random.key(0), example))


def test_answers_are_those_of_the_vectors_and_survive_a_file(form, tmp_path):
    model = deploy.Classifier(bundle_of(form)).learn({"a": [PIXELS[0]], "b": [PIXELS[1]]})
    vectors = pictures.compute_picture_vectors(PIXELS, pictures.load_picture_encoder(side=32))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    distances = ((unit[2:, None] - unit[None, :2]) ** 2).sum(-1)
    want = np.exp(-distances) / np.exp(-distances).sum(1, keepdims=True)
    found = model.probabilities(list(PIXELS[2:]))
    np.testing.assert_allclose(found, want, atol=1e-5)
    again = deploy.load(model.save(tmp_path / "bundle"))
    np.testing.assert_array_equal(again.probabilities(list(PIXELS[2:])), found)
    assert again.bundle.form == form and hash(again.bundle.form) == hash(form)
    assert "vectors of efficientnet_lite0 at 32 pixels" in again.bundle.form.in_words()
    with pytest.raises(DataError, match="no reasons among pixels"):
        again.explain(PIXELS[0])


@pytest.mark.parametrize("learner", ["r2d2", "simpleshot", "linear_probe", "in_context", "anil"])
def test_every_head_learns_from_vectors(form, learner):
    network = "mlp" if learner == "simpleshot" else "frozen_pictures"
    model = deploy.Classifier(bundle_of(form, learner, network))
    found = model.learn({"a": [PIXELS[0]], "b": [PIXELS[1]]}).probabilities(list(PIXELS[2:]))
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)
    assert np.isfinite(found).all() and not np.allclose(found[0], found[1])


def test_an_exported_program_has_the_encoder_inside(form):
    bundle = bundle_of(form)
    model = deploy.Classifier(bundle).learn({"a": [PIXELS[0]], "b": [PIXELS[1]]})
    program = deploy.export_program(bundle)
    found = program.call(PIXELS[:2], np.arange(2, dtype=np.int32), PIXELS[2:])
    np.testing.assert_allclose(found, model.probabilities(list(PIXELS[2:])), atol=1e-5)
    with pytest.raises(DataError, match="no features of a picture alone"):
        deploy.part_of(bundle, "features")


def change(folder, **fields):
    """Changes the form in a bundle's description."""
    path = folder / "model.json"
    found = json.loads(path.read_text())
    found["images"] |= fields
    path.write_text(json.dumps(found))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sha256": "0" * 64}, "encoder of the training cannot be used.* not 000"),
        ({"sha256": "../x"}, "sha256 is ../x; it has to be 64 digits"),
        ({"encoder": "dinov2"}, "the encoder is dinov2; use efficientnet_lite0"),
        ({"encoder": 3}, "encoder"),
        ({"side": 10**9}, "side is 1000000000"),
        ({"side": 33}, "patches of 4 do not divide"),
        ({"flat": True}, "cannot be used"),
        ({"strange": 1}, "strange"),
    ],
)
def test_a_bundle_with_another_encoder_is_one_line(form, tmp_path, fields, message):
    folder = bundle_of(form).save(tmp_path / "bundle")
    change(folder, **fields)
    with pytest.raises(DataError, match=message) as found:
        deploy.load(folder)
    assert "\n" not in str(found.value)


def test_without_the_package_loading_names_the_command(form, tmp_path, monkeypatch):
    folder = bundle_of(form).save(tmp_path / "bundle")
    monkeypatch.undo()
    encoded._encoder.cache_clear()
    monkeypatch.setattr(pictures.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'metajax\[pictures\]'"):
        deploy.load(folder)
