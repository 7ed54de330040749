"""Fast states of every registered learner: constant shapes, adaptation in pieces, in a scan, exported."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import metajax
from helpers.contract import (
    OF_EXAMPLES,
    as_dict,
    assert_trees_close,
    episode_of,
    make,
    reading_trees,
)
from metajax.learners.states import Kept, put_behind
from metajax.objectives.sequence import sequence_objective
from metajax.zoo.learners import LEARNERS

KEYS = jax.random.split(jax.random.key(2), 3)
PIECES = (slice(0, 1), slice(1, 4), slice(4, 6))


def piece_of(batch, part, size):
    """Takes a slice of the examples and pads it to a size with examples of weight zero."""
    places = jnp.arange(part.start, part.start + size) % len(batch.targets)
    weights = jnp.arange(size) < part.stop - part.start
    return jax.tree.map(lambda leaf: leaf[places], batch)._replace(weights=weights * 1.0)


def exported(function, *args):
    """Exports a function of trees, serializes it and reads it back; random keys must be given as numbers."""
    leaves, treedef = jax.tree.flatten(args)
    result = jax.tree.structure(jax.eval_shape(function, *args))

    def of_leaves(*numbers):
        args = treedef.unflatten(numbers)
        return jax.tree.leaves(function(*args))

    shipped = jax.export.export(jax.jit(of_leaves))(*leaves).serialize()
    called = jax.jit(jax.export.deserialize(shipped).call)
    return lambda *args: result.unflatten(called(*jax.tree.leaves(args)))


class Case:
    """A learner of dicts, a task, and its adaptation in pieces: in a scan, and in exported programs."""

    def __init__(self, name):
        self.entry = LEARNERS[name]
        options = {"finetune_steps": 1} if "finetune_steps" in self.entry.options else {}
        self.learner = learner = make(name, steps=1, wrap=reading_trees, options=options)
        support, query = map(as_dict, episode_of(name, jax.random.key(0)))
        self.support, self.queries = support, query.inputs
        self.meta = meta = jax.jit(learner.init)(jax.random.key(1), support.inputs)
        self.start = jax.jit(learner.start)(meta, KEYS[0], support)
        self.pieces = [piece_of(support, part, 3) for part in PIECES]

        def adapt(meta, fast, key_data, batch):
            return learner.adapt(meta, fast, jax.random.wrap_key_data(key_data), batch)

        @jax.jit
        def in_scan(meta, start, keys, pieces, support):
            def step(fast, operands):
                return learner.adapt(meta, fast, *operands), None

            pieces, _ = jax.lax.scan(step, start, (keys, pieces))
            whole = learner.adapt(meta, start, keys[-1], support)
            return pieces, *(learner.predict(meta, fast, self.queries) for fast in (pieces, whole))

        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *self.pieces)
        self.scanned = in_scan(meta, self.start, KEYS, stacked, support)
        data = self.key_data = jax.random.key_data(KEYS)
        self.adapt = exported(adapt, meta, self.start, data[0], self.pieces[0])
        self.predict = exported(learner.predict, meta, self.start, self.queries)
        self.fast = self.start
        for number, piece in zip(data, self.pieces, strict=True):
            self.fast = self.adapt(meta, self.fast, number, piece)


@pytest.fixture(scope="module", params=OF_EXAMPLES)
def case(request):
    return Case(request.param)


def test_a_state_keeps_its_shape_from_the_start_on(case):
    def shapes(tree):
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)

    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), case.support)
    of_shapes = jax.eval_shape(lambda meta: case.learner.start(meta, KEYS[0], like), case.meta)
    after = jax.eval_shape(case.learner.adapt, case.meta, case.start, KEYS[0], case.support)
    assert shapes(of_shapes) == shapes(case.start) == shapes(after)


def test_a_scan_over_pieces_equals_a_loop_of_exported_programs(case):
    fast, outputs, _ = case.scanned
    assert_trees_close(case.fast, fast, rtol=1e-4, atol=1e-6)
    exported = case.predict(case.meta, case.fast, case.queries)
    np.testing.assert_allclose(exported, outputs, rtol=1e-4, atol=1e-5)


def test_pieces_equal_the_whole_if_the_entry_is_incremental(case):
    _, in_pieces, whole = case.scanned
    close = np.allclose(in_pieces, whole, rtol=1e-4, atol=1e-5)
    assert close == case.entry.incremental


def test_before_the_first_example_answers_are_finite(case):
    answers = case.predict(case.meta, case.start, case.queries)
    assert np.isfinite(answers).all()


def test_a_piece_without_weight_changes_nothing(case):
    # Padding may have any label.
    anything = jax.tree.map(lambda leaf: jnp.full_like(leaf, -7), case.pieces[0].targets)
    nothing = case.pieces[0]._replace(targets=anything, weights=jnp.zeros(3))
    for fast in (case.start, case.fast):
        still = case.adapt(case.meta, fast, case.key_data[-1], nothing)
        if case.entry.inner or "finetune_steps" in case.entry.options:
            jax.tree.map(np.testing.assert_array_equal, still, fast)
        answers = [case.predict(case.meta, one, case.queries) for one in (fast, still)]
        np.testing.assert_allclose(*answers, rtol=1e-4, atol=1e-5)

    @jax.jit
    @jax.grad
    def slope(meta, nothing):
        fast = case.learner.adapt(meta, case.start, KEYS[0], nothing)
        return jnp.sum(case.learner.predict(meta, fast, case.queries))

    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope(case.meta, nothing)))


def test_more_examples_than_there_is_room_for_are_refused_or_make_answers_nan(case):
    fast = case.adapt(case.meta, case.fast, case.key_data[0], case.pieces[0])
    answers = case.predict(case.meta, fast, case.queries)
    if not isinstance(case.start, Kept):
        assert np.isfinite(answers).all()
        return
    assert np.isnan(answers).all()
    with pytest.raises(ValueError, match="7 examples are more than the 6 that the fast state has"):
        case.learner.adapt(case.meta, case.fast, KEYS[0], case.pieces[0])
    with pytest.raises(ValueError, match=r"needs the shapes .* give it `like`"):
        case.learner.start(case.meta, KEYS[0])


@pytest.mark.parametrize("weights", [None, [1.0, 1.0]])
def test_examples_of_another_kind_than_those_kept_are_refused(weights):
    weights = None if weights is None else jnp.array(weights)
    for more, found in ((jnp.ones((2, 3)), r"float32\[3\]"), (jnp.ones(2, int), r"int32\[\]")):
        with pytest.raises(ValueError, match=f"of {found}, and the fast state keeps int16"):
            put_behind(jnp.zeros(4, jnp.int16), jnp.zeros(4), more, weights)


@pytest.mark.parametrize("name", ["protonet", "matching", "r2d2"])
def test_learners_without_steps_learn_from_examples_one_by_one(name):
    learner, episode = make(name), episode_of(name, KEYS[0])
    objective = sequence_objective(learner, metajax.cross_entropy, presentations=2)
    meta = jax.jit(learner.init)(KEYS[1], episode.support.inputs)
    gradient = jax.jit(jax.grad(lambda meta: objective(meta, KEYS[2], episode)[0]))(meta)
    leaves = jax.tree.leaves(gradient)
    assert all(np.isfinite(leaf).all() for leaf in leaves) and any(leaf.any() for leaf in leaves)
