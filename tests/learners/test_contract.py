"""Contract of every learner in the registry; a new entry is tested here automatically."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from helpers.contract import (
    EVERY_ADJOINT,
    FIRST_ORDER,
    OF_EXAMPLES,
    as_dict,
    assert_trees_close,
    episode_of,
    make,
    reading_trees,
    setting,
)
from helpers.differences import noisy, relative_error
from helpers.toys import batch_normed_model, conv_model, normed_model
from metajax.nn.conv_implementations import NAMES
from metajax.zoo.learners import LEARNERS, find_learner


@pytest.fixture(params=OF_EXAMPLES)
def name(request):
    return request.param


@pytest.fixture(params=sorted(name for name, entry in LEARNERS.items() if entry.inner))
def inner_name(request):
    return request.param


# Learners without class-specific meta-parameters. Fine-tuned heads start at random, differently per class.
@pytest.fixture(
    params=sorted(
        name
        for name, entry in LEARNERS.items()
        if entry.ways_agnostic and "finetune_steps" not in entry.options
    )
)
def any_ways_name(request):
    return request.param


# All gradient learners take their steps in `unroll`. Every adjoint is tested on three learners that differ in
# the operands of the loss (everything adapts; some leaves are fixed and hoisted; some differ per step),
# and every learner with the adjoint that is always exact and with the one that relies on symmetry.
@pytest.fixture(
    params=[
        (name, adjoint)
        for name in OF_EXAMPLES
        for adjoint in EVERY_ADJOINT
        if adjoint == "reverse"
        or (adjoint == "mixed" and LEARNERS[name].unrolls and name not in FIRST_ORDER)
        or name in ("maml", "anil", "maml_plus_plus")
    ],
    ids="-".join,
)
def name_and_adjoint(request):
    return request.param


def test_adapting_lowers_the_support_loss(inner_name):
    learner, episode, meta, _ = setting(inner_name, steps=20)
    start = learner.start(meta, jax.random.key(2))
    fast = jax.jit(learner.adapt)(meta, start, jax.random.key(3), episode.support)

    def loss(fast):
        outputs = learner.predict(meta, fast, episode.support.inputs)
        return metajax.cross_entropy(outputs, episode.support)

    assert loss(fast) < 0.9 * loss(start)


def test_jit_equals_eager(name):
    # Of few examples: eager learners that read them one by one compile operations for each.
    _, _, meta, objective = setting(name, adjoint="mixed", examples=3)
    episode = episode_of(name, jax.random.key(0), shots=1, queries=1)
    # Gradients are compared with finite differences of the compiled objective below.
    eager, jitted = (f(meta, jax.random.key(2), episode) for f in (objective, jax.jit(objective)))
    assert_trees_close(eager, jitted, rtol=1e-4, atol=1e-6)


def test_tasks_of_any_size_and_inputs_of_any_tree_under_vmap_equal_each_task_alone(name):
    _, _, meta, objective = setting(name, adjoint="mixed")
    *_, of_dicts = setting(name, adjoint="mixed", wrap=reading_trees)
    keys, sizes = jax.random.split(jax.random.key(2)), (6, 4)
    episodes = [
        jax.tree.map(lambda leaf, n=n: leaf[:n], episode_of(name, key))
        for key, n in zip(keys, sizes, strict=True)
    ]
    padded = [
        metajax.Episode(*(as_dict(_padded(batch, 6)) for batch in episode)) for episode in episodes
    ]
    together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *padded)
    losses, _ = jax.jit(jax.vmap(of_dicts, (None, 0, 0)))(meta, keys, together)
    alone = jax.jit(objective)
    loop = [alone(meta, *operands)[0] for operands in zip(keys, episodes, strict=True)]
    np.testing.assert_allclose(losses, loop, rtol=1e-5)


def _padded(batch, count):
    """Appends examples of weight zero, with inputs unlike all others."""
    given = len(batch.inputs)
    more = jnp.arange(count) % given
    batch = jax.tree.map(lambda leaf: leaf[more], batch)
    inputs = jnp.where((jnp.arange(count) < given)[:, None], batch.inputs, 7 - batch.inputs)
    return batch._replace(inputs=inputs, weights=(jnp.arange(count) < given).astype(jnp.float32))


def test_same_key_same_result_and_nothing_is_mutated(name):
    _, episode, meta, objective = setting(name)
    before = jax.tree.map(np.array, (meta, episode))
    first, second = (jax.jit(objective)(meta, jax.random.key(2), episode)[0] for _ in range(2))
    assert first == second
    assert_trees_close((meta, episode), before, rtol=0)


def test_meta_gradient_against_finite_differences(float64, name_and_adjoint):
    name, adjoint = name_and_adjoint
    # Implicit gradients require convergence.
    steps = 60 if name == "imaml" else 2
    _, episode, meta, objective = setting(name, jnp.float64, adjoint=adjoint, steps=steps)

    def loss(meta):
        return objective(meta, jax.random.key(2), episode)[0]

    error = relative_error(loss, noisy(meta, 0.1))
    if FIRST_ORDER & {name, adjoint}:
        assert error > 1e-2
    else:
        assert error < 1e-6


@pytest.mark.parametrize("name", ["maml", "anil", "lora", "imaml"])
def test_forced_kernels_change_no_meta_gradient(float64, name):
    def with_kernels(kernels):
        model = conv_model(2, 3, implementation=kernels)
        return setting(name, jnp.float64, adjoint="mixed", model=model)

    _, episode, meta, _ = with_kernels(None)
    objectives = [with_kernels(kernels)[-1] for kernels in (*NAMES, None)]

    @jax.jit
    def gradients(meta, episode):
        def gradient(objective):
            return jax.grad(lambda meta: objective(meta, jax.random.key(2), episode)[0])(meta)

        return [gradient(objective) for objective in objectives]

    *forced, expected = gradients(meta, episode)
    assert optax.tree.norm(expected) > 1e-3
    for grads in forced:
        assert_trees_close(grads, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shots", [1, 3])
def test_variable_shots(name, shots):
    learner, _, meta, objective = setting(name, examples=9)
    episode = episode_of(name, jax.random.key(3), shots=shots)

    @jax.jit
    def outcome(episode):
        key = jax.random.key(2)
        outputs = metajax.objectives.query_outputs(learner, meta, key, episode)
        return objective(meta, key, episode)[0], outputs

    value, outputs = outcome(episode)
    assert np.isfinite(value)
    assert outputs.shape == (6, 3 if "classes" in LEARNERS[name].predicts else 2)


def test_two_calls_of_adapt_are_one_of_twice_the_steps(inner_name):
    name = inner_name
    # Steps of one kind: two calls of LEO adapt codes, head, codes, head.
    alone = {"options": {"finetune_steps": 0} if name == "leo" else {}}
    short, episode, meta, _ = setting(name, steps=2, rule=optax.sgd(0.2, momentum=0.9), **alone)
    long = make(name, steps=4, rule=optax.sgd(0.2, momentum=0.9), **alone)
    start = short.start(meta, jax.random.key(2))
    once = short.adapt(meta, start, jax.random.key(3), episode.support)
    twice = short.adapt(meta, once, jax.random.key(4), episode.support)
    whole = long.adapt(meta, start, jax.random.key(3), episode.support)
    if name == "leo":  # its state counts the calls
        whole = whole._replace(calls=whole.calls + 1)
    assert_trees_close(twice, whole, rtol=1e-5)


@pytest.mark.parametrize(
    "rule",
    [
        optax.adam(0.05, eps_root=1e-8),
        optax.sgd(0.1, momentum=0.9, nesterov=True),
        optax.rmsprop(0.01),
    ],
    ids=["adam", "nesterov", "rmsprop"],
)
def test_any_optax_rule_gives_finite_meta_gradients(inner_name, rule):
    _, episode, meta, objective = setting(inner_name, rule=rule)
    # Constant inputs: all examples have the same gradient of the body, and parts of the head have tiny ones.
    still = jax.tree.map(lambda leaf: leaf * 0, episode.support.inputs)
    still = episode._replace(support=episode.support._replace(inputs=still))
    grads = jax.jit(jax.grad(lambda meta: objective(meta, jax.random.key(2), still)[0]))(meta)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_constant_labels_under_batch_norm_give_finite_meta_gradients(name):
    _, _, meta, objective = setting(
        name, model=batch_normed_model(3), encoder=batch_normed_model(None)
    )
    episode = episode_of(name, jax.random.key(0), shots=1)
    constant = metajax.Episode(
        *(batch._replace(targets=jnp.zeros_like(batch.targets)) for batch in episode)
    )
    # A single example too, whose variance under batch norm is zero.
    for task in (constant, constant._replace(support=_first(constant.support))):
        grads = jax.jit(jax.grad(lambda m, t: objective(m, jax.random.key(2), t)[0]))(meta, task)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def _first(batch):
    return jax.tree.map(lambda leaf: leaf[:1], batch)


def test_permuting_support_classes_permutes_the_answers(any_ways_name):
    learner, episode, meta, _ = setting(any_ways_name)
    order = jnp.array([2, 0, 1])
    support = episode.support
    renamed = support._replace(targets=order[support.targets])
    answer = jax.jit(
        lambda batch: metajax.objectives.query_outputs(
            learner, meta, jax.random.key(2), episode._replace(support=batch)
        )
    )
    outputs = [answer(batch) for batch in (support, renamed)]
    np.testing.assert_allclose(outputs[1][:, order], outputs[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "name", sorted(name for name in OF_EXAMPLES if LEARNERS[name].encoder_of is not None)
)
def test_the_entry_finds_the_parameters_of_the_encoder(name):
    _, episode, meta, _ = setting(name)
    params = normed_model(5, None).init(jax.random.key(1), episode.support.inputs)
    found = LEARNERS[name].encoder_of(meta)
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, params), (
        f"encoder_of of {name} finds other parameters than those of the encoder"
    )


def test_training_learns_and_four_seeds_at_once_are_four_runs(name):
    def noisy_input(key, batch):
        # Learners that compare features solve the toy task untrained, unless half of the inputs are noise.
        size = 0 if LEARNERS[name].inner else 2
        noise = size * jax.random.normal(key, batch.inputs.shape) * jnp.array([0, 0, 1, 1])
        return batch._replace(inputs=batch.inputs + noise)

    def sample(data, key):
        del data
        keys = jax.random.split(key)
        episode = episode_of(name, key, ways=3, shots=5, queries=5)
        return metajax.Episode(*map(noisy_input, keys, episode))

    learner, episode, _, objective = setting(name, examples=15)
    optimizer = optax.adam(0.02)
    step = metajax.make_step(metajax.backprop(objective), optimizer, sample, num_tasks=4)

    def begin(key):
        meta = learner.init(key, episode.support.inputs)
        return metajax.init_state(meta, optimizer, key)

    # MetaNet's steps are slow, but few suffice; recurrent learners need many.
    steps = {"metanet": 30, "snail": 80, "recurrent": 400, "mann": 300}.get(name, 150)
    states = jax.jit(jax.vmap(begin))(jax.random.split(jax.random.key(5), 4))
    run = jax.jit(jax.vmap(metajax.make_run(step, steps=steps), (0, None)))
    train = run(states, None)[1].train
    if LEARNERS[name].objective is None:
        assert train["loss"][:, -10:].mean() < 0.9 * train["loss"][:, :10].mean()
    # Only the first steps: Adam amplifies rounding differences later.
    alone = jax.jit(metajax.make_run(step, steps=4))
    for seed in range(4):
        state = jax.tree.map(lambda leaf, seed=seed: leaf[seed], states)
        one = alone(state, None)[1].train["loss"]
        np.testing.assert_allclose(train["loss"][seed, :4], one, rtol=2e-3)
    assert len({float(loss) for loss in train["loss"][:, 0]}) == 4


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(ValueError, match=r"'mamml'.*maml"):
        find_learner("mamml")
