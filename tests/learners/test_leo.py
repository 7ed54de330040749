"""LEO: codes, decoding, inner steps and penalty, against the formulas of the paper."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from helpers.differences import relative_error
from helpers.toys import classification_episode
from metajax.inner.adjoints import ADJOINTS
from metajax.learners.gradient.latent import leo, leo_penalty
from metajax.types import Model

WAYS, DIM, LATENT = 3, 5, 2
DEFAULTS = dict(
    ways=WAYS, latent=LATENT, steps=2, finetune_steps=2, learning_rate=0.5, finetune_rate=0.3
)
# Large enough to be visible next to the query loss.
PENALTY = functools.partial(leo_penalty, kl=0.1, encoder=0.2, l2=0.01, orthogonality=0.3)


def encoder(features=DIM):
    """Makes an encoder: tanh of a linear map."""

    def init(key, inputs):
        return jax.random.normal(key, (inputs.shape[-1], features), inputs.dtype) / 2

    return Model(init, lambda params, inputs: jnp.tanh(inputs @ params))


# Cached, so that tests with the same options share compiled programs.
@functools.cache
def make(**options):
    return leo(encoder(), metajax.cross_entropy, **{**DEFAULTS, **options})


def setting(dtype=jnp.float32, shots=2, **options):
    learner = make(**options)
    episode = classification_episode(jax.random.key(0), ways=WAYS, shots=shots, dtype=dtype)
    return learner, episode, init(learner, jax.random.key(1), episode.support.inputs)


@functools.partial(jax.jit, static_argnums=0)
def init(learner, key, inputs):
    return learner.init(key, inputs)


@functools.partial(jax.jit, static_argnums=0)
def adapt(learner, meta, fast, key, batch):
    return learner.adapt(meta, fast, key, batch)


def adapted(learner, meta, *batches):
    fast = learner.start(meta, jax.random.key(2))
    for i, batch in enumerate(batches):
        fast = adapt(learner, meta, fast, jax.random.key(3 + i), batch)
    return fast


def assert_trees_close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def by_hand(meta, batch):
    """Computes means and log standard deviations of codes, pair by pair as in the paper."""
    params, embed, relation = map(np.asarray, (meta.params, meta.encoder, meta.relation))
    embeddings = np.tanh(np.asarray(batch.inputs) @ params) @ embed
    labels, outputs = np.asarray(batch.targets), []
    for label in range(WAYS):
        total, pairs = 0, 0
        for example in embeddings[labels == label]:
            for other in embeddings:
                hidden = np.concatenate([example, other])
                hidden = np.maximum(hidden @ relation[0], 0)
                hidden = np.maximum(hidden @ relation[1], 0)
                total, pairs = total + hidden @ relation[2], pairs + 1
        outputs.append(total / pairs)
    return np.split(np.stack(outputs), 2, axis=-1)


def test_codes_are_encoded_pair_by_pair():
    learner, episode, meta = setting(steps=0, finetune_steps=0, stochastic=False)
    # Classes of two, two and one example.
    batch = jax.tree.map(lambda leaf: leaf[:-1], episode.support)
    fast = adapted(learner, meta, batch)
    means, log_stds = by_hand(meta, batch)
    np.testing.assert_allclose(fast.codes, means, rtol=1e-5, atol=1e-7)
    variances = np.exp(2 * log_stds)
    kl = np.mean(0.5 * (variances + means**2 - 1 - np.log(variances)))
    np.testing.assert_allclose(fast.kl, kl, rtol=1e-5)


def test_draws_have_the_means_and_deviations_of_the_networks():
    learner, episode, meta = setting(steps=0, finetune_steps=0)
    # Larger weights: at initialization all standard deviations are near one.
    meta = meta._replace(relation=2 * meta.relation, decoder=2 * meta.decoder)
    start = learner.start(meta, jax.random.key(2))
    keys = jax.random.split(jax.random.key(3), 20_000)
    draw = jax.jit(jax.vmap(learner.adapt, (None, None, 0, None)))
    fasts = draw(meta, start, keys, episode.support)
    means, log_stds = by_hand(meta, episode.support)
    np.testing.assert_allclose(fasts.codes.mean(0), means, atol=0.05)
    np.testing.assert_allclose(np.log(fasts.codes.std(0)), log_stds, atol=0.03)
    head_means, head_log_stds = np.split(np.asarray(fasts.codes @ meta.decoder), 2, axis=-1)
    head = head_means + np.sqrt(2 / (WAYS + DIM)) * np.exp(head_log_stds) * fasts.noise
    np.testing.assert_allclose(fasts.head, head, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(fasts.noise.std(0), 1, atol=0.03)


def test_without_steps_it_predicts_with_the_decoded_head():
    learner, episode, meta = setting(steps=0, finetune_steps=0, stochastic=False)
    fast = adapted(learner, meta, episode.support)
    head = (fast.codes @ meta.decoder)[:, :DIM]
    outputs = learner.predict(meta, fast, episode.query.inputs)
    features = encoder().apply(meta.params, episode.query.inputs)
    np.testing.assert_array_equal(outputs, features @ head.T)


def test_steps_descend_on_codes_then_on_the_head():
    learner, episode, meta = setting(steps=1, finetune_steps=1, stochastic=False)
    meta = meta._replace(code_rate=jnp.array([0.3, 0.7]), head_rate=jnp.linspace(0.1, 0.5, DIM))
    fast = adapted(learner, meta, episode.support)
    features = encoder().apply(meta.params, episode.support.inputs)

    def loss(head):
        return metajax.cross_entropy(features @ head.T, episode.support)

    def decode(codes):
        return (codes @ meta.decoder)[:, :DIM]

    codes = jnp.asarray(by_hand(meta, episode.support)[0])
    codes -= meta.code_rate * jax.grad(lambda codes: loss(decode(codes)))(codes)
    head = decode(codes)
    head -= meta.head_rate * jax.grad(loss)(head)
    np.testing.assert_allclose(fast.codes, codes, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(fast.head, head, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("stage", ["steps", "finetune_steps"])
def test_adapting_again_goes_on_without_encoding_again(stage):
    other = {"steps": 0, "finetune_steps": 0}
    short, episode, meta = setting(**{**other, stage: 2})
    long = make(**{**other, stage: 4})
    once = adapted(short, meta, episode.support)
    twice = adapted(short, meta, episode.support, episode.support)
    whole = adapted(long, meta, episode.support)
    assert_trees_close(twice._replace(calls=1), whole._replace(calls=1), rtol=1e-4, atol=1e-6)
    assert (once.calls, twice.calls) == (1, 2)
    assert np.abs(twice.head - once.head).max() > 1e-2


def test_adapting_again_keeps_what_the_head_gained():
    learner, episode, meta = setting()
    idle = make(steps=0, finetune_steps=0)
    once = adapted(learner, meta, episode.support)
    again = adapt(idle, meta, once, jax.random.key(9), episode.query)
    assert_trees_close(again._replace(calls=once.calls), once, rtol=1e-5, atol=1e-6)

    def loss(fast):
        outputs = learner.predict(meta, fast, episode.support.inputs)
        return metajax.cross_entropy(outputs, episode.support)

    twice = adapt(learner, meta, once, jax.random.key(9), episode.support)
    assert loss(twice) < loss(once) < loss(adapted(idle, meta, episode.support))


def test_adapting_in_a_scan_equals_a_loop():
    learner, episode, meta = setting()
    batches = jax.tree.map(lambda *leaves: jnp.stack(leaves), *episode)
    keys = jax.random.split(jax.random.key(3), 2)
    fast = start = learner.start(meta, jax.random.key(2))
    for key, batch in zip(keys, episode, strict=True):
        fast = adapt(learner, meta, fast, key, batch)
    scanned, _ = jax.lax.scan(
        lambda fast, xs: (adapt(learner, meta, fast, *xs), None), start, (keys, batches)
    )
    assert_trees_close(scanned, fast, rtol=1e-5, atol=1e-6)


def finite_difference_error(objective, meta, episode):
    def loss(meta):
        return objective(meta, jax.random.key(2), episode)[0]

    return relative_error(loss, meta, nudge=1e-6)


@pytest.mark.parametrize(("adjoint", "stochastic"), [("reverse", False), ("mixed", True)])
def test_meta_gradient_against_finite_differences(float64, adjoint, stochastic):
    options = dict(adjoint=ADJOINTS[adjoint], stochastic=stochastic)
    learner, episode, meta = setting(jnp.float64, **options)
    # Without the encoder's term: finite differences do not see its stopped gradient.
    penalty = functools.partial(PENALTY, encoder=0.0)
    objective = metajax.query_objective(
        learner, metajax.Scoring(metajax.cross_entropy, penalty=penalty)
    )
    assert finite_difference_error(objective, meta, episode) < 1e-6


def test_the_encoder_penalty_pulls_the_encoding_alone(float64):
    learner, episode, meta = setting(jnp.float64)
    goal = adapted(learner, meta, episode.support).codes

    def penalty(meta):
        fast = adapted(learner, meta, episode.support)
        return leo_penalty(meta, fast, kl=0, l2=0, orthogonality=0, encoder=1.0)

    def pulled(meta):
        return jnp.mean((goal - adapted(learner, meta, episode.support).encoded) ** 2)

    grads, expected = jax.jit(lambda meta: (jax.grad(penalty)(meta), jax.grad(pulled)(meta)))(meta)
    assert_trees_close(grads, expected, rtol=1e-9, atol=1e-12)
    assert optax.tree.norm(expected) > 1e-3


def test_padding_of_weight_zero_changes_nothing():
    learner, episode, meta = setting()
    count = episode.support.targets.size
    padded = metajax.Batch(
        jnp.concatenate([episode.support.inputs, 7 - episode.support.inputs]),
        jnp.concatenate([episode.support.targets, 2 - episode.support.targets]),
        jnp.repeat(jnp.array([1.0, 0.0]), count),
    )
    whole, more = (adapted(learner, meta, batch) for batch in (episode.support, padded))
    assert_trees_close(more, whole, rtol=1e-4, atol=1e-6)


def test_an_example_of_weight_two_is_two_examples():
    learner, episode, meta = setting(stochastic=False)
    support = episode.support
    weighted = support._replace(weights=jnp.array([2.0, 1, 1, 1, 1, 1]))
    twice = jax.tree.map(lambda leaf: jnp.concatenate([leaf[:1], leaf]), support)
    outcomes = (adapted(learner, meta, batch) for batch in (weighted, twice))
    assert_trees_close(*outcomes, rtol=1e-4, atol=1e-6)


def test_permuted_classes_permute_outputs():
    learner, episode, meta = setting(stochastic=False)
    order = jnp.array([2, 0, 1])
    permuted = episode.support._replace(targets=order[episode.support.targets])
    straight, moved = (
        learner.predict(meta, adapted(learner, meta, batch), episode.query.inputs)
        for batch in (episode.support, permuted)
    )
    np.testing.assert_allclose(moved[:, order], straight, rtol=1e-4, atol=1e-6)


def test_the_key_of_adapt_draws_and_the_mean_needs_none():
    for stochastic in (True, False):
        learner, episode, meta = setting(stochastic=stochastic)
        start = learner.start(meta, jax.random.key(2))
        one, same, other = (
            adapt(learner, meta, start, jax.random.key(seed), episode.support).head
            for seed in (3, 3, 4)
        )
        np.testing.assert_array_equal(one, same)
        assert (np.abs(one - other).max() > 1e-2) == stochastic


def test_meta_gradients_are_finite():
    learner, episode, meta = setting(shots=1)
    support = episode.support
    objective = metajax.query_objective(
        learner, metajax.Scoring(metajax.cross_entropy, penalty=PENALTY)
    )
    value_and_grad = jax.jit(jax.value_and_grad(objective, has_aux=True))
    for name, case_meta, batch in [
        ("one shot", meta, support),
        ("constant labels", meta, support._replace(targets=jnp.zeros_like(support.targets))),
        ("zero inputs", meta, support._replace(inputs=jnp.zeros_like(support.inputs))),
        ("zero decoder", meta._replace(decoder=jnp.zeros_like(meta.decoder)), support),
    ]:
        case = episode._replace(support=batch)
        leaves = jax.tree.leaves(value_and_grad(case_meta, jax.random.key(2), case))
        assert all(np.isfinite(leaf).all() for leaf in leaves), name


def test_the_penalty_is_a_sum_of_four():
    learner, episode, meta = setting()
    fast = adapted(learner, meta, episode.support)

    def term(**weight):
        return leo_penalty(meta, fast, **{**dict.fromkeys(PENALTY.keywords, 0.0), **weight})

    decoder = np.asarray(meta.decoder)
    squares = sum(np.sum(np.square(leaf)) for leaf in (meta.encoder, meta.relation, decoder))
    cosine = decoder[0] @ decoder[1] / np.prod(np.linalg.norm(decoder, axis=1))
    expected = {
        "kl": fast.kl,
        "encoder": np.mean(np.square(fast.codes - fast.encoded)),
        "l2": squares / 2,
        # The decoder has two rows: two of four correlations are off the diagonal.
        "orthogonality": cosine**2 / 2,
    }
    for name, value in expected.items():
        np.testing.assert_allclose(term(**{name: 2.0}), 2 * value, rtol=1e-5)
        assert value > 1e-5
    total = sum(PENALTY.keywords[name] * value for name, value in expected.items())
    np.testing.assert_allclose(PENALTY(meta, fast), total, rtol=1e-5)


def test_the_objective_is_the_query_loss_and_the_penalty():
    learner, episode, meta = setting()
    metrics = {"accuracy": metajax.accuracy}
    objective, query = (
        metajax.query_objective(
            learner, metajax.Scoring(metajax.cross_entropy, metrics, penalty=penalty)
        )
        for penalty in (PENALTY, None)
    )
    (total, found), (loss, expected) = (
        jax.jit(f)(meta, jax.random.key(2), episode) for f in (objective, query)
    )
    assert found.keys() == {"accuracy", "loss", "penalty"}
    np.testing.assert_allclose(found["loss"], loss, rtol=1e-6)
    assert found["accuracy"] == expected["accuracy"]
    np.testing.assert_allclose(total, loss + found["penalty"], rtol=1e-6)


def test_training_learns():
    def sample(data, key):
        del data
        return classification_episode(key, ways=WAYS, shots=5, queries=5)

    learner, _, meta = setting(latent=8, learning_rate=1.0)
    objective = metajax.query_objective(
        learner, metajax.Scoring(metajax.cross_entropy, penalty=leo_penalty)
    )
    optimizer = optax.adam(0.01)
    step = metajax.make_step(metajax.backprop(objective), optimizer, sample, num_tasks=8)
    state = metajax.init_state(meta, optimizer, jax.random.key(5))
    _, metrics = jax.jit(metajax.many_steps(step, 150))(state, None)
    assert metrics["loss"][-20:].mean() < 0.5 * metrics["loss"][:20].mean()


def test_invalid_options_are_refused():
    for name, value, least in [
        ("ways", 1, 2),
        ("latent", 0, 1),
        ("steps", -1, 0),
        ("finetune_steps", -2, 0),
    ]:
        with pytest.raises(ValueError, match=f"{name} is {value}; use {least} or more"):
            make(**{name: value})
    images = Model(lambda key, inputs: (), lambda params, inputs: inputs[..., None])
    learner = leo(images, metajax.cross_entropy, ways=3)
    with pytest.raises(ValueError, match=r"Features are \(6, 4, 1\).*gives \[B, D\]"):
        learner.init(jax.random.key(0), jnp.zeros((6, 4)))
