"""The page of code for inner loops of one's own: its derivative is true, and what it learns helps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.examples import own_inner_loop as page


def by_hand(hyper, noisy, clean):
    """The page's `clean_loss`, as a plain Python loop over `jax.grad`."""
    params = {"kernel": jnp.zeros((page.FEATURES, page.CLASSES)), "bias": jnp.zeros(page.CLASSES)}
    momenta = jax.tree.map(jnp.zeros_like, params)
    for log_rate in hyper.log_rates:
        grads = jax.grad(page.weighted_loss)(params, page.Operands(hyper, *noisy))
        momenta = jax.tree.map(lambda m, g: 0.9 * m + g, momenta, grads)
        params = jax.tree.map(lambda p, m, r=log_rate: p - jnp.exp(r) * m, params, momenta)
    return jnp.mean(page.losses_of(params, *clean))


@pytest.mark.parametrize("adjoint", ["reverse", "remat", "mixed", "recursive"])
def test_its_meta_gradient_is_that_of_a_loop_by_hand(float64, adjoint):
    rng = np.random.default_rng(0)
    noisy, clean = (
        (jnp.asarray(rng.normal(size=(n, page.FEATURES))), jnp.asarray(rng.integers(0, 4, n)))
        for n in (9, 5)
    )
    hyper = page.Hyper(jnp.asarray(rng.normal(size=6) - 2), jnp.asarray(rng.normal(size=9)))
    got = jax.jit(jax.grad(lambda hyper: page.clean_loss(hyper, noisy, clean, adjoint=adjoint)))
    want = jax.grad(by_hand)(hyper, noisy, clean)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15), got(hyper), want
    )


def test_weights_find_the_wrong_labels_and_pay(capsys):
    page.main()
    lines = capsys.readouterr().out.splitlines()
    noisy, schedule, both = (float(line.split("%")[0].split()[-1]) for line in lines[1:4])
    assert both > schedule + 10 and both > noisy + 20
    wrong, weight = (int(part.split("%")[0].split()[-1]) for part in lines[4].split(";"))
    assert weight < 0.75 * wrong
