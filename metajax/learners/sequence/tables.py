"""In-context learning of tables: a transformer whose cells attend to their row and to their column.

Letters: `C` support rows of the buffer, `B` rows, `D` columns, `E` numbers per token. A row has D + 1 tokens:
one for each cell and one for its class.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from metajax import nn
from metajax.learners.sequence.transformer import layer_norm
from metajax.learners.states import (
    Examples,
    Kept,
    check_ways,
    counts_of,
    exact,
    features_by,
    init_encoder,
    keeping,
    labels_of,
    mask_absent,
)
from metajax.types import Array, Key, Learner, Model, Params, Tree


class TableBlock(NamedTuple):
    """Parameters of a layer: attention within rows, attention within columns, and an MLP, each after a norm.

    Attributes:
      in_row: Weights [3, E, E] of queries, keys and values among the cells of a row.
      row_out: Output weights [E, E] of that attention.
      in_column: Weights [3, E, E] of queries, keys and values among the rows of a column.
      column_out: Output weights [E, E] of that attention.
      widen: Weights [E, 2 E] of the first MLP layer.
      narrow: Weights [2 E, E] of the second MLP layer.
      norms: Scale and bias [3, 2, E] of the three norms.
    """

    in_row: Array
    row_out: Array
    in_column: Array
    column_out: Array
    widen: Array
    narrow: Array
    norms: Array


class TableMeta(NamedTuple):
    """Meta-parameters of the in-context learner of tables.

    Attributes:
      encoder: Parameters of the encoder.
      cell: Weights [4, E] from a cell's standardized value, its rank, whether it is missing, and one, to its
        token.
      labels: Tokens [M + 1, E] of the classes, most frequent first; the last row marks a query. They are
        added to the cells of a row too.
      blocks: Parameters of all layers, every leaf [layers, ...].
      norm: Scale and bias [2, E] of the norm before the head.
      head: Weights [E, M] of the output layer.
    """

    encoder: Params
    cell: Array
    labels: Array
    blocks: TableBlock
    norm: Array
    head: Array


class Columns(NamedTuple):
    """Statistics of the columns over the support rows.

    Attributes:
      mean: Mean of the cells that are not missing, [D].
      deviation: Their standard deviation, [D].
      seen: Whether a column counts, [D] bool: it has two different cells in the support set.
    """

    mean: Array
    deviation: Array
    seen: Array


def in_context_tables(
    encoder: Model,
    *,
    ways: int,
    most_ways: int = 10,
    width: int = 64,
    layers: int = 3,
    heads: int = 4,
) -> Learner[TableMeta, Kept]:
    """Learns tables in context: cells attend to their row, and to their column in the support rows.

    Features are the cells of a row, and a NaN is a missing cell. Columns are standardized by the support set,
    and one without two different cells there is left out, so that tables of fewer columns are padded with
    NaN. No cell knows the place of its row or of its column, so the order of either does not matter. Classes
    are numbered by their frequency in the support set, so that names of classes do not matter either.
    The same meta-parameters serve tables of any columns and of up to `most_ways` classes. Trained on
    made-up tables (`episodes.CausalTableSampler`), it is a prior-fitted network.

    Args:
      encoder: Network without a head, with features [B, D]; `models.cells_encoder` for rows of a table.
      ways: Number of classes N.
      most_ways: Largest number M of classes that the meta-parameters serve.
      width: Number of values E per token, a multiple of `heads`.
      layers: Number of transformer layers.
      heads: Number of attention heads.

    Returns:
      A learner with meta-parameters `TableMeta` and fast state `Kept`, whose `made` are the statistics of the
      columns and the keys and values of the support rows. Adapting again encodes all rows again, so adapting
      piece by piece equals adapting to the whole.

    Raises:
      ValueError: If `heads` does not divide `width`, or `ways` is below 2 or above `most_ways`.

    Example:
      >>> task = metajax.toys.toy_episode(jax.random.key(0), ways=3)
      >>> learner = in_context_tables(metajax.toys.toy_model(None), ways=3, width=8, layers=2, heads=2)
      >>> meta = jax.eval_shape(learner.init, jax.random.key(1), task.support.inputs)
      >>> answer = lambda meta: metajax.objectives.query_outputs(learner, meta, jax.random.key(2), task)
      >>> jax.eval_shape(answer, meta).shape
      (12, 3)

    Reference: Hollmann et al., 2023 (https://arxiv.org/abs/2207.01848); cells as tokens, Hollmann et al.,
    2025 (https://doi.org/10.1038/s41586-024-08328-6); Pfefferle et al., 2025
    (https://arxiv.org/abs/2511.03634).
    """
    check_ways(ways, 1)
    if ways > most_ways:
        raise ValueError(
            f"ways is {ways}, and the learner has {most_ways}; use a larger most_ways."
        )
    if width % heads:
        raise ValueError(f"{heads} heads do not divide a width of {width}; use a divisor.")
    encoder = exact(encoder)
    features_of = features_by(encoder, "encoder")
    attend = functools.partial(nn.attend, heads=heads)

    def init(key: Key, inputs: Tree) -> TableMeta:
        encoder_key, cell_key, label_key, block_key, head_key = jax.random.split(key, 5)
        params, _, dtype = init_encoder(encoder, encoder_key, inputs)
        glorot = jax.nn.initializers.glorot_uniform()
        return TableMeta(
            params,
            jax.random.normal(cell_key, (4, width), dtype),
            jax.random.normal(label_key, (most_ways + 1, width), dtype),
            _init_blocks(block_key, layers, width, dtype),
            jnp.stack([jnp.ones(width, dtype), jnp.zeros(width, dtype)]),
            glorot(head_key, (width, most_ways), dtype),
        )

    def within_rows(block: TableBlock, tokens: Array, seen: Array, asking: Array) -> Array:
        """Adds what tokens [B, A, E] find in the tokens of their rows [B, D + 1, E]."""
        queries = layer_norm(asking, block.norms[0]) @ block.in_row[0]
        keys, values = layer_norm(tokens, block.norms[0])[None] @ block.in_row[1:, None]
        found = jax.vmap(lambda q, k, v: attend(q, k, v, seen=seen))(queries, keys, values)
        return asking + found @ block.row_out

    def within_columns(
        block: TableBlock, tokens: Array, memory: tuple[Array, Array], seen: Array
    ) -> Array:
        """Adds what tokens [B, A, E] find in the support rows of their columns, and the MLP's output."""
        queries = layer_norm(tokens, block.norms[1]) @ block.in_column[0]
        one = jax.vmap(lambda q, k, v: attend(q, k, v, seen=seen), in_axes=1, out_axes=1)
        tokens = tokens + one(queries, *memory) @ block.column_out
        hidden = jax.nn.gelu(layer_norm(tokens, block.norms[2]) @ block.widen)
        return tokens + hidden @ block.narrow

    def remembered(block: TableBlock, tokens: Array) -> tuple[Array, Array]:
        """Computes the keys and values [C, A, E] of support rows."""
        keys, values = layer_norm(tokens, block.norms[1])[None] @ block.in_column[1:, None]
        return keys, values

    def encode(meta: TableMeta, key: Key, examples: Examples) -> Tree:
        del key
        columns = column_statistics(examples)
        members = labels_of(examples, ways, examples.features.dtype)
        numbers = _numbers_of_classes(columns, examples, members)
        labels = members @ meta.labels[numbers]
        tokens = _tokens(meta, columns, examples, examples.features, labels)
        rows, cells = examples.weights > 0, jnp.append(columns.seen, True)

        def layer(tokens: Array, block: TableBlock) -> tuple[Array, tuple[Array, Array]]:
            tokens = within_rows(block, tokens, cells, tokens)
            memory = remembered(block, tokens)
            return within_columns(block, tokens, memory, rows), memory

        first, last = _last_apart(meta.blocks)
        tokens, memories = jax.lax.scan(layer, tokens, first)
        # Behind the last attention within rows, nothing reads other tokens than the class tokens.
        tokens = within_rows(last, tokens, cells, tokens[:, -1:])
        return columns, numbers, memories, remembered(last, tokens)

    def predict(meta: TableMeta, fast: Kept, inputs: Tree) -> Array:
        examples, (columns, numbers, memories, last_memory) = fast
        features = features_of(meta, inputs)
        tokens = _tokens(meta, columns, examples, features, meta.labels[-1])
        rows, cells = examples.weights > 0, jnp.append(columns.seen, True)

        def layer(tokens: Array, step: tuple) -> tuple[Array, None]:
            block, memory = step
            tokens = within_rows(block, tokens, cells, tokens)
            return within_columns(block, tokens, memory, rows), None

        first, last = _last_apart(meta.blocks)
        tokens, _ = jax.lax.scan(layer, tokens, (first, memories))
        asked = within_rows(last, tokens, cells, tokens[:, -1:])
        asked = within_columns(last, asked, last_memory, rows)[:, 0]
        logits = layer_norm(asked, meta.norm) @ meta.head[:, numbers]
        return mask_absent(logits, counts_of(examples, ways))

    return Learner(init, *keeping(features_of, ways, encode), predict)


def column_statistics(examples: Examples) -> Columns:
    """Computes the mean and the deviation of each column over the support rows.

    Args:
      examples: Buffer of cells [C, D] with weights; NaN marks a missing cell.

    Returns:
      Statistics of the D columns.

    Example:
      >>> cells = jnp.array([[1.0, 5.0], [3.0, jnp.nan]])
      >>> columns = column_statistics(metajax.learners.states.Examples(cells, None, jnp.ones(2)))
      >>> columns.mean.tolist(), columns.seen.tolist()
      ([2.0, 5.0], [True, False])
    """
    cells, known = examples.features, ~jnp.isnan(examples.features)
    weights = jnp.where(known, examples.weights[:, None], 0)
    total = jnp.maximum(weights.sum(0), jnp.finfo(cells.dtype).tiny)
    filled = jnp.where(known, cells, 0)
    mean = (weights * filled).sum(0) / total
    variance = (weights * jnp.square(filled - mean)).sum(0) / total
    counted = weights > 0
    least = jnp.where(counted, filled, jnp.inf).min(0)
    most = jnp.where(counted, filled, -jnp.inf).max(0)
    seen = least < most
    # The derivative of a root at zero is infinite; columns that do not count get a deviation of one.
    return Columns(mean, jnp.sqrt(jnp.where(seen & (variance > 0), variance, 1)), seen)


def _tokens(
    meta: TableMeta, columns: Columns, examples: Examples, cells: Array, labels: Array
) -> Array:
    """Makes the tokens [B, D + 1, E] of rows from cells [B, D] and the tokens of labels, [B, E] or [E].

    Every cell has its row's label added: attention within a column finds the labels of similar cells at once,
    where cells would first have to learn to look their label up.
    """
    missing = jnp.isnan(cells) | ~columns.seen
    values = _standardized(columns, cells)
    ranks = jnp.where(missing, 0, _ranks(examples, cells))
    parts = jnp.stack([values, ranks, missing.astype(cells.dtype), jnp.ones_like(values)], axis=-1)
    labels = jnp.broadcast_to(labels, (len(cells), labels.shape[-1]))[:, None]
    return jnp.concatenate([parts @ meta.cell + labels, labels], axis=1)


def _ranks(examples: Examples, cells: Array) -> Array:
    """Computes the share of support cells below a cell less that above it, [B, D] in [-1, 1]."""
    support = examples.features
    weights = jnp.where(jnp.isnan(support), 0, examples.weights[:, None])
    # Comparisons with NaN are false.
    signs = jnp.sign(cells[:, None] - support)
    signs = jnp.where(jnp.isnan(signs), 0, signs)
    total = jnp.maximum(weights.sum(0), jnp.finfo(weights.dtype).tiny)
    return jax.lax.stop_gradient(jnp.einsum("bcd,cd->bd", signs, weights) / total)


def _standardized(columns: Columns, cells: Array) -> Array:
    """Standardizes cells [B, D]; a missing one, and one of a column that does not count, is zero."""
    known = ~jnp.isnan(cells) & columns.seen
    values = (jnp.where(known, cells, columns.mean) - columns.mean) / columns.deviation
    # Tails beyond a few deviations would drown the other cells of a row.
    return 4 * jnp.tanh(values / 4)


def _numbers_of_classes(columns: Columns, examples: Examples, members: Array) -> Array:
    """Numbers classes from 0 by what does not depend on their names, [N] int.

    The first has the largest total weight. Classes of equal weight are sorted by the sum of their cells.

    Args:
      columns: Statistics of the columns.
      examples: Buffer of cells [C, D] with weights.
      members: One-hot labels [C, N].
    """
    weighted = members.T * examples.weights
    sums = (weighted @ _standardized(columns, examples.features)).sum(1)
    return jnp.argsort(jnp.lexsort((sums, -weighted.sum(1))))


def _last_apart(blocks: TableBlock) -> tuple[TableBlock, TableBlock]:
    """Divides the layers into all but the last, and the last."""
    return jax.tree.map(lambda leaf: leaf[:-1], blocks), jax.tree.map(lambda leaf: leaf[-1], blocks)


def _init_blocks(key: Key, layers: int, width: int, dtype: jnp.dtype) -> TableBlock:
    """Draws the parameters of layers, every leaf [layers, ...]; keys start as queries."""
    glorot = jax.nn.initializers.glorot_uniform()
    norm = jnp.stack([jnp.ones(width, dtype), jnp.zeros(width, dtype)])

    def block(key: Key) -> TableBlock:
        square, wide = (width, width), (width, 2 * width)
        shapes = *[square] * 6, wide, wide[::-1]
        keys = jax.random.split(key, len(shapes))
        drawn = [glorot(k, shape, dtype) for k, shape in zip(keys, shapes, strict=True)]
        row, row_value, row_out, column, column_value, column_out, widen, narrow = drawn
        return TableBlock(
            jnp.stack([row, row, row_value]),
            row_out,
            jnp.stack([column, column, column_value]),
            column_out,
            widen,
            narrow,
            jnp.stack([norm] * 3),
        )

    return jax.vmap(block)(jax.random.split(key, layers))
