"""ONNX programs answer in onnxruntime as the learner does in JAX, at sizes other than any that was traced."""

import json
import re
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from metajax import deploy
from metajax.deploy.onnx import to_onnx
from metajax.errors import DataError
from metajax.nn.conv import conv2d
from metajax.zoo import LEARNERS

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

SHAPE = (16, 16, 1)
PAGE = Path(__file__).parents[2] / "docs" / "howto" / "onnx.md"
TABLES = {"in_context_tables"}
CLASSIFY = [n for n, entry in LEARNERS.items() if "classes" in entry.predicts and n not in TABLES]
# Learners that cannot be written; the page lists them.
REFUSED = {
    name
    for line in re.findall(r"^Not exported: (.*)$", PAGE.read_text(), re.M)
    for name in re.findall(r"\w+", line)
}
QUICK = ("protonet", "r2d2")


def session(content):
    return onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])


def made(learner, *, network="mlp", norm=None, options=None):
    sizes = {
        "mlp": {},
        "resnet12": {"filters": 16, "norm": norm},
        "resnet18": {"filters": 16, "norm": norm},
    }
    classes = 7 if LEARNERS[learner].objective else None
    spec = deploy.LearnerSpec(
        *(learner, network, 3, 7),
        options=options or {},
        network_options=sizes.get(network, {"filters": 8, "norm": norm}),
        classes=classes,
        steps=2,
        rows=2,
    )
    meta = jax.jit(deploy.make_learner_of(spec).init)(jax.random.key(0), jnp.zeros((2, *SHAPE)))
    return deploy.Bundle(spec, deploy.ImageForm(SHAPE, (0.5,), (0.25,)), meta, temperature=2.0)


def agrees(bundle):
    program = session(deploy.export_onnx(bundle))
    whole = jax.jit(deploy.part_of(bundle).function)
    random = np.random.default_rng(0)
    for examples, queries in ((7, 4), (4, 1)):
        feeds = {
            "support": random.integers(0, 256, (examples, *SHAPE)).astype(np.uint8),
            "labels": (np.arange(examples) % 2 if queries == 1 else np.arange(examples) % 3).astype(
                np.int32
            ),
            "queries": random.integers(0, 256, (queries, *SHAPE)).astype(np.uint8),
        }
        (found,) = program.run(None, feeds)
        np.testing.assert_allclose(found, whole(*feeds.values())[0], atol=1e-4)
    assert found[0, 2] == 0  # a class without an example gets nothing


@pytest.mark.parametrize("learner", QUICK)
def test_a_program_answers_as_the_learner_does(learner):
    agrees(made(learner))


def test_a_network_that_normalizes_by_the_batch_answers_each_query_alone():
    agrees(made("protonet", network="conv4_stride", norm="batch"))


@pytest.mark.parametrize(
    "learner", [n for n in CLASSIFY if n not in (*REFUSED, *QUICK, "relation")]
)
def test_every_other_learner_leaves_in_a_program(learner):
    network, norm = ("conv4", "group") if learner == "leo" else ("mlp", None)
    agrees(made(learner, network=network, norm=norm))


@pytest.mark.parametrize("learner", sorted(REFUSED))
def test_learners_that_the_page_names_are_refused(learner):
    with pytest.raises(DataError, match="cannot be exported for all"):
        deploy.export_onnx(made(learner))


@pytest.mark.parametrize(
    ("learner", "options"),
    [
        ("protonet", {"distance": "cosine"}),
        ("matching", {"full_context": True}),
        ("simpleshot", {"refine": 2}),
    ],
)
def test_every_kind_of_comparison_leaves_in_a_program(learner, options):
    agrees(made(learner, options=options))


@pytest.mark.parametrize("norm", ["batch", "group", "layer", "running"])
@pytest.mark.parametrize("network", ["conv4_stride", "conv4", "resnet12", "vit"])
def test_every_network_leaves_in_a_program(network, norm):
    if network != "vit" or norm in ("layer", "group"):
        agrees(made("protonet", network=network, norm=norm))


def test_relation_networks_leave_in_a_program_for_every_size():
    agrees(made("relation", network="conv4_stride", norm="group"))


def test_adapting_and_answering_apart_are_the_whole_and_properties_name_the_labels():
    bundle = made("protonet")
    random = np.random.default_rng(1)
    support, queries = (random.integers(0, 256, (n, *SHAPE)).astype(np.uint8) for n in (5, 3))
    labels = np.array([0, 1, 2, 1, 0], np.int32)
    adapt, predict, whole = (
        session(deploy.export_onnx(bundle, part=part, labels=["a", "b", "ç"]))
        for part in ("adapt", "predict", "whole")
    )
    names = [output.name for output in adapt.get_outputs()]
    state = dict(zip(names, adapt.run(None, {"support": support, "labels": labels}), strict=True))
    (apart,) = predict.run(None, {**state, "queries": queries})
    (together,) = whole.run(None, {"support": support, "labels": labels, "queries": queries})
    np.testing.assert_allclose(apart, together, atol=1e-6)
    facts = whole.get_modelmeta().custom_metadata_map
    assert json.loads(facts["labels"]) == ["a", "b", "ç"]
    assert (facts["size"], facts["channels"], facts["invert"]) == ("16", "1", "false")


def test_parts_for_jax_are_the_whole_too():
    bundle = made("protonet")
    adapt, predict, whole = (
        deploy.export_program(bundle, platforms=("cpu",), part=part)
        for part in ("adapt", "predict", "whole")
    )
    support, queries = np.ones((4, *SHAPE), np.uint8), np.zeros((2, *SHAPE), np.uint8)
    labels = np.array([0, 1, 2, 1], np.int32)
    (apart,) = predict.call(*adapt.call(support, labels), queries)
    np.testing.assert_allclose(apart, whole.call(support, labels, queries), atol=1e-6)
    with pytest.raises(DataError, match="part is half; use whole, adapt, predict"):
        deploy.export_program(bundle, part="half")


X = jnp.linspace(-2, 2, 12).reshape(3, 4)
PLACES = jnp.array([2, 0, 7, -1])
SQUARE = X.T @ X + jnp.eye(4)
FUNCTIONS = {
    "elements": lambda x: (
        jnp.log1p(jnp.exp(x)) + jax.nn.relu(x) ** 3 / (1 + jax.lax.rsqrt(x * x + 1))
    ),
    "where": lambda x: jnp.where((x > 0) & ~(x > 1) | (x != x), x, jnp.sign(x) - jnp.expm1(x)),
    "reductions": lambda x: jnp.stack([x.max(0), x.min(0), x.prod(0), jnp.any(x > 1, 0) + 0.0]),
    "argmax": lambda x: jnp.argmax(x, 1) + jnp.cumsum(x, 0)[:, 0],
    "slices": lambda x: jnp.concatenate(
        [x[:, ::2], x[:, 1:3][:, ::-1], jnp.pad(x, ((0, 0), (1, 2)))], 1
    ),
    "take": lambda x: jnp.take(x, PLACES, axis=1, mode="fill", fill_value=3.0),
    "take clipped": lambda x: jnp.take(x, PLACES, axis=1, mode="clip"),
    "take along": lambda x: jnp.take_along_axis(x, jnp.argmin(x, 1)[:, None], axis=1),
    "window": lambda x: jax.lax.dynamic_slice(x, (0, x[0, 0].astype(int) + 2), (x.shape[0], 2)),
    "put": lambda x: jax.lax.dynamic_update_slice(x, x[:, :2], (0, 5)),
    "set": lambda x: x.T.at[PLACES].set(jnp.ones((4, x.shape[0])), mode="drop"),
    "add": lambda x: x.T.at[PLACES[:2], 0].add(2.0),
    "products": lambda x: jnp.einsum("ab,cb,bd->adc", x, x, SQUARE),
    "scan": lambda x: jax.lax.scan(lambda c, r: (c + r, c * r), x[0], x)[1],
    "scan back": lambda x: jax.lax.scan(lambda c, r: (c + r, c * r), x[0], x, reverse=True)[1],
    "map": lambda x: jax.lax.map(lambda row: row / row.sum(), x),
    "while": lambda x: jax.lax.while_loop(lambda v: v.sum() < 99, lambda v: v + jnp.abs(v) + 1, x),
    "cond": lambda x: jax.lax.cond(x.sum() > 0, jnp.sin, jnp.cos, x),
    "mean": lambda x: x.mean(0) + x.shape[0] * jnp.ones(x.shape[0]).sum(),
    "solve": lambda x: _solved(x),
    "batches": lambda x: jax.vmap(lambda row: jnp.linalg.cholesky(SQUARE + row @ row * jnp.eye(4)))(
        x
    ),
    "tiles": lambda x: jnp.tile(x, (1, 2)) + sum(jnp.unstack(x, axis=1))[:, None],
    "order": lambda x: (
        jnp.argsort(jnp.round(x, 0), axis=1) + jax.lax.round(x) + jnp.sort(x, axis=0)
    ),
    "steps": lambda x: _stepped(x, (2, 2)) + _stepped(x, (1, 1)),
    "windows": lambda x: jax.vmap(lambda row, i: jax.lax.dynamic_slice(row, (i,), (1,)))(
        x, jnp.argmax(x, 1)
    ),
    "top": lambda x: jax.lax.top_k(x, 2)[0],
}


def _solved(x):
    factor = jnp.linalg.cholesky(x.T @ x + jnp.eye(4))
    lower = jax.scipy.linalg.solve_triangular(factor, x.T, lower=True)
    upper = jax.scipy.linalg.solve_triangular(factor, lower, lower=True, trans=1)
    return upper + jax.scipy.linalg.solve_triangular(factor.T, x.T, lower=False)


def _stepped(x, strides):
    """Takes a gradient step on a network of two convolutions, whose derivatives are convolutions too."""
    images = x[:, None, None] * jnp.cos(jnp.arange(100.0)).reshape(5, 5, 4)

    def loss(kernels):
        hidden = jax.nn.relu(conv2d(images, kernels[0], strides=strides, implementation="plain"))
        return (conv2d(hidden, kernels[1], padding="VALID", implementation="plain") ** 2).mean()

    kernels = [jnp.sin(jnp.arange(108.0)).reshape(3, 3, 4, 3), jnp.ones((2, 2, 3, 1))]
    return x * sum(gradient.sum() for gradient in jax.grad(loss)(kernels))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_jax_give_the_same_numbers(name):
    function = FUNCTIONS[name]
    (rows,) = jax.export.symbolic_shape("n", constraints=["n >= 2"])
    content = to_onnx(
        lambda x: [function(x)],
        [jax.ShapeDtypeStruct((rows, 4), np.float32)],
        inputs=["x"],
        outputs=["y"],
        properties={},
    )
    for values in (X, jnp.concatenate([X + 0.5, -X])):
        (found,) = session(content).run(None, {"x": np.asarray(values)})
        np.testing.assert_allclose(found, function(values), rtol=1e-5, atol=1e-5)


def test_an_operation_without_a_counterpart_is_named():
    with pytest.raises(DataError, match="the operation digamma has no counterpart in ONNX here"):
        to_onnx(
            lambda x: [jax.scipy.special.digamma(x)],
            [jax.ShapeDtypeStruct((3,), np.float32)],
            inputs=["x"],
            outputs=["y"],
            properties={},
        )
