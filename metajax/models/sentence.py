"""Pre-trained encoders of sentences: BERT and its small descendants, such as all-MiniLM-L6-v2.

The parameters come from files that `metajax.data.features.sentences` reads. They are plain trees of arrays:
every learner can adapt all of them, the head alone, or low-rank factors.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from metajax import nn
from metajax.models import dense
from metajax.types import Array, Key, Model, Params

# The layers of a block: our name, and the name in the files of BERT. Linear layers come first.
_LINEAR = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "out": "attention.output.dense",
    "widen": "intermediate.dense",
    "narrow": "output.dense",
}
_NORMS = {"norm0": "attention.output.LayerNorm", "norm1": "output.LayerNorm"}
_TABLES = {
    "words": "word_embeddings",
    "places": "position_embeddings",
    "kinds": "token_type_embeddings",
}


class BertSizes(NamedTuple):
    """Sizes of a BERT encoder.

    Attributes:
      heads: Number of attention heads; divides the features of a token.
      depth: Number of blocks.
      epsilon: Number that is added to variances in layer norms.

    Example:
      >>> BertSizes(heads=12, depth=6).epsilon
      1e-12
    """

    heads: int
    depth: int
    epsilon: float = 1e-12


def bert_params(arrays: Mapping[str, Any], sizes: BertSizes) -> dict[str, Any]:
    """Sorts the arrays of a BERT file into the parameters of `sentence_encoder`.

    Args:
      arrays: Arrays by their names in the file, such as `encoder.layer.0.output.dense.weight`, with or
        without the prefix `bert.`. Kernels are [outputs, inputs].
      sizes: Sizes of the encoder.

    Returns:
      Tree of float32 arrays: `embedding` with tables `words` [V, E], `places` [P, E] and `kinds`, and its
      `norm`; and `block0`, `block1` and so on, whose kernels are [inputs, outputs].

    Raises:
      ValueError: If an array is missing.

    Example:
      >>> arrays = {f"embeddings.{name}.weight": np.ones((3, 4)) for name in _TABLES.values()}
      >>> arrays |= {f"embeddings.LayerNorm.{leaf}": np.ones(4) for leaf in ("weight", "bias")}
      >>> sorted(bert_params(arrays, BertSizes(heads=2, depth=0))["embedding"])
      ['kinds', 'norm', 'places', 'words']
    """
    arrays = {name.removeprefix("bert."): array for name, array in arrays.items()}

    def take(name: str) -> Array:
        if name not in arrays:
            raise ValueError(
                f"The file has no array {name!r} among {len(arrays)}; use weights of a BERT encoder that "
                "its config.json fits."
            )
        return jnp.asarray(arrays[name], jnp.float32)

    def norm(name: str) -> dict[str, Array]:
        return {"scale": take(f"{name}.weight"), "bias": take(f"{name}.bias")}

    def linear(name: str) -> dict[str, Array]:
        return {"kernel": take(f"{name}.weight").T, "bias": take(f"{name}.bias")}

    embedding: dict[str, Any] = {
        ours: take(f"embeddings.{theirs}.weight") for ours, theirs in _TABLES.items()
    }
    params: dict[str, Any] = {"embedding": embedding | {"norm": norm("embeddings.LayerNorm")}}
    for index in range(sizes.depth):
        prefix = f"encoder.layer.{index}"
        params[f"block{index}"] = {
            **{ours: linear(f"{prefix}.{theirs}") for ours, theirs in _LINEAR.items()},
            **{ours: norm(f"{prefix}.{theirs}") for ours, theirs in _NORMS.items()},
        }
    return params


def sentence_encoder(
    pretrained: Params,
    *,
    sizes: BertSizes,
    scaled: bool = True,
    outputs: int | None = None,
) -> Model:
    """Makes a BERT encoder that starts from pre-trained parameters: the mean over tokens, of length one.

    Args:
      pretrained: Parameters of `bert_params`, with which `init` starts.
      sizes: Sizes of the encoder.
      scaled: Whether features are scaled to length one, as all-MiniLM-L6-v2 does.
      outputs: Width of the layer `head`; None leaves it out.

    Returns:
      A model from a dict of `ids` [B, L] int and `mask` [B, L] bool of the tokens that count, to outputs
      [B, outputs], or to features [B, E].

    Raises:
      ValueError: If the heads do not divide the features of a token, or (from `init`) a text has more tokens
        than the encoder has places.

    Example:
      >>> tables = {name: jnp.ones((3, 4)) for name in ("words", "places", "kinds")}
      >>> norm = {"scale": jnp.ones(4), "bias": jnp.arange(4.0)}
      >>> model = sentence_encoder({"embedding": tables | {"norm": norm}}, sizes=BertSizes(2, depth=0))
      >>> tokens = {"ids": jnp.array([[1, 2, 0]]), "mask": jnp.array([[True, True, False]])}
      >>> model.apply(model.init(jax.random.key(0), tokens), tokens).shape
      (1, 4)

    Reference: Devlin et al., 2019 (https://arxiv.org/abs/1810.04805), section 3; Reimers and Gurevych, 2019
    (https://arxiv.org/abs/1908.10084), section 3.
    """
    places, width = pretrained["embedding"]["places"].shape
    if width % sizes.heads:
        raise ValueError(f"{sizes.heads} heads do not divide tokens of {width}; use a divisor.")

    def init(key: Key, inputs: dict[str, Array]) -> Params:
        length = inputs["ids"].shape[1]
        if length > places:
            raise ValueError(f"Texts have {length} tokens; the encoder takes {places}, cut them.")
        return pretrained | dense.init_layers(key, width, (), outputs)

    def apply(params: Params, inputs: dict[str, Array]) -> Array:
        ids, mask = inputs["ids"], inputs["mask"].astype(bool)
        chex.assert_rank(ids, 2)
        chex.assert_equal_shape([ids, mask])
        tokens = _embed(params["embedding"], ids, epsilon=sizes.epsilon)
        for index in range(sizes.depth):
            tokens = _apply_block(params[f"block{index}"], tokens, mask, sizes)
        counted = jnp.where(mask[..., None], tokens, 0)
        features = jnp.sum(counted, axis=1) / jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)
        return dense.apply_head(params, dense.unit(features) if scaled else features)

    return Model(init, apply)


def _embed(embedding: Params, ids: Array, *, epsilon: float) -> Array:
    """Adds up the vectors of tokens, of their places and of the first kind of segment; [B, L, E]."""
    tokens = embedding["words"][ids] + embedding["places"][: ids.shape[1]] + embedding["kinds"][0]
    return dense.apply_norm(embedding["norm"], tokens, epsilon=epsilon)


def _apply_block(block: Params, tokens: Array, mask: Array, sizes: BertSizes) -> Array:
    """Applies attention and a network of two layers, each with a shortcut and a norm after it."""
    queries, keys, values = (
        dense.apply_dense(block[name], tokens) for name in ("query", "key", "value")
    )
    attended = jax.vmap(lambda q, k, v, seen: nn.attend(q, k, v, heads=sizes.heads, seen=seen))(
        queries, keys, values, mask
    )
    tokens = tokens + dense.apply_dense(block["out"], attended)
    tokens = dense.apply_norm(block["norm0"], tokens, epsilon=sizes.epsilon)
    # BERT's own activation is the exact one; jax.nn.gelu approximates it by default.
    hidden = jax.nn.gelu(dense.apply_dense(block["widen"], tokens), approximate=False)
    tokens = tokens + dense.apply_dense(block["narrow"], hidden)
    return dense.apply_norm(block["norm1"], tokens, epsilon=sizes.epsilon)
