"""Made-up tables: pure functions of a key, ragged under one shape, from which something can be learned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax import baselines
from metajax.episodes import CausalTableSampler
from metajax.metrics import auroc
from metajax.train import draw_tasks
from metajax.types import Batch

SAMPLER = CausalTableSampler(support=32, queries=16, columns=6, ways=4, nodes=8)
TASKS = 400


@pytest.fixture(scope="module")
def drawn():
    """Tables, and their episodes by the same keys."""

    def both(data, key):
        return SAMPLER.identify(data, key), SAMPLER(data, key)

    draw = jax.jit(lambda key: draw_tasks(both, None, key, 0, np.arange(TASKS))[1])
    return draw, jax.tree.map(np.asarray, draw(jax.random.key(0)))


def test_a_key_determines_the_table_and_another_key_another(drawn):
    draw, found = drawn
    again, other = draw(jax.random.key(0)), draw(jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, again, found)
    assert all(
        not np.array_equal(new, old, equal_nan=True)
        for new, old in zip(other[0].cells, found[0].cells, strict=True)
    )


def test_sizes_vary_under_one_shape(drawn):
    table, episode = drawn[1]
    columns, ways, support = table.columns, table.ways, table.support
    assert set(columns) == {2, 3, 4, 5, 6} and set(ways) == {2, 3, 4}
    assert 0.4 < (ways == 2).mean() < 0.6
    assert support.min() >= 8 and 0.4 < (support == 32).mean() < 0.65
    unused = np.arange(6) >= columns[:, None]
    assert np.isnan(table.cells).all(1)[unused].all()
    missing = np.isnan(table.cells).mean(1)[~unused]
    assert 0.1 < (missing > 0).mean() < 0.3 and missing.max() < 0.5
    assert not np.isinf(table.cells).any()
    assert (table.labels < ways[:, None]).all() and (table.labels >= 0).all()
    # Each name is the most frequent class of some two-class table: names tell nothing.
    shares = table.labels[ways == 2].mean(1)
    assert 0.4 < (shares > 0.5).mean() < 0.6
    np.testing.assert_array_equal(episode.support.weights.sum(1), support)
    np.testing.assert_array_equal(episode.support.inputs, table.cells[:, :32])
    np.testing.assert_array_equal(episode.query.targets, table.labels[:, 32:])


def test_queries_of_a_class_without_support_have_weight_zero(drawn):
    episode = drawn[1][1]
    for place in range(TASKS):
        seen = set(episode.support.targets[place][episode.support.weights[place] > 0])
        expected = [float(label in seen) for label in episode.query.targets[place]]
        np.testing.assert_array_equal(episode.query.weights[place], expected)


def test_columns_are_numbers_and_categories(drawn):
    cells = drawn[1][0].cells
    different = np.array([len(np.unique(c[~np.isnan(c)])) for t in cells for c in t.T])
    different = different[different > 0]
    assert 0.25 < (different <= 8).mean() < 0.42  # a third, by the cuts' own distribution
    # Categories are codes from 0 to 7, whatever the order of the values they were cut from.
    few = [c for t in cells for c in t.T if 2 < len(np.unique(c[~np.isnan(c)])) <= 8]
    assert all(set(c[~np.isnan(c)]) <= set(range(8)) for c in few)


def test_classes_can_be_learned_from_columns(drawn):
    # Of two-class tables with all support rows: logistic regression ranks most, but not all, of the queries.
    table, episode = drawn[1]
    kept = (table.ways == 2) & (table.support == 32)
    support, query = jax.tree.map(lambda leaf: jnp.asarray(leaf[kept]), episode)

    @jax.jit
    @jax.vmap
    def area(support, query):
        known = ~jnp.isnan(support.inputs)
        filled = jnp.where(known, support.inputs, 0)
        mean = filled.sum(0) / jnp.maximum(known.sum(0), 1)
        spread = jnp.sqrt((jnp.square(filled - mean) * known).mean(0)) + 1e-6

        def scaled(cells):
            return jnp.nan_to_num(jnp.clip((cells - mean) / spread, -4, 4))

        own = Batch(scaled(support.inputs), support.targets)
        outputs = baselines.logistic_regression(ways=2)(own, scaled(query.inputs))
        return auroc()(outputs, query)

    found = area(support, query)
    found = found[~jnp.isnan(found)]
    assert len(found) > 50
    assert 0.65 < found.mean() < 0.85 and 0.15 < (found > 0.9).mean() < 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"support": 7}, "support is 7; use 8 or more"),
        ({"columns": 1}, "columns is 1; use 2 or more"),
        ({"ways": 1}, "ways is 1; use 2 or more"),
        ({"nodes": 9}, "nodes is 9; use 10 or more"),
        ({"queries": 0}, "queries is 0"),
    ],
)
def test_sizes_that_are_too_small_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CausalTableSampler(**options)
