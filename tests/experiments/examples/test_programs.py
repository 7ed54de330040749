"""The programs to read and copy run with tiny settings, and compute what their texts state."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metajax
from experiments.examples import minimal_maml, quickstart, your_data, your_learner, your_model


def numbers(text):
    return [float(number) for number in re.findall(r"-?\d+\.\d+", text)]


def test_the_quickstart_learns_within_sixty_lines(capsys):
    quickstart.main(steps=60, tasks=64)
    before, after = (numbers(line)[0] for line in capsys.readouterr().out.splitlines())
    assert after > before + 20
    with open(quickstart.__file__, encoding="utf-8") as file:
        assert len(file.readlines()) < 60


def test_every_kind_of_model_trains(capsys):
    your_model.main(steps=10)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(your_model.MODELS) == 4
    assert all(0 < number < 100 for line in lines for number in numbers(line))


def test_all_kinds_of_models_compute_the_same():
    inputs = jnp.ones((2, your_model.FEATURES))
    for model in your_model.MODELS.values():
        params = model.init(jax.random.key(0), inputs)
        assert model.apply(params, inputs).shape == (2, your_model.WAYS)
        zero = model.apply(jax.tree.map(jnp.zeros_like, params), inputs)
        np.testing.assert_array_equal(zero, jnp.zeros_like(zero))


def test_a_table_becomes_both_kinds_of_tasks(capsys):
    your_data.main(steps=2, tasks=2, shops=8)
    kinds, prices = capsys.readouterr().out.splitlines()
    assert len(numbers(kinds)) == len(numbers(prices)) == 2
    assert "nan" not in kinds + prices


def test_rows_of_a_task_are_of_one_shop():
    table = your_data.make_table(np.random.default_rng(0), shops=4)
    store = your_data.store_of(table)
    # Prices are all different, and so identify the row of the table.
    shop = dict(zip(table.price.tolist(), table.shop.tolist(), strict=True))
    episode = your_data.BY_SHOP(store, jax.random.key(0))
    prices = np.concatenate([episode.support.targets, episode.query.targets]).ravel()
    assert len({shop[price] for price in prices.tolist()}) == 1
    columns = zip(table.numbers, table.shop, table.kind, strict=True)
    numbers_of = {row.tobytes(): (shop, kind) for row, shop, kind in columns}
    episode = your_data.BY_KIND(store, jax.random.key(1))
    rows = [numbers_of[row.tobytes()] for row in np.asarray(episode.query.inputs["numbers"])]
    assert len({s for s, _ in rows}) == 1
    by_label = list(zip(episode.query.targets.tolist(), rows, strict=True))
    assert len(set(by_label)) == len({label for label, _ in by_label}) == 5


def test_a_learner_of_four_functions_trains(capsys):
    your_learner.main(steps=2, tasks=2)
    lines = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert lines == ["gaussian", "protonet", "difference"]


def test_the_gaussian_learner_is_a_protonet_under_a_flat_prior():
    """With an infinite prior variance, means are plain and variances equal where counts are."""
    encoder = metajax.Model(lambda key, inputs: {}, lambda params, inputs: inputs)
    task = metajax.toys.toy_episode(jax.random.key(0))
    gaussian = your_learner.gaussian_learner(encoder, ways=3, features=2)
    meta = your_learner.Meta({}, jnp.full(2, 30.0), jnp.full(2, jnp.log(0.5)))
    fast = gaussian.adapt(meta, gaussian.start(meta, None), None, task.support)
    found = jax.nn.softmax(gaussian.predict(meta, fast, task.query.inputs))
    means = task.support.inputs.reshape(3, 2, 2).mean(axis=1)
    distances = jnp.square(task.query.inputs[:, None] - means).sum(axis=-1)
    # Noise of 0.5, and half of it for the mean of two examples: exp(-d / (2 * 0.75)).
    np.testing.assert_allclose(found, jax.nn.softmax(-distances / 1.5), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("steps", [0, 1])
def test_minimal_maml_adapts_in_the_direction_that_its_meta_loss_scores(steps):
    params = minimal_maml.init(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), 3)
    got = minimal_maml.meta_loss(params, keys, steps=steps)
    losses = []
    for key in keys:
        support, query = minimal_maml.draw_task(key)
        adapted = params
        for _ in range(steps):
            grads = jax.grad(minimal_maml.loss)(adapted, support)
            adapted = jax.tree.map(lambda p, g: p - minimal_maml.INNER_LR * g, adapted, grads)
        losses.append(minimal_maml.loss(adapted, query))
    np.testing.assert_allclose(got, np.mean(losses), rtol=1e-5)
