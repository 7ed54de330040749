"""Bundles and classifiers: they answer as the learner does, alone as in company, and survive the disk."""

import dataclasses
import hashlib
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax import deploy
from metajax.data import bundles
from metajax.errors import DataError
from metajax.objectives import query_outputs
from metajax.types import Batch, Episode

pytest.importorskip("safetensors")

SHAPE = (8, 8, 1)
FORM = deploy.ImageForm(SHAPE, (0.5,), (0.25,))
SHADES = {"dark": 60, "middle": 128, "light": 200}


def made(learner="protonet", *, norm="group", ways=3, **fields):
    """Makes a bundle with fresh meta-parameters."""
    options = {"filters": 8, "norm": norm}
    spec = deploy.LearnerSpec(
        learner, "conv4_stride", ways, 6, network_options=options, steps=2, **fields
    )
    meta = jax.jit(deploy.make_learner_of(spec).init)(jax.random.key(0), jnp.zeros((2, *SHAPE)))
    return deploy.Bundle(spec, FORM, meta)


def pictures(count=2, seed=0):
    """Draws noisy pictures of each shade."""
    random = np.random.default_rng(seed)
    return {
        name: np.clip(random.normal(shade, 20, (count, *SHAPE)), 0, 255).astype(np.uint8)
        for name, shade in SHADES.items()
    }


@pytest.fixture(scope="module")
def model():
    return deploy.Classifier(made()).learn(pictures())


@pytest.mark.parametrize("learner", ["protonet", "maml"])
def test_answers_are_those_of_the_learner(learner):
    bundle = made(learner)
    model = deploy.Classifier(bundle).learn(pictures())
    support, query = pictures(), pictures(seed=1)

    def batch(examples):
        pixels = np.concatenate(list(examples.values()))
        inputs = (pixels.astype(np.float32) / 255 - 0.5) / 0.25
        return Batch(inputs, np.repeat(np.arange(3), 2))

    episode = Episode(batch(support), batch(query))
    raw = deploy.make_learner_of(bundle.spec)
    outputs = jax.jit(lambda meta: query_outputs(raw, meta, jax.random.key(1), episode))(
        bundle.meta
    )
    found = model.probabilities([picture for name in query for picture in query[name]])
    np.testing.assert_allclose(found, jax.nn.softmax(outputs), atol=2e-6)


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_a_query_alone_has_the_answer_that_it_has_in_company(norm):
    model = deploy.Classifier(made(norm=norm)).learn(pictures())
    queries = list(pictures(seed=1)["middle"]) + list(pictures(seed=2)["light"])
    together = model.probabilities(queries)
    alone = np.concatenate([model.probabilities([query]) for query in queries])
    np.testing.assert_allclose(alone, together, atol=1e-6)
    np.testing.assert_allclose(together.sum(1), 1, atol=1e-6)


def test_what_is_saved_answers_the_same_bit_for_bit(model, tmp_path):
    queries = list(pictures(seed=1)["light"])
    loaded = deploy.load(model.save(tmp_path / "shades"))
    assert loaded.labels == model.labels == tuple(SHADES)  # not in the order of the alphabet
    np.testing.assert_array_equal(loaded.probabilities(queries), model.probabilities(queries))
    # Only tensors and JSON, and a bundle without classes in the place of an older one leaves no file of it.
    model.bundle.save(tmp_path / "shades")
    assert len(list((tmp_path / "shades").iterdir())) == 2
    assert deploy.load(tmp_path / "shades").labels == ()


def test_a_work_directory_has_its_bundle_in_a_folder(model, tmp_path):
    model.save(tmp_path / "run" / "model")
    assert deploy.load(tmp_path / "run").labels == model.labels


def test_classes_are_learned_forgotten_and_learned_again(model):
    two = model.forget("middle")
    assert two.labels == ("dark", "light") and model.labels == tuple(SHADES)
    assert two.probabilities(list(pictures()["dark"])).shape == (2, 2)
    more = two.learn({"light": pictures(seed=3)["light"], "middle": pictures()["middle"]})
    assert more.labels == ("dark", "light", "middle") and len(more.examples["light"]) == 4
    with pytest.raises(DataError, match="there is no class red to forget; there are 'dark'"):
        model.forget("red")


def test_absent_classes_of_a_head_get_no_probability():
    model = deploy.Classifier(made("maml", ways=5)).learn(pictures())
    found = model.probabilities(list(pictures(seed=1)["dark"]))
    assert found.shape == (2, 3)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)
    full = dataclasses.replace(model.bundle, spec=dataclasses.replace(model.bundle.spec, ways=3))
    assert deploy.Classifier(full).most_ways == 3
    with pytest.raises(DataError, match="4 classes are more than the 3 that this maml can tell"):
        deploy.Classifier(full).learn({**pictures(), "fourth": pictures()["dark"]})


def test_a_metric_learner_tells_more_classes_apart_than_it_was_trained_on():
    model = deploy.Classifier(made(ways=2)).learn(pictures())
    assert model.most_ways > 3
    assert model.evaluate(pictures()).examples == 6


def test_evaluation_counts_right_answers(model):
    right = model.predict(list(pictures(seed=5)["dark"]))
    found = model.evaluate({"dark": pictures(seed=5)["dark"]})
    expected = np.mean([prediction.label == "dark" for prediction in right])
    assert found.accuracy == expected and found.by_class == {"dark": expected}
    with pytest.raises(DataError, match="'red' were not learned"):
        model.evaluate({"red": pictures()["dark"]})


def test_the_threshold_and_the_temperature_act_on_probabilities(model):
    queries = list(pictures(seed=1)["light"])
    hot = dataclasses.replace(model.bundle, temperature=1000.0, threshold=0.9)
    cool = dataclasses.replace(model, bundle=hot)
    np.testing.assert_allclose(cool.probabilities(queries), 1 / 3, atol=1e-2)
    assert not any(prediction.known for prediction in cool.predict(queries))
    assert all(prediction.known for prediction in model.predict(queries))


def test_too_few_classes_and_pictures_are_refused(model):
    with pytest.raises(DataError, match="0 classes are learned; learn two"):
        deploy.Classifier(model.bundle).predict(list(pictures()["dark"]))
    with pytest.raises(DataError, match="'empty' have no picture"):
        model.learn({"empty": []})
    with pytest.raises(DataError, match=r"picture 0 has the shape \(3,\)"):
        model.predict([np.zeros(3, np.uint8)])
    with pytest.raises(DataError, match="values from 0 to 7"):
        model.predict([np.arange(64.0).reshape(8, 8) / 9])
    with pytest.raises(DataError, match=r"nothing\.png is not a readable image"):
        model.predict(["nothing.png"])
    assert model.predict([]) == []


def test_pictures_of_the_other_polarity_are_warned_of(model):
    bright = dataclasses.replace(model.bundle.images, mean=(0.1,))
    ink = deploy.Classifier(dataclasses.replace(model.bundle, form=bright))
    paper = {
        name: np.full((1, *SHAPE), shade, np.uint8) for name, shade in (("a", 240), ("b", 230))
    }
    with pytest.warns(UserWarning, match="black and white exchanged"):
        ink.learn(paper)
    inverted = dataclasses.replace(bright, invert=True)
    deploy.Classifier(dataclasses.replace(model.bundle, form=inverted)).learn(paper)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    return model.save(tmp_path_factory.mktemp("bundle"))


def described(folder, **changes):
    """Changes fields of the learner's description in place."""
    path = folder / "model.json"
    found = json.loads(path.read_text())
    for name, value in changes.items():
        group, _, field = name.partition("__")
        (found[group] if field else found)[field or group] = value
    path.write_text(json.dumps(found))


def flipped(folder):
    path = next(folder.glob("meta-*"))
    content = bytearray(path.read_bytes())
    content[-3] ^= 64
    path.write_bytes(content)


def replaced(folder, change):
    """Rewrites the tensors with a right hash."""
    path = next(folder.glob("meta-*"))
    found = bundles.read_bundle(folder)
    tensors = {**found.tensors, "meta": change(dict(found.tensors["meta"]))}
    kept = {k: v for k, v in found.description.items() if k not in ("format", "tensors")}
    bundles.write_bundle(folder, kept, tensors)
    return path


def named(folder, file):
    path = folder / "model.json"
    found = json.loads(path.read_text())
    found["tensors"]["meta"] = {"file": file, "sha256": hashlib.sha256(b"").hexdigest()}
    path.write_text(json.dumps(found))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda f: (f / "model.json").unlink(), "is no bundle: it has no model.json"),
        (lambda f: (f / "model.json").write_text("{"), "is damaged"),
        (lambda f: (f / "model.json").write_text("[" * 99999), "nested too deeply"),
        (lambda f: described(f, format=2), "is a bundle of format 2, and this metajax reads 1"),
        (flipped, "is damaged: its content is not the one model.json names"),
        (lambda f: next(f.glob("meta-*")).unlink(), "cannot be read"),
        (lambda f: named(f, "../../etc/passwd"), "is no name of a file of tensors"),
        (lambda f: described(f, learner__learner="protonett"), "did you mean protonet|protonet"),
        (lambda f: described(f, learner__network="conv5"), "conv4"),
        (
            lambda f: described(f, learner__ways=10**12),
            "ways is 1000000000000; it has to be 2 to 1000",
        ),
        (lambda f: described(f, learner__ways="5"), "ways is 5; it has to be of type int"),
        (lambda f: described(f, learner__options={"code": "x"}), "code"),
        (lambda f: described(f, learner__network_options={"filters": 10**9}), "numbers"),
        (lambda f: described(f, images__shape=[8, 8]), "three whole numbers"),
        (lambda f: described(f, images__shape=[10**6, 10**6, 1]), "height is 1000000"),
        (lambda f: described(f, images__scale=[0.0]), "above zero"),
        (lambda f: described(f, temperature=0.0), "temperature is 0.0"),
        (lambda f: described(f, surprise=1), "the field surprise is unknown"),
        (
            lambda f: replaced(f, lambda t: {n: np.full_like(a, np.nan) for n, a in t.items()}),
            "holds numbers that are not finite",
        ),
        (lambda f: replaced(f, lambda t: dict(list(t.items())[1:])), "are not those of protonet"),
        (
            lambda f: replaced(f, lambda t: {n: a[..., :1] for n, a in t.items()}),
            "and protonet has",
        ),
    ],
)
def test_a_hostile_bundle_is_one_line(folder, tmp_path, harm, message):
    shutil.copytree(folder, tmp_path / "copy")
    harm(tmp_path / "copy")
    with pytest.raises(DataError, match=message) as caught:
        deploy.load(tmp_path / "copy")
    assert "\n" not in str(caught.value)


def test_the_estimator_of_scikit_learn_answers_as_the_classifier(model):
    base = pytest.importorskip("sklearn.base")
    import metajax

    pixels = np.concatenate([pictures()[name] for name in ("light", "dark")])
    labels = np.array([7, 7, 3, 3])
    few = base.clone(metajax.FewShotClassifier(model.bundle and deploy.Classifier(model.bundle)))
    few.fit(pixels, labels)
    assert few.classes_.tolist() == [3, 7]
    expected = deploy.Classifier(model.bundle).learn({"3": pixels[2:], "7": pixels[:2]})
    np.testing.assert_array_equal(few.predict_proba(pixels), expected.probabilities(list(pixels)))
    assert few.score(pixels, labels) == np.mean(few.predict(pixels) == labels)
    with pytest.raises(DataError, match="call fit first"):
        metajax.FewShotClassifier(model).predict(pixels)
    with pytest.raises(DataError, match="4 examples and 1 labels"):
        few.fit(pixels, [1])


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_reasons_are_exact(norm, tmp_path):
    model = deploy.Classifier(made(norm=norm)).learn(pictures())
    query = pictures(seed=4)["light"][0]
    reasons = model.explain(query)
    prediction = model.predict([query])[0]
    assert reasons.label == prediction.label
    assert abs(reasons.probability - prediction.probability) < 1e-5
    # Each example really left out, by a classifier that never saw it.
    for example in reasons.examples:
        others = {name: list(pixels) for name, pixels in model.examples.items()}
        del others[example.label][example.number]
        without = deploy.Classifier(model.bundle).learn(others).predict([query])[0]
        expected = prediction.probability - without.probabilities[reasons.label]
        assert abs(example.influence - expected) < 1e-4
    # The shares of the pixels are complete.
    difference = reasons.probability - reasons.baseline
    assert abs(reasons.attribution.sum() - difference) < 0.01 * abs(difference) + 1e-4
    page = reasons.save(tmp_path / "why.html").read_text()
    assert page.count("<tr>") == 6 and 'src="data:image/png;base64,' in page
