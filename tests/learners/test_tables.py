"""The in-context learner of tables against a computation cell by cell, and what may not change its answer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metajax
from metajax import learners
from metajax.models import cells_encoder
from metajax.objectives import query_outputs
from metajax.types import Batch, Episode

ROWS, QUERIES, COLUMNS, WAYS, WIDTH, HEADS = 9, 4, 3, 3, 4, 2
KEY = jax.random.key(0)


def made(ways=WAYS):
    return learners.in_context_tables(
        cells_encoder(), ways=ways, most_ways=4, width=WIDTH, layers=2, heads=HEADS
    )


@pytest.fixture
def table(float64):
    """Cells of which some are missing, labels of which no two classes have equally many, and parameters."""
    rng = np.random.default_rng(0)
    cells = rng.normal(size=(ROWS + QUERIES, COLUMNS)) * [1, 30, 0.1] + [5, 0, 0]
    cells[[1, 5, 10], [0, 2, 1]] = np.nan
    cells[4, 1] = cells[2, 1]  # a tie of ranks
    labels = np.array([0, 1, 1, 2, 2, 2, 1, 2, 2, 0, 1, 2, 0])
    meta = made().init(jax.random.key(1), jnp.asarray(cells))
    noise = jax.random.key(2)
    meta = jax.tree.map(
        lambda leaf: leaf.astype(jnp.float64) + 0.3 * jax.random.normal(noise, leaf.shape), meta
    )
    return meta, cells, labels


@functools.partial(jax.jit, static_argnums=0)
def outputs_of(ways, meta, episode):
    return query_outputs(made(ways), meta, KEY, episode)


def answer(meta, cells, labels, *, ways=WAYS, rows=ROWS, weights=None):
    support = Batch(jnp.asarray(cells[:rows]), jnp.asarray(labels[:rows]), weights)
    query = Batch(jnp.asarray(cells[rows:]), jnp.asarray(labels[rows:]))
    return np.asarray(outputs_of(ways, meta, Episode(support, query)))


def norm(x, scale_and_bias):
    centered = x - x.mean()
    return centered / np.sqrt((centered**2).mean() + 1e-5) * scale_and_bias[0] + scale_and_bias[1]


def attended(query, keys, values):
    """What one token finds in a list of others, head by head."""
    found = []
    for part in np.split(np.arange(WIDTH), HEADS):
        scores = np.array([query[part] @ key[part] / np.sqrt(WIDTH / HEADS) for key in keys])
        shares = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
        found.append(sum(s * value[part] for s, value in zip(shares, values, strict=True)))
    return np.concatenate(found)


def cell_by_cell(meta, cells, labels):
    """The whole table at once, one token after another; every row attends to the support rows."""
    meta = jax.tree.map(np.asarray, meta)
    names = np.argsort(np.argsort(-np.bincount(labels[:ROWS], minlength=WAYS), kind="stable"))
    tokens = np.zeros((ROWS + QUERIES, COLUMNS + 1, WIDTH))
    for i in range(ROWS + QUERIES):
        tokens[i] = meta.labels[names[labels[i]]] if i < ROWS else meta.labels[-1]
    for i, j in np.ndindex(ROWS + QUERIES, COLUMNS):
        own = cells[:ROWS, j][~np.isnan(cells[:ROWS, j])]
        x = cells[i, j]
        z = 4 * np.tanh((x - own.mean()) / own.std() / 4)
        rank = ((own < x).sum() - (own > x).sum()) / len(own)
        parts = [0, 0, 1, 1] if np.isnan(x) else [z, rank, 0, 1]
        tokens[i, j] += np.array(parts) @ meta.cell
    for layer in range(2):
        block = jax.tree.map(lambda leaf, layer=layer: leaf[layer], meta.blocks)
        for way, weights, out in ((0, "in_row", "row_out"), (1, "in_column", "column_out")):
            normed = np.apply_along_axis(norm, -1, tokens, block.norms[way])
            queries, keys, values = (normed @ weight for weight in getattr(block, weights))
            moved = tokens.copy()
            for i, j in np.ndindex(tokens.shape[:2]):
                seen = (i, slice(None)) if way == 0 else (slice(ROWS), j)
                moved[i, j] += attended(queries[i, j], keys[seen], values[seen]) @ getattr(
                    block, out
                )
            tokens = moved
        normed = np.apply_along_axis(norm, -1, tokens, block.norms[2])
        tokens = tokens + np.asarray(jax.nn.gelu(normed @ block.widen)) @ block.narrow
    ends = np.apply_along_axis(norm, -1, tokens[ROWS:, -1], meta.norm)
    return ends @ meta.head[:, names]


def test_it_equals_attention_cell_by_cell(table):
    np.testing.assert_allclose(answer(*table), cell_by_cell(*table), rtol=1e-9)


def test_what_does_not_matter_does_not_change_the_answer(table):
    meta, cells, labels = table
    expected = answer(meta, cells, labels)

    def same(cells, labels=labels, **options):
        np.testing.assert_allclose(answer(meta, cells, labels, **options), expected, rtol=1e-9)

    same(cells[:, [2, 0, 1]])  # the order of columns
    order = [*np.random.default_rng(1).permutation(ROWS), *range(ROWS, ROWS + QUERIES)]
    same(cells[order], labels[order])  # the order of support rows
    same(cells * [3, 0.1, 7] + [1, 2, 0])  # units
    one = np.full((len(cells), 1), 7.0)  # a constant column, and a missing one
    same(np.concatenate([cells, one, one * np.nan], axis=1))
    padding = np.full((2, COLUMNS), 1e3)  # rows of weight zero
    padded = np.concatenate([padding, cells])
    weights = jnp.array([0.0] * 2 + [1.0] * ROWS)
    same(padded, np.concatenate([[0, 1], labels]), rows=ROWS + 2, weights=weights)


@pytest.mark.parametrize("tied", [False, True])
def test_names_of_classes_move_the_answer_with_them(table, tied):
    meta, cells, labels = table
    labels = np.arange(len(labels)) % WAYS if tied else labels
    names = np.array([2, 0, 1])
    moved = answer(meta, cells, names[labels])
    np.testing.assert_allclose(moved[:, names], answer(meta, cells, labels), rtol=1e-9)


def test_the_same_parameters_serve_other_numbers_of_classes(table):
    meta, cells, labels = table
    more = answer(meta, cells, labels, ways=4)
    np.testing.assert_allclose(more[:, :WAYS], answer(meta, cells, labels), rtol=1e-9)
    assert (more[:, WAYS] < -1e8).all()  # a class without examples


def test_derivatives_are_exact_where_cells_are_missing(table):
    meta, cells, labels = table
    direction = jax.tree.map(lambda leaf: jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), meta)
    support, query = (
        Batch(jnp.asarray(cells[part]), jnp.asarray(labels[part]))
        for part in (slice(ROWS), slice(ROWS, None))
    )
    objective = metajax.query_objective(made(), metajax.cross_entropy)

    @jax.jit
    def loss(step):
        moved = jax.tree.map(lambda leaf, way: leaf + step * way, meta, direction)
        return objective(moved, KEY, Episode(support, query))[0]

    slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
    np.testing.assert_allclose(jax.grad(loss)(0.0), slope, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ways": 5}, "ways is 5, and the learner has 4; use a larger most_ways"),
        ({"ways": 1}, "ways is 1; use 2 or more"),
        ({"ways": 3, "width": 6}, "4 heads do not divide a width of 6"),
    ],
)
def test_errors_name_the_value_and_the_remedy(options, message):
    with pytest.raises(ValueError, match=message):
        learners.in_context_tables(cells_encoder(), most_ways=4, **options)
