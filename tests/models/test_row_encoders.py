"""Encoders of rows against computations by hand, and the contract that all of them keep."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from helpers.differences import noisy, relative_error
from metajax.learners.states import class_means
from metajax.models.cells import cells_encoder
from metajax.models.fields import fields_encoder
from metajax.models.molecules import ATOM_CODES, fingerprint_encoder, molecule_network
from metajax.models.sentence import BertSizes, bert_params, sentence_encoder
from metajax.models.text import ngram_encoder, vector_encoder, word_attention, word_cnn
from metajax.types import Batch, Episode

ROWS = 6


def bert_arrays(*, words=9, places=8, width=6, wide=10, depth=2, seed=0):
    """Arrays of a small BERT by the names of its files."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return rng.normal(0, 0.4, shape).astype(np.float32)

    arrays = {
        "embeddings.word_embeddings.weight": draw(words, width),
        "embeddings.position_embeddings.weight": draw(places, width),
        "embeddings.token_type_embeddings.weight": draw(2, width),
    }
    for name, shape in {
        "attention.self.query": (width, width),
        "attention.self.key": (width, width),
        "attention.self.value": (width, width),
        "attention.output.dense": (width, width),
        "intermediate.dense": (wide, width),
        "output.dense": (width, wide),
    }.items():
        for layer in range(depth):
            arrays[f"encoder.layer.{layer}.{name}.weight"] = draw(*shape)
            arrays[f"encoder.layer.{layer}.{name}.bias"] = draw(shape[0])
    norms = [
        f"encoder.layer.{n}.{part}.LayerNorm"
        for n in range(depth)
        for part in ("attention.output", "output")
    ]
    for name in ("embeddings.LayerNorm", *norms):
        arrays[f"{name}.weight"], arrays[f"{name}.bias"] = 1 + draw(width), draw(width)
    return arrays


SIZES = BertSizes(heads=2, depth=2, epsilon=1e-5)


def text_ids(length, rows=ROWS):
    """Ids of words, of texts of 0 to 4 words."""
    ids = np.random.default_rng(3).integers(1, 9, (rows, 4))
    ids[np.arange(4) >= np.arange(rows)[:, None] % 5] = 0
    return np.pad(ids, ((0, 0), (0, length - 4))).astype(np.int32)


def tokens(length):
    ids = text_ids(length)
    return {"ids": ids, "mask": ids != 0}


def graphs(atoms):
    """Random molecules of 1 to 4 atoms."""
    rng, sizes = np.random.default_rng(4), 1 + np.arange(ROWS) % 4
    mask = np.arange(atoms) < sizes[:, None]
    codes = rng.integers(0, np.minimum(ATOM_CODES, 3), (ROWS, atoms, len(ATOM_CODES)))
    bonds = np.triu(rng.integers(0, 5, (ROWS, 4, 4)), 1)
    bonds = np.pad(bonds + bonds.swapaxes(1, 2), ((0, 0), (0, atoms - 4), (0, atoms - 4)))
    both = mask[:, :, None] & mask[:, None]
    return {
        "atoms": np.where(mask[..., None], codes, 0).astype(np.int8),
        "bonds": np.where(both, bonds, 0).astype(np.int8),
        "mask": mask,
    }


def counts(width):
    return np.random.default_rng(5).integers(0, 4, (ROWS, width)).astype(np.uint8)


def table_rows():
    numbers = np.random.default_rng(6).normal(size=(ROWS, 2)).astype(np.float32)
    numbers[0, 1] = np.nan
    codes = np.random.default_rng(7).integers(0, 3, (ROWS, 2)).astype(np.int32)
    return {"numbers": numbers, "missing": numbers > 1, "categories": codes}


PRETRAINED = bert_params(bert_arrays(), SIZES)
SENTENCE = functools.partial(sentence_encoder, PRETRAINED, sizes=SIZES)
MOLECULE = functools.partial(molecule_network, width=3, depth=2, readout=4)
ENCODERS = {
    "ngrams": (functools.partial(ngram_encoder, hidden=(4,), scaled=True), counts(5)),
    "vectors": (functools.partial(vector_encoder, adapter=3), counts(5) / np.float32(3)),
    "word_cnn": (
        functools.partial(word_cnn, vocabulary=9, width=3, filters=4, windows=(2, 3)),
        text_ids(4),
    ),
    "word_attention": (
        functools.partial(word_attention, vocabulary=9, width=4, depth=1, heads=2),
        text_ids(4),
    ),
    "fields": (
        functools.partial(fields_encoder, categories=(3, 4), width=2, hidden=(4,)),
        table_rows(),
    ),
    "fingerprints": (
        functools.partial(fingerprint_encoder, width=4, depth=1),
        {"counts": counts(5), "descriptors": counts(2) / np.float32(3)},
    ),
    "molecules": (MOLECULE, graphs(4) | {"counts": counts(5)}),
    "sentence": (SENTENCE, tokens(4)),
}


def case(name, outputs=None):
    """A model, its inputs, and parameters that are all away from zero and one."""
    make, inputs = ENCODERS[name]
    model = make(outputs=outputs)
    inputs = jax.tree.map(jnp.asarray, inputs)
    return model, noisy(model.init(jax.random.key(0), inputs), 0.2), inputs


def dense(x, layer):
    return x @ layer["kernel"] + layer["bias"]


def normed(x, layer, epsilon=1e-3):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon)
    return x * layer["scale"] + layer["bias"]


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def attention(x, block, heads):
    """Multi-head attention of one text [L, E], head by head."""
    q, k, v = (dense(x, block[name]) for name in ("query", "key", "value"))
    parts = np.split(np.arange(x.shape[1]), heads)
    found = [softmax(q[:, p] @ k[:, p].T / len(p) ** 0.5) @ v[:, p] for p in parts]
    return dense(np.concatenate(found, axis=1), block["out"])


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", ENCODERS)
def test_jit_is_eager_vmap_is_a_loop_and_no_example_depends_on_another(name):
    model, params, inputs = case(name, outputs=3)
    eager = model.apply(params, inputs)
    assert eager.shape == (ROWS, 3) and jnp.isfinite(eager).all() and eager.std() > 1e-3
    both = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf / 2]), params)
    together = jax.jit(jax.vmap(model.apply, (0, None)))(both, inputs)
    close(together[0], eager)
    close(together[1], jax.jit(model.apply)(jax.tree.map(lambda leaf: leaf / 2, params), inputs))
    alone = model.apply(params, jax.tree.map(lambda leaf: leaf[2:3], inputs))
    close(alone[0], eager[2])


@pytest.mark.parametrize("name", ENCODERS)
def test_the_head_is_linear_in_the_features(name):
    model, params, inputs = case(name, outputs=3)
    body = {layer: leaf for layer, leaf in params.items() if layer != "head"}
    encoder = ENCODERS[name][0](outputs=None)
    features = encoder.apply(body, inputs)
    close(dense(features, params["head"]), model.apply(params, inputs))
    without = jax.eval_shape(encoder.init, jax.random.key(0), inputs)
    assert jax.tree.structure(without) == jax.tree.structure(body)


@pytest.mark.parametrize("name", ENCODERS)
def test_gradients_equal_differences(name, float64):
    model, params, inputs = case(name, outputs=2)
    params = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), params)
    weights = jnp.asarray(np.random.default_rng(8).normal(size=(ROWS, 2)))

    def loss(params):
        return jnp.sum(weights * model.apply(params, inputs))

    assert relative_error(loss, params) < 1e-6


@pytest.mark.parametrize("name", ["word_cnn", "word_attention", "sentence", "molecules"])
def test_padding_changes_nothing(name):
    longer = {
        "word_cnn": text_ids(7),
        "word_attention": text_ids(7),
        "sentence": tokens(7),
        "molecules": graphs(6) | {"counts": counts(5)},
    }[name]
    if name == "molecules":  # the same molecules, with two rows and columns of padding more
        short = graphs(4)
        longer["atoms"] = np.pad(short["atoms"], ((0, 0), (0, 2), (0, 0)), constant_values=1)
        longer["bonds"] = np.pad(short["bonds"], ((0, 0), (0, 2), (0, 2)))
    if name == "sentence":  # ids of padding do not matter
        longer["ids"] = np.where(longer["mask"], longer["ids"], 5)
    model, params, inputs = case(name)
    close(model.apply(params, longer), model.apply(params, inputs))


def test_ngrams_without_layers_are_roots_of_length_one():
    model, inputs = ngram_encoder(), jnp.array([[1, 4, 4, 0], [0, 0, 0, 0]], jnp.uint8)
    params = model.init(jax.random.key(0), inputs)
    assert not jax.tree.leaves(params)
    close(model.apply(params, inputs), [[1 / 3, 2 / 3, 2 / 3, 0], [0, 0, 0, 0]])


def test_ngrams_have_fixed_weights_and_learned_factors_of_them():
    inputs = jnp.array([[1, 4, 4], [0, 0, 1]], jnp.uint8)
    model = ngram_encoder(weights=np.array([3.0, 0.0, 2.0]), scaled=True)
    params = model.init(jax.random.key(0), inputs)
    close(params["ngrams"]["scale"], [1, 1, 1])
    close(model.apply(params, inputs), [[3 / 5, 0, 4 / 5], [0, 0, 1]])
    halved = {"ngrams": {"scale": jnp.array([1.0, 1.0, 0.5])}}
    close(model.apply(halved, inputs)[0], np.array([3, 0, 2]) / 13**0.5)
    with pytest.raises(ValueError, match=r"weights are \(2,\) and a text has 3 counts"):
        ngram_encoder(weights=np.ones(2)).init(jax.random.key(0), inputs)


def test_a_convolution_is_the_loop_over_its_windows():
    model, params, ids = case("word_cnn")
    params, ids = jax.tree.map(np.asarray, params), np.asarray(ids)
    for row, want in enumerate(np.asarray(model.apply(params, ids))):
        words = params["words"]["table"][ids[row][ids[row] > 0]]
        best = []
        for window in (2, 3):
            before = (window - 1) // 2
            padded = np.pad(words, ((before, window - 1 - before), (0, 0)))
            spans = [padded[at : at + window].ravel() for at in range(len(words))]
            responses = [np.maximum(dense(s, params[f"conv{window}"]), 0) for s in spans]
            best.append(np.max(responses, axis=0) if responses else np.zeros(4))
        close(want, np.concatenate(best))


def test_word_attention_is_a_transformer_on_the_words_alone():
    model, params, ids = case("word_attention")
    found, params = np.asarray(model.apply(params, ids)), jax.tree.map(np.asarray, params)
    for row, text in enumerate(np.asarray(ids)):
        words = params["words"]["table"][text[text > 0]]
        if not len(words):
            close(found[row], 0)
            continue
        angles = np.arange(len(words))[:, None] / np.array([1, 100])  # 10,000 ** (0, 1/2)
        x = dense(words, params["widen"]) + np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
        block = params["block0"]
        x = x + attention(normed(x, block["norm0"]), block, 2)
        hidden = np.asarray(jax.nn.gelu(dense(normed(x, block["norm1"]), block["widen"])))
        close(found[row], normed(x + dense(hidden, block["narrow"]), params["norm"]).mean(0))


def test_fields_know_missing_numbers_and_unseen_codes():
    model, params, inputs = case("fields")
    params = jax.tree.map(np.asarray, params)
    numbers, missing = np.asarray(inputs["numbers"]), np.asarray(inputs["missing"])
    missing = missing | np.isnan(numbers)
    assert missing[0, 1] and not missing.all()
    table, codes = params["categories"]["table"], np.asarray(inputs["categories"])
    joined = [np.where(missing, 0, numbers), missing, table[codes[:, 0]], table[3 + codes[:, 1]]]
    want = np.maximum(dense(np.concatenate(joined, axis=1), params["hidden0"]), 0)
    close(model.apply(params, inputs), want)
    unseen = {**inputs, "categories": jnp.full((ROWS, 2), 9)}
    zeros = {**inputs, "categories": jnp.zeros((ROWS, 2), int)}
    close(model.apply(params, unseen), model.apply(params, zeros))


def test_messages_are_sums_over_the_bonds_of_each_molecule():
    model, params, inputs = case("molecules")
    found = np.asarray(model.apply(params, inputs))
    params, inputs = jax.tree.map(np.asarray, (params, inputs))
    first = np.cumsum(ATOM_CODES) - ATOM_CODES
    for row in range(ROWS):
        n = inputs["mask"][row].sum()
        x = params["atoms"]["table"][inputs["atoms"][row, :n] + first].sum(1)
        for index in range(2):
            layer = params[f"layer{index}"]
            kernels = np.split(layer["messages"]["kernel"], 4, axis=1)
            received = np.zeros_like(x)
            for i, j in zip(*np.nonzero(inputs["bonds"][row, :n, :n]), strict=True):
                received[i] += x[j] @ kernels[inputs["bonds"][row, i, j] - 1]
            both = normed(np.concatenate([x, received], axis=1), layer["norm"])
            x = x + dense(np.maximum(dense(both, layer["widen"]), 0), layer["narrow"])
        graph = np.concatenate([x.mean(0), x.max(0), [np.log1p(n)]])
        joined = np.concatenate(
            [normed(graph, params["norm"]), np.log1p(inputs["counts"][row] / 1)]
        )
        close(found[row], dense(np.maximum(dense(joined, params["first"]), 0), params["last"]))


def test_fingerprints_are_a_residual_network_of_logarithms():
    model, params, inputs = case("fingerprints")
    x = np.concatenate([np.log1p(inputs["counts"] / 1), inputs["descriptors"]], axis=1)
    x, block = dense(x, params["enter"]), params["block0"]
    x = x + dense(np.maximum(dense(normed(x, block["norm"]), block["widen"]), 0), block["narrow"])
    close(model.apply(params, inputs), normed(x, params["norm"]))


def test_an_embedding_of_fingerprints_is_a_layer_after_a_rectifier():
    inputs = jnp.asarray(ENCODERS["fingerprints"][1]["counts"])
    model = fingerprint_encoder(width=4, depth=0, embedding=3)
    params = noisy(model.init(jax.random.key(0), inputs), 0.2)
    found, params = model.apply(params, inputs), jax.tree.map(np.asarray, params)
    hidden = normed(
        dense(np.log1p(np.asarray(inputs, np.float32)), params["enter"]), params["norm"]
    )
    close(found, dense(np.maximum(hidden, 0), params["embedding"]))


def test_a_sentence_is_the_mean_of_berts_tokens():
    arrays, inputs = bert_arrays(), tokens(4)
    model = SENTENCE()
    found = model.apply(model.init(jax.random.key(0), inputs), inputs)
    erf = np.vectorize(math.erf)

    def linear(x, name):
        return x @ arrays[f"{name}.weight"].T + arrays[f"{name}.bias"]

    def norm(x, name):
        layer = {"scale": arrays[f"{name}.weight"], "bias": arrays[f"{name}.bias"]}
        return normed(x, layer, epsilon=SIZES.epsilon)

    for row, ids in enumerate(inputs["ids"]):
        ids = ids[ids > 0]
        if not len(ids):
            close(found[row], 0)
            continue
        x = arrays["embeddings.word_embeddings.weight"][ids]
        x = x + arrays["embeddings.position_embeddings.weight"][: len(ids)]
        x = norm(x + arrays["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        for layer in ("encoder.layer.0", "encoder.layer.1"):
            q, k, v = (linear(x, f"{layer}.attention.self.{n}") for n in ("query", "key", "value"))
            heads = [
                softmax(q[:, p] @ k[:, p].T / 3**0.5) @ v[:, p] for p in (slice(0, 3), slice(3, 6))
            ]
            mixed = linear(np.concatenate(heads, axis=1), f"{layer}.attention.output.dense")
            x = norm(x + mixed, f"{layer}.attention.output.LayerNorm")
            hidden = linear(x, f"{layer}.intermediate.dense")
            hidden = hidden * (1 + erf(hidden / 2**0.5)) / 2
            x = norm(x + linear(hidden, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
        close(found[row], x.mean(0) / np.linalg.norm(x.mean(0)))


@pytest.mark.parametrize("name", ["fields", "molecules", "sentence", "word_cnn"])
def test_rows_that_are_dicts_go_through_protonet_and_maml(name):
    make, rows = ENCODERS[name]
    rows = jax.tree.map(jnp.asarray, rows)
    batch = Batch(rows, jnp.array([0, 1, 0, 1, 0, 1]))
    task, key = Episode(batch, batch), jax.random.key(1)
    encoder = make(outputs=None)
    learner = metajax.protonet(encoder, ways=2)
    meta = jax.jit(learner.init)(key, rows)
    logits = metajax.objectives.query_outputs(learner, meta, key, task)
    features = encoder.apply(meta.params, rows)
    means = jnp.stack([features[0::2].mean(0), features[1::2].mean(0)])
    close(logits, -jnp.sum((features[:, None] - means) ** 2, axis=-1))

    model, loss = make(outputs=2), metajax.cross_entropy
    learner = metajax.maml(model, loss, rule=optax.sgd(0.1))
    meta = jax.jit(learner.init)(key, rows)
    stepped = jax.grad(lambda p: loss(model.apply(p, rows), batch))(meta.params)
    stepped = jax.tree.map(lambda p, g: p - 0.1 * g, meta.params, stepped)
    logits = metajax.objectives.query_outputs(learner, meta, key, task)
    close(logits, model.apply(stepped, rows))
    objective = metajax.query_objective(learner, loss)
    grads = jax.grad(lambda meta: objective(meta, key, task)[0])(meta)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_a_pretrained_encoder_adapts_by_its_head_or_by_low_rank_updates():
    model, rows, key = SENTENCE(outputs=2), jax.tree.map(jnp.asarray, tokens(4)), jax.random.key(1)
    batch, loss = Batch(rows, jnp.array([0, 1, 0, 1, 0, 1])), metajax.cross_entropy

    def adapted(learner):
        meta = jax.jit(learner.init)(key, rows)
        fast = learner.adapt(meta, learner.start(meta, key), key, batch)
        return meta, fast, learner.predict(meta, fast, rows)

    meta, fast, logits = adapted(metajax.anil(model, loss, rule=optax.sgd(0.1)))
    grads = jax.grad(lambda p: loss(model.apply(p, rows), batch))(meta.params)
    head = jax.tree.map(lambda p, g: p - 0.1 * g, meta.params["head"], grads["head"])
    close(logits, model.apply(meta.params | {"head": head}, rows))

    learner = metajax.learners.lora(model, loss, rule=optax.sgd(0.1), steps=2, rank=1)
    meta, fast, logits = adapted(learner)
    start = model.apply(meta.params["model"], rows)
    close(learner.predict(meta, learner.start(meta, key), rows), start)
    assert loss(logits, batch) < loss(start, batch)
    ups = jax.tree.leaves(fast.params["factors"]["up"])
    assert len(ups) > 4 and all(np.abs(up).max() > 0 for up in ups), (
        "every matrix of the encoder moves"
    )


@pytest.mark.parametrize(
    ("make", "inputs", "message"),
    [
        (lambda: word_attention(vocabulary=9, width=6, heads=4), None, "4 heads and 2 .* width 6"),
        (lambda: word_cnn(vocabulary=9, vectors=np.ones((3, 2))), text_ids(4), r"\(3, 2\).* 9 ids"),
        (lambda: fields_encoder(), table_rows(), "2 columns of categories and 0"),
        (lambda: fields_encoder(), {}, "neither numbers nor categories"),
        (lambda: cells_encoder(), table_rows(), "2 columns of categories and 0"),
        (lambda: cells_encoder(), {}, "neither numbers nor categories"),
        (SENTENCE, tokens(9), "9 tokens; the encoder takes 8"),
        (
            lambda: sentence_encoder(PRETRAINED, sizes=SIZES._replace(heads=4)),
            None,
            "4 heads do not divide tokens of 6",
        ),
    ],
)
def test_errors_name_the_value_and_the_limit(make, inputs, message):
    with pytest.raises(ValueError, match=message):
        make().init(jax.random.key(0), inputs)


def test_a_missing_array_of_a_file_is_named():
    arrays = bert_arrays()
    del arrays["encoder.layer.1.output.dense.bias"]
    with pytest.raises(ValueError, match=r"no array 'encoder\.layer\.1\.output\.dense\.bias'"):
        bert_params(arrays, SIZES)


def test_class_means_of_ngrams_find_the_class_of_a_text():
    from metajax.data.features import count_ngrams

    texts = ["my card is lost", "i lost a card", "send money abroad", "how to send money"]
    queries = count_ngrams(["lost card", "sending money"], size=512)
    encoder = ngram_encoder()
    learner = metajax.protonet(encoder, ways=2, distance="cosine")
    support = Batch(jnp.asarray(count_ngrams(texts, size=512)), jnp.array([0, 0, 1, 1]))
    meta = learner.init(jax.random.key(0), support.inputs)
    fast = learner.start(meta, jax.random.key(0), support)
    fast = learner.adapt(meta, fast, jax.random.key(0), support)
    features = encoder.apply(meta.params, support.inputs)
    close(class_means(fast)[0], features[:2].mean(0))
    assert learner.predict(meta, fast, jnp.asarray(queries)).argmax(1).tolist() == [0, 1]
