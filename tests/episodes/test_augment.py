import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.episodes import augment


def test_shift_moves_every_way_and_fills_with_the_edge():
    image = jnp.zeros((7, 7, 1)).at[3, 3].set(1.0)
    keys = jax.random.split(jax.random.key(0), 400)
    moved = jax.vmap(lambda key: augment.shift(key, image, most=2))(keys)
    places = {tuple(np.argwhere(np.asarray(m[..., 0]))[0]) for m in moved}
    assert places == {(i, j) for i in range(1, 6) for j in range(1, 6)}
    full = jax.vmap(lambda key: augment.shift(key, jnp.ones((5, 5, 1))))(keys)
    assert full.min() == 1


def test_flip_mirrors_half_the_time():
    image = jnp.arange(4.0).reshape(1, 4, 1)
    keys = jax.random.split(jax.random.key(0), 1000)
    flipped = jax.vmap(lambda key: augment.flip(key, image))(keys)[:, 0, 0, 0] == 3
    assert 0.45 < flipped.mean() < 0.55


def test_compose_chains_by_name():
    assert augment.compose([]) is None
    image = jnp.arange(32.0).reshape(4, 8, 1)
    both = augment.compose(["shift", "flip"])
    first, second = jax.random.split(jax.random.key(3))
    expected = augment.flip(second, augment.shift(first, image))
    np.testing.assert_array_equal(both(jax.random.key(3), image), expected)
    with pytest.raises(ValueError, match="'blur'; use shift, flip"):
        augment.compose(["blur"])
