"""Gradient learners: which leaves move, by which rule, in how many steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from helpers.toys import classification_episode, linear_model, normed_model
from metajax import trees
from metajax.inner.reparametrise import low_rank, warped, with_context
from metajax.inner.rules.base import as_rule
from metajax.types import Model, Parts


def adapted(learner, episode):
    meta = learner.init(jax.random.key(1), episode.support.inputs)
    start = learner.start(meta, jax.random.key(2))
    fast = learner.adapt(meta, start, jax.random.key(3), episode.support)
    return meta, fast


def test_maml_takes_plain_gradient_steps():
    model, episode = linear_model(5, 3), classification_episode(jax.random.key(0))
    learner = metajax.maml(model, metajax.cross_entropy, rule=optax.sgd(0.4), steps=2)
    meta, fast = adapted(learner, episode)
    params = meta.params
    for _ in range(2):
        grads = jax.grad(
            lambda p: metajax.cross_entropy(model.apply(p, episode.support.inputs), episode.support)
        )(params)
        params = jax.tree.map(lambda p, g: p - 0.4 * g, params, grads)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), fast.params, params)


def test_anil_moves_the_head_alone():
    episode = classification_episode(jax.random.key(0))
    learner = metajax.anil(linear_model(5, 3), metajax.cross_entropy, rule=optax.sgd(0.4))
    meta, fast = adapted(learner, episode)
    assert fast.params["body"] is None
    assert np.abs(fast.params["head"]["kernel"] - meta.params["head"]["kernel"]).max() > 1e-3


def test_anil_without_a_head_names_the_leaves():
    learner = metajax.anil(
        linear_model(5, 3), metajax.cross_entropy, rule=optax.sgd(0.4), head="top"
    )
    with pytest.raises(
        ValueError, match=r"under\('top'\) selects no leaf; the leaves are body, head/kernel"
    ):
        learner.init(jax.random.key(0), jnp.zeros((1, 4)))


def renamed(model: Model, names: dict[str, str], parts: Parts) -> Model:
    """Renames the top-level parameters of a model, and declares its parts."""
    back = {new: old for old, new in names.items()}

    def init(key, inputs):
        return {names[old]: leaf for old, leaf in model.init(key, inputs).items()}

    def apply(params, inputs):
        return model.apply({back[new]: leaf for new, leaf in params.items()}, inputs)

    return Model(init, apply, parts)


NAMES = {"body": "first", "norm": "affine", "head": "last"}
PARTS = Parts(head=trees.under("last"), norms=trees.under("affine"), averages=trees.under("first"))


def moved(learner, episode):
    meta, fast = adapted(learner, episode)
    before, after = (
        dict(zip(trees.paths(tree), jax.tree.leaves(tree), strict=True))
        for tree in (meta.params, fast.params)
    )
    return {path for path, leaf in after.items() if np.any(leaf != before[path])}


def test_a_model_declares_its_head_norms_and_averages_by_other_names():
    model, episode = normed_model(5, 3), classification_episode(jax.random.key(0))
    other, loss = renamed(model, NAMES, PARTS), metajax.cross_entropy
    options = {"rule": optax.sgd(0.4)}
    assert moved(metajax.anil(other, loss, **options), episode) == {"last/kernel", "last/bias"}
    assert moved(metajax.anil(other, loss, head="affine", **options), episode) == {"affine/scale"}
    assert moved(metajax.learners.boil(other, loss, **options), episode) == {"affine/scale"}
    everything = {"affine/scale", "last/kernel", "last/bias"}
    assert moved(metajax.maml(other, loss, **options), episode) == everything
    assert moved(metajax.imaml(other, loss, **options), episode) == everything
    plus = metajax.learners.maml_plus_plus(other, loss, learning_rate=0.4, steps=2)
    assert moved(plus, episode) == {"last/kernel", "last/bias"}
    assert adapted(plus, episode)[0].params["affine"]["scale"].shape == (2, 5)


@pytest.mark.parametrize(
    "wrap", [lambda m: low_rank(m, 2), warped, lambda m: with_context(m, 3, modulates=PARTS.norms)]
)
def test_a_model_made_of_another_declares_them_below_its_name(wrap):
    model = wrap(renamed(normed_model(5, 3), NAMES, PARTS))
    paths = trees.paths(model.init(jax.random.key(0), jnp.zeros((1, 4))))
    assert {p for p in paths if model.parts.head(p)} == {"model/last/kernel", "model/last/bias"}
    assert {p for p in paths if model.parts.norms(p)} == {"model/affine/scale"}
    assert {p for p in paths if model.parts.averages(p)} == {"model/first"}


def test_meta_sgd_at_equal_rates_is_maml():
    model, episode = linear_model(5, 3), classification_episode(jax.random.key(0))
    learners = (
        metajax.meta_sgd(model, metajax.cross_entropy, learning_rate=0.4, steps=3),
        metajax.maml(model, metajax.cross_entropy, rule=optax.sgd(0.4), steps=3),
    )
    params = [adapted(learner, episode)[1].params for learner in learners]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *params)


def test_learned_rates_have_one_number_a_leaf_or_a_parameter():
    params = {"a": jnp.ones((2, 3)), "b": jnp.ones(4)}
    by_leaf = metajax.learned_rates(0.5, per="leaf").init(params).learned.value
    by_parameter = metajax.learned_rates(0.5, per="parameter").init(params).learned.value
    assert (by_leaf["a"].shape, by_parameter["a"].shape) == ((), (2, 3))
    rule = as_rule(metajax.learned_rates(0.5, per="leaf"))
    rates = {"a": jnp.array(2.0), "b": jnp.array(3.0)}
    updates, _ = rule.update(rates, params, rule.start(params), params)
    np.testing.assert_array_equal(updates["b"], -3 * jnp.ones(4))
    with pytest.raises(ValueError, match="per is 'layer'"):
        metajax.learned_rates(0.5, per="layer")


def test_more_inner_steps_at_test_share_the_meta_parameters():
    model, episode = linear_model(5, 3), classification_episode(jax.random.key(0))
    one, ten = (
        metajax.maml(model, metajax.cross_entropy, rule=optax.sgd(0.4), steps=steps)
        for steps in (1, 10)
    )
    meta = one.init(jax.random.key(1), episode.support.inputs)

    def support_loss(learner):
        fast = learner.adapt(
            meta, learner.start(meta, jax.random.key(2)), jax.random.key(3), episode.support
        )
        return metajax.cross_entropy(
            learner.predict(meta, fast, episode.support.inputs), episode.support
        )

    assert support_loss(ten) < support_loss(one)


def test_zero_steps_predict_as_meta_learned():
    model, episode = linear_model(5, 3), classification_episode(jax.random.key(0))
    learner = metajax.maml(model, metajax.cross_entropy, rule=optax.sgd(0.4), steps=0)
    meta, fast = adapted(learner, episode)
    jax.tree.map(np.testing.assert_array_equal, fast.params, meta.params)


def test_invalid_options_are_refused():
    with pytest.raises(ValueError, match="steps is -1"):
        metajax.maml(linear_model(5, 3), metajax.cross_entropy, rule=optax.sgd(0.4), steps=-1)
    with pytest.raises(TypeError, match=r"0\.4 is no optax transformation"):
        metajax.maml(linear_model(5, 3), metajax.cross_entropy, rule=0.4)
