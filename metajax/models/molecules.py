"""Encoders of molecules: of counts of their fragments, and of their graphs.

Graphs are padded: atoms outside the mask, and their bonds, change no output.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp

from metajax.models import dense
from metajax.types import Array, Key, Model, Params

ELEMENTS = tuple("C N O F S Cl Br P I B Si Se Na K Li Ca Mg Zn Fe As".split())
"""Elements with a code of their own, from 2 on; 0 is no atom, 1 any other element."""

ATOM_CODES = (2 + len(ELEMENTS), 7, 5, 5, 7, 2, 7)
"""Numbers of codes of an atom's element, degree, charge, hydrogens, hybridization, aromaticity and ring."""

BOND_CODES = 5
"""Number of codes of a bond: none, single, double, triple, aromatic."""


def fingerprint_encoder(
    *,
    width: int = 512,
    depth: int = 2,
    root: bool = False,
    embedding: int | None = None,
    outputs: int | None = None,
) -> Model:
    """Encodes counts of fragments by a residual network of fully connected layers.

    Args:
      width: Features of a molecule.
      depth: Number of residual blocks: a layer norm, then a network of two layers.
      root: Whether counts enter as their square roots, as opposed to log(1 + count).
      embedding: Width E of a last layer, after a rectifier, for learners that compare features by their
        covariance; None leaves it out.
      outputs: Width of the layer `head`; None leaves it out.

    Returns:
      A model from counts [B, D], or a dict of `counts` [B, D] and standardized `descriptors` [B, P] float, to
      outputs [B, outputs], or to features [B, width], or [B, E].

    Example:
      >>> model = fingerprint_encoder(width=8, depth=1)
      >>> counts = jnp.ones((2, 16), jnp.uint8)
      >>> model.apply(model.init(jax.random.key(0), counts), counts).shape
      (2, 8)
    """

    def init(key: Key, inputs: Any) -> Params:
        enter_key, head_key, *keys = jax.random.split(key, 2 + depth)
        inputs = _named(inputs)
        params: dict[str, Any] = {"enter": dense.init_dense(enter_key, _width_of(inputs), width)}
        for index, key in enumerate(keys):
            params[f"block{index}"] = _init_block(key, width, width)
        params["norm"] = dense.init_norm(width)
        if embedding:
            head_key, embedding_key = jax.random.split(head_key)
            params["embedding"] = dense.init_dense(embedding_key, width, embedding)
        return params | dense.init_layers(head_key, embedding or width, (), outputs)

    def apply(params: Params, inputs: Any) -> Array:
        entering = _entering(_named(inputs), root=root, dtype=dense.dtype_of(params))
        features = dense.apply_dense(params["enter"], jnp.concatenate(entering, axis=-1))
        for index in range(depth):
            block = params[f"block{index}"]
            features = features + _apply_block(block, features)
        features = dense.apply_norm(params["norm"], features)
        if embedding:
            features = dense.apply_dense(params["embedding"], jax.nn.relu(features))
        return dense.apply_head(params, features)

    return Model(init, apply)


def molecule_network(
    *, width: int = 64, depth: int = 4, readout: int = 256, outputs: int | None = None
) -> Model:
    """Encodes graphs of molecules by messages along bonds.

    Each layer sends an atom the sum of its neighbors' vectors, multiplied by a matrix per kind of bond, and
    updates its vector by a residual network. The molecule is the mean and the maximum over its atoms and the
    logarithm of their number, then a network of two layers.

    Args:
      width: Features of an atom.
      depth: Number of layers of messages.
      readout: Features of a molecule.
      outputs: Width of the layer `head`; None leaves it out.

    Returns:
      A model from a dict of `atoms` [B, A, F] and `bonds` [B, A, A] int, and `mask` [B, A] bool, as
      `metajax.data.features.molecules.molecule_graphs` makes them, to outputs [B, outputs], or to features
      [B, readout]. If the dict has `counts` [B, D] or `descriptors` [B, P], as `fingerprint_encoder` takes
      them, they join the vector of the molecule.

    Example:
      >>> model = molecule_network(width=4, depth=1, readout=8)
      >>> graph = {"atoms": jnp.ones((2, 3, 7), jnp.int8), "bonds": jnp.ones((2, 3, 3), jnp.int8)}
      >>> graph["mask"] = jnp.ones((2, 3), bool)
      >>> model.apply(model.init(jax.random.key(0), graph), graph).shape
      (2, 8)

    Reference: Gilmer et al., 2017 (https://arxiv.org/abs/1704.01212), section 2; with fingerprints as in
    Stanley et al., 2021 (https://openreview.net/forum?id=701FtuyLlAd).
    """

    def init(key: Key, inputs: dict[str, Array]) -> Params:
        atom_key, first_key, last_key, head_key, *keys = jax.random.split(key, 4 + depth)
        table = jax.random.normal(atom_key, (sum(ATOM_CODES), width)) / len(ATOM_CODES) ** 0.5
        params: dict[str, Any] = {"atoms": {"table": table}}
        for index, key in enumerate(keys):
            message_key, block_key = jax.random.split(key)
            kernel = dense.init_dense(message_key, width, (BOND_CODES - 1) * width)["kernel"]
            block = _init_block(block_key, 2 * width, width)
            params[f"layer{index}"] = block | {"messages": {"kernel": kernel}}
        params["norm"] = dense.init_norm(2 * width + 1)
        joined = 2 * width + 1 + _width_of(inputs)
        params["first"] = dense.init_dense(first_key, joined, 2 * readout)
        params["last"] = dense.init_dense(last_key, 2 * readout, readout)
        return params | dense.init_layers(head_key, readout, (), outputs)

    def apply(params: Params, inputs: dict[str, Array]) -> Array:
        atoms, mask = _embed(params["atoms"]["table"], inputs)
        kinds = jax.nn.one_hot(inputs["bonds"], BOND_CODES, dtype=atoms.dtype, axis=1)[:, 1:]
        for index in range(depth):
            atoms = _pass_messages(params[f"layer{index}"], atoms, kinds, mask)
        count = jnp.sum(mask, axis=1)
        lowest = jnp.finfo(atoms.dtype).min
        largest = jnp.where(count > 0, jnp.max(jnp.where(mask, atoms, lowest), axis=1), 0)
        mean = jnp.sum(atoms, axis=1) / jnp.maximum(count, 1)
        molecule = [mean, largest, jnp.log1p(count.astype(atoms.dtype))]
        joined = [dense.apply_norm(params["norm"], jnp.concatenate(molecule, axis=-1))]
        joined += _entering(inputs, root=False, dtype=atoms.dtype)
        hidden = dense.apply_dense(params["first"], jnp.concatenate(joined, axis=-1))
        hidden = jax.nn.relu(hidden)
        return dense.apply_head(params, dense.apply_dense(params["last"], hidden))

    return Model(init, apply)


def _named(inputs: Any) -> dict[str, Array]:
    """Names the counts if they are all of the inputs."""
    return inputs if isinstance(inputs, dict) else {"counts": inputs}


def _width_of(inputs: dict[str, Array]) -> int:
    """Adds up the columns of counts and descriptors."""
    return sum(inputs[name].shape[1] for name in ("counts", "descriptors") if name in inputs)


def _entering(inputs: dict[str, Array], *, root: bool, dtype: Any) -> list[Array]:
    """Scales counts [B, D], and lists them and the descriptors [B, P] as far as there are any."""
    found = []
    if "counts" in inputs:
        counts = inputs["counts"]
        chex.assert_rank(counts, 2)
        found.append(dense.roots(counts, dtype) if root else jnp.log1p(counts.astype(dtype)))
    if "descriptors" in inputs:
        chex.assert_rank(inputs["descriptors"], 2)
        found.append(inputs["descriptors"].astype(dtype))
    return found


def _init_block(key: Key, before: int, after: int) -> dict[str, Any]:
    """Draws a layer norm and a network of two layers."""
    widen_key, narrow_key = jax.random.split(key)
    return {
        "norm": dense.init_norm(before),
        "widen": dense.init_dense(widen_key, before, 2 * after),
        "narrow": dense.init_dense(narrow_key, 2 * after, after),
    }


def _apply_block(block: Params, inputs: Array) -> Array:
    """Applies the norm and the network of two layers."""
    normed = dense.apply_norm(block["norm"], inputs)
    return dense.apply_dense(
        block["narrow"], jax.nn.relu(dense.apply_dense(block["widen"], normed))
    )


def _embed(table: Array, inputs: dict[str, Array]) -> tuple[Array, Array]:
    """Adds up the vectors of an atom's codes, [B, A, E]; returns them and the mask [B, A, 1]."""
    codes, mask = inputs["atoms"], inputs["mask"]
    chex.assert_shape(codes, (*mask.shape, len(ATOM_CODES)))
    chex.assert_shape(inputs["bonds"], (*mask.shape, mask.shape[1]))
    # One table of all codes, in which each feature's codes follow the previous one's.
    limits = jnp.array(ATOM_CODES)
    vectors = table[codes.astype(jnp.int32) + jnp.cumsum(limits) - limits]
    mask = mask[..., None]
    return jnp.where(mask, jnp.sum(vectors, axis=2), 0), mask


def _pass_messages(layer: Params, atoms: Array, kinds: Array, mask: Array) -> Array:
    """Updates atoms [B, A, E] by their neighbors' messages along each kind of bond [B, T, A, A]."""
    sent = (atoms @ layer["messages"]["kernel"]).reshape(*atoms.shape[:2], kinds.shape[1], -1)
    received = jnp.einsum("btij,bjte->bie", kinds, sent)
    update = _apply_block(layer, jnp.concatenate([atoms, received], axis=-1))
    return jnp.where(mask, atoms + update, 0)
