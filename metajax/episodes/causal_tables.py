"""Made-up tables: random structural causal models, whose nodes are columns and whose classes are thresholds.

A table is a pure function of a random key, drawn on the device. Letters: `R` rows, `U` root causes, `H` nodes
of a layer, `D` columns, `N` classes.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metajax.episodes.group_sampler import check_positive
from metajax.types import Array, Batch, Episode, Key

LAYERS = 3
"""Layers of nodes behind the root causes."""
LEVELS = 8
"""Largest number of categories of a column."""
LEAST_SUPPORT = 8
"""Smallest number of support rows of a table."""

_FUNCTIONS: tuple[Callable[[Array], Array], ...] = (
    jnp.tanh,
    jax.nn.relu,
    jnp.abs,
    jnp.square,
    lambda x: jnp.sin(2 * x),
    lambda x: jnp.exp(-jnp.square(x)),
    jnp.sign,
)


class MadeTable(NamedTuple):
    """A made-up table.

    Attributes:
      cells: Cells [R, D] float32; NaN where a cell is missing, and in unused columns.
      labels: Classes [R] int32 in [0, N).
      columns: Number of columns in use, an int32 scalar.
      ways: Number of classes in use, an int32 scalar.
      support: Number of support rows in use, an int32 scalar.
    """

    cells: Array
    labels: Array
    columns: Array
    ways: Array
    support: Array


@dataclasses.dataclass(frozen=True)
class CausalTableSampler:
    """Draws tables of random structural causal models; call it as `sampler(data, key) -> Episode`.

    Root causes are Gaussian, uniform, heavy-tailed or clustered. Each node of three layers is a function of
    the layer before it and of the causes: an activation of a sparse weighted sum, or a small decision tree,
    plus noise. Columns are the root causes, or nodes of any layer: causes, effects and mere companions of the
    target. A noisy node of a random layer, cut at random thresholds, gives classes; in half of the tables of
    more than two classes, each class has a node of its own and the largest wins. Columns may be bent, cut
    into categories with shuffled codes, or have missing cells.

    Columns, classes and support rows vary from table to table under one static shape: unused columns are NaN,
    unused support rows have weight zero, and so have queries of a class that no support row has. The tables
    need no data: `data` is ignored, and stands there so that all samplers are called alike.

    Attributes:
      support: Largest number of support rows K; half of the tables have all of them, others from 8 on.
      queries: Number of query rows Q.
      columns: Largest number of columns D; tables have two or more.
      ways: Largest number of classes N; half of the tables have two, others mostly few.
      nodes: Number of nodes of a layer, N or more.

    Example:
      >>> sampler = CausalTableSampler(support=32, queries=16, columns=10, ways=5)
      >>> episode = jax.eval_shape(sampler, None, jax.random.key(0))
      >>> episode.support.inputs.shape, episode.query.targets.shape
      ((32, 10), (16,))

    Reference: Hollmann et al., 2023 (https://arxiv.org/abs/2207.01848), section 4 and appendix C.
    """

    support: int = 64
    queries: int = 32
    columns: int = 16
    ways: int = 10
    nodes: int = 16

    def __post_init__(self):
        check_positive(self, "support", "queries", "columns", "ways", "nodes")
        least = {"support": LEAST_SUPPORT, "columns": 2, "ways": 2, "nodes": self.ways}
        for name, number in least.items():
            if getattr(self, name) < number:
                raise ValueError(f"{name} is {getattr(self, name)}; use {number} or more.")

    def identify(self, data: Any, key: Key) -> MadeTable:
        """Draws the table of a key.

        Args:
          data: Any value; ignored.
          key: Random key, consumed.

        Returns:
          The table of K + Q rows.
        """
        del data
        sizes_key, nodes_key, choice_key, look_key, labels_key = jax.random.split(key, 5)
        sizes = self._sizes(sizes_key)
        roots, layers = self._nodes(nodes_key, sizes.causes)
        mixed = _choose_columns(choice_key, roots, layers, sizes)
        cells = _with_looks(look_key, jnp.where(sizes.from_causes, roots, mixed))
        cells = jnp.where(jnp.arange(self.columns) < sizes.columns, cells, jnp.nan)
        labels = _labels(labels_key, layers[sizes.layer][:, : self.ways], sizes.ways)
        return MadeTable(cells, labels, sizes.columns, sizes.ways, sizes.support)

    def __call__(self, data: Any, key: Key) -> Episode:
        """Draws one episode.

        Args:
          data: Any value; ignored.
          key: Random key, consumed.

        Returns:
          An episode with cells [K, D] and labels [K] in the support set and [Q, D] and [Q] in the query set,
          both with weights.
        """
        table, size = self.identify(data, key), self.support
        seen = (jnp.arange(size) < table.support).astype(jnp.float32)
        known = jnp.zeros(self.ways).at[table.labels[:size]].add(seen)
        asked = (known[table.labels[size:]] > 0).astype(jnp.float32)
        return Episode(
            Batch(table.cells[:size], table.labels[:size], seen),
            Batch(table.cells[size:], table.labels[size:], asked),
        )

    def _sizes(self, key: Key) -> "_Sizes":
        """Draws the sizes of a table."""
        (u,) = _drawn(jax.random.uniform, key, (8,))
        columns, from_causes = _integer(u[0], 2, self.columns), u[1] < 0.5
        # Squares: few classes, few causes and a shallow target, the simple tables, are more likely.
        return _Sizes(
            columns=columns,
            ways=jnp.where(u[2] < 0.5, _integer(u[3] ** 2, min(3, self.ways), self.ways), 2),
            support=jnp.where(
                u[4] < 0.5, self.support, _integer(u[5], LEAST_SUPPORT, self.support)
            ),
            causes=jnp.where(from_causes, columns, _integer(u[6] ** 2, 1, self.columns)),
            layer=_integer(u[7] ** 2, 0, LAYERS - 1),
            from_causes=from_causes,
        )

    def _nodes(self, key: Key, causes: Array) -> tuple[Array, Array]:
        """Draws a model and its values: root causes [R, U], and the nodes of all layers [LAYERS, R, H]."""
        roots_key, style_key, layers_key = jax.random.split(key, 3)
        (style,) = _drawn(jax.random.uniform, style_key, (3,))
        roots = _roots(roots_key, self.support + self.queries, self.columns)
        roots = jnp.where(jnp.arange(self.columns) < causes, roots, 0)
        kinds = _Kinds(_log_between(style[0], 0.01, 0.5), style[1] ** 2, style[2] ** 2 / 2)

        def layer(before: Array, key: Key) -> tuple[Array, Array]:
            values = _layer(key, jnp.concatenate([roots, before], axis=1), self.nodes, kinds)
            return values, values

        nothing = jnp.zeros((len(roots), self.nodes))
        return roots, jax.lax.scan(layer, nothing, jax.random.split(layers_key, LAYERS))[1]


class _Sizes(NamedTuple):
    """Sizes of a table, int32 scalars.

    Attributes:
      columns: Number of columns.
      ways: Number of classes.
      support: Number of support rows.
      causes: Number of root causes.
      layer: Layer of the nodes that give classes.
      from_causes: Whether the columns are the root causes, a bool.
    """

    columns: Array
    ways: Array
    support: Array
    causes: Array
    layer: Array
    from_causes: Array


class _Kinds(NamedTuple):
    """Kinds of the nodes of a table, float scalars.

    Attributes:
      noise: Standard deviation of the noise.
      bent: Share of nodes with a nonlinear activation.
      trees: Share of nodes that are decision trees.
    """

    noise: Array
    bent: Array
    trees: Array


def _roots(key: Key, rows: int, causes: int) -> Array:
    """Draws root causes [R, U] of one kind for each table, correlated in half of the tables."""
    normal_key, style_key = jax.random.split(key)
    shapes = (rows, causes), (rows, 1), (4, causes), (causes, causes)
    normal, own, centers, factors = _drawn(jax.random.normal, normal_key, *shapes)
    (style,) = _drawn(jax.random.uniform, style_key, (2,))
    tails = jnp.exp(0.7 * own)
    # Four clusters, of which each row has one, by the quarters of a normal distribution.
    clusters = normal + 2 * centers[(own > jnp.array([-0.67, 0.0, 0.67])).sum(1)]
    kinds = jnp.stack([normal, jax.lax.erf(normal / 2**0.5), normal * tails, clusters])
    roots = _standardized(kinds[_integer(style[0], 0, 3)])
    share = jnp.maximum(2 * style[1] - 1, 0)
    return _standardized((1 - share) * roots + share * roots @ factors / causes**0.5)


def _layer(key: Key, parents: Array, nodes: int, kinds: _Kinds) -> Array:
    """Draws a layer of nodes and computes their values [R, H].

    Args:
      key: Random key, consumed.
      parents: Root causes and the layer before [R, U + H]; zeros are unused.
      nodes: Number of nodes H.
      kinds: Kinds of the nodes.
    """
    normal_key, style_key = jax.random.split(key)
    rows, possible = parents.shape
    shapes = (possible, nodes), (possible, nodes), (nodes, 3), (nodes, 8), (rows, nodes)
    weights, chances, thresholds, leaves, noise = _drawn(jax.random.normal, normal_key, *shapes)
    (style,) = _drawn(jax.random.uniform, style_key, (6, nodes))
    # From one parent to all of them: a chance per node.
    kept = chances > 3 * style[0] - 1.5
    sums = _standardized(parents @ (weights * kept))
    sums = (0.5 + 1.5 * style[1]) * sums + 2 * style[2] - 1
    bent = _integer(style[3], 0, len(_FUNCTIONS) - 1)
    smooth = sum(jnp.where(bent == i, function(sums), 0) for i, function in enumerate(_FUNCTIONS))
    smooth = jnp.where(style[5] < kinds.bent, smooth, sums)
    # A tree asks three questions of three sums of few parents, and has a value for each of the answers.
    asked = _standardized(parents @ (weights * (chances > 1)))
    asked = jnp.stack([sums, asked, jnp.roll(asked, 1, axis=1)], axis=-1)
    places = ((asked > 0.7 * thresholds) * jnp.array([1, 2, 4])).sum(-1)
    stepped = (leaves * (places[..., None] == jnp.arange(8))).sum(-1)
    values = _standardized(jnp.where(style[4] < kinds.trees, stepped, smooth))
    return _standardized(values + kinds.noise * noise)


def _choose_columns(key: Key, roots: Array, layers: Array, sizes: _Sizes) -> Array:
    """Chooses columns [R, D] among root causes and nodes; the nodes that give classes are no columns."""
    every = jnp.concatenate([roots, *layers], axis=1)
    causes, nodes = roots.shape[1], layers.shape[2]
    numbers = jnp.arange(every.shape[1])
    unused = (numbers >= sizes.causes) & (numbers < causes)
    unused |= (numbers - causes) // nodes == jnp.where(numbers < causes, -1, sizes.layer)
    (order,) = _drawn(jax.random.uniform, key, numbers.shape)
    places = _ranks(order + unused)
    return every @ (places[:, None] == jnp.arange(causes)).astype(every.dtype)


def _with_looks(key: Key, cells: Array) -> Array:
    """Bends some columns [R, D] by a monotone function, cuts some into categories, and removes some cells."""
    edges_key, style_key = jax.random.split(key)
    columns = cells.shape[1]
    shapes = (4,), (4, columns), (columns, LEVELS), cells.shape
    shares, style, codes, removed = _drawn(jax.random.uniform, style_key, *shapes)
    (edges,) = _drawn(jax.random.normal, edges_key, (columns, LEVELS - 1))
    bends = [jnp.exp(cells), jnp.sign(cells) * cells**2, jnp.tanh(2 * cells)]
    bent = jnp.stack(bends)[_integer(style[0], 0, 2), :, jnp.arange(columns)].T
    bent = jnp.where(style[1] < shares[0], bent, cells)
    # Categories have random thresholds and codes in a random order.
    levels = _integer(style[2], 2, LEVELS)[:, None]
    edges = jnp.where(jnp.arange(LEVELS - 1) < levels - 1, edges, jnp.inf)
    places = (_standardized(cells)[..., None] > edges).sum(-1)
    cut = (_ranks(codes) * (places[..., None] == jnp.arange(LEVELS))).sum(-1).astype(cells.dtype)
    looks = jnp.where(style[3] < 1.5 * shares[1] - 0.5, cut, bent)
    missing = jnp.where(shares[2] < 0.25, shares[3] / 5, 0)
    return jnp.where(removed < missing, jnp.nan, looks)


def _labels(key: Key, scores: Array, ways: Array) -> Array:
    """Cuts the first node of [R, N] at thresholds, or takes the largest of one for each class, [R] int32."""
    noise_key, style_key = jax.random.split(key)
    most = scores.shape[1]
    noise, bias = _drawn(jax.random.normal, noise_key, scores.shape, (most,))
    style, shares, names = _drawn(jax.random.uniform, style_key, (2,), (most,), (most,))
    scores = _standardized(scores + _log_between(style[0], 0.03, 1.0) * noise)
    # Thresholds are quantiles, so that classes have random shares.
    used = jnp.arange(most) < ways
    shares = jnp.where(used, 0.2 - jnp.log1p(-shares), 0)
    ends = jnp.cumsum(shares / shares.sum())[:-1]
    quantiles = (_ranks(scores[:, 0]) + 0.5) / len(scores)
    ordered = (quantiles[:, None] > jnp.where(used[1:], ends, 2)).sum(1)
    biased = scores + 0.5 * bias
    largest = jnp.argmax(jnp.where(used, biased, -jnp.inf), axis=1)
    chosen = jnp.where((style[1] < 0.5) & (ways > 2), largest, ordered)
    # A random name for each class in use.
    names = _ranks(names + ~used)
    return names[chosen].astype(jnp.int32)


def _drawn(draw: Callable[..., Array], key: Key, *shapes: tuple[int, ...]) -> list[Array]:
    """Draws random arrays of several shapes at once, in a third of the time that many draws compile in."""
    sizes = [math.prod(shape) for shape in shapes]
    # Without the barrier, every function of the numbers would draw them again.
    flat = jax.lax.optimization_barrier(draw(key, (sum(sizes),)))
    ends = itertools.accumulate(sizes)
    return [
        flat[end - size : end].reshape(shape)
        for size, end, shape in zip(sizes, ends, shapes, strict=True)
    ]


def _standardized(values: Array) -> Array:
    """Scales columns [R, M] to mean zero and deviation one; constant columns become zero."""
    centered = values - values.mean(0)
    return centered * jax.lax.rsqrt(jnp.maximum(jnp.square(centered).mean(0), 1e-6))


def _ranks(values: Array) -> Array:
    """Counts the smaller numbers of the last axis; without a sort, which compiles slowly."""
    return (values[..., None] > values[..., None, :]).sum(-1)


def _integer(uniform: Array, least: int, most: int) -> Array:
    """Maps a uniform number in [0, 1) to an integer from `least` to `most`."""
    return least + jnp.floor(uniform * (most + 1 - least)).astype(jnp.int32)


def _log_between(uniform: Array, least: float, most: float) -> Array:
    """Maps a uniform number in [0, 1) to one whose logarithm is uniform."""
    return least * (most / least) ** uniform
