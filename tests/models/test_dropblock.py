"""DropBlock, and its places in networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

from metajax import models
from metajax.models.dropblock import NOISE, DropBlock

KEY = jax.random.key(0)


def dropped(module, shape, key=KEY):
    return np.asarray(module.apply({}, jnp.ones(shape), rngs={NOISE: key}))


def test_it_drops_whole_blocks_at_its_rate_and_keeps_the_mean():
    out = dropped(DropBlock(0.2, size=3), (64, 12, 12, 16))
    zero = out == 0
    # A number is kept if none of the blocks over it starts: eq. 1 gives the probability that one does.
    starts = 0.2 / 9 * 12**2 / 10**2
    over = np.convolve(np.ones(10), np.ones(3))  # number of blocks over each place of an axis
    expected = 1 - (1 - starts) ** np.outer(over, over)
    np.testing.assert_allclose(zero.mean((0, 3)), expected, atol=0.05)
    np.testing.assert_allclose(zero.mean(), expected.mean(), atol=0.012)
    np.testing.assert_allclose(out.mean(), 1, rtol=1e-5)
    np.testing.assert_allclose(out[~zero], 1 / (1 - zero.mean()), rtol=1e-5)
    # Every zero lies in a block of 3 x 3 zeros, and channels drop independently.
    blocks = np.lib.stride_tricks.sliding_window_view(zero, (3, 3), axis=(1, 2)).all((-2, -1))
    covered = np.zeros_like(zero)
    for down in range(3):
        for across in range(3):
            covered[:, down : down + 10, across : across + 10] |= blocks
    np.testing.assert_array_equal(covered, zero)
    assert (zero[..., 0] != zero[..., 1]).any()


def test_a_block_of_one_is_dropout_and_a_larger_one_is_cut_to_the_map():
    assert abs((dropped(DropBlock(0.3), (16, 8, 8, 16)) == 0).mean() - 0.3) < 0.01
    small = dropped(DropBlock(0.3, size=5), (64, 2, 2, 16)) == 0
    assert abs(small.mean() - 0.3) < 0.05 and (small == small[:, :1, :1]).all()


def test_without_noise_it_is_the_identity_and_a_rate_of_one_is_refused():
    np.testing.assert_array_equal(DropBlock(0.5).apply({}, jnp.ones((1, 2, 2, 1))), 1.0)
    with pytest.raises(ValueError, match=r"rate to drop is 1\.0; use one from 0"):
        DropBlock(1.0)
    with pytest.raises(ValueError, match="side of a block is 0; use 1 or more"):
        DropBlock(0.5, size=0)


def test_it_drops_the_same_in_64_bits():
    shape, module = (2, 6, 6, 3), DropBlock(0.3, size=2)
    narrow = dropped(module, shape)
    with jax.enable_x64(True):
        wide = module.apply({}, jnp.ones(shape, jnp.float32), rngs={NOISE: KEY})
    assert wide.dtype == jnp.float32
    np.testing.assert_array_equal(wide, narrow)


def test_half_precision_is_scaled_by_the_kept_share():
    ones = jnp.ones((16, 16, 16, 32), jnp.float16)  # 131,072 of them, more than the largest float16
    out = np.asarray(DropBlock(0.5).apply({}, ones, rngs={NOISE: KEY}), np.float64)
    assert abs(out.mean() - 1) < 2e-3


@pytest.mark.parametrize(
    ("module", "where"),
    [
        (
            models.ResNet12(None, filters=(2, 3, 4, 5), drop_rate=0.3),
            # Single numbers after the first two blocks, blocks of five after the last.
            {
                ("block0", "drop"): (1, (1, 8, 8, 2)),
                ("block1", "drop"): (1, (1, 4, 4, 3)),
                ("block2", "drop"): (5, (1, 2, 2, 4)),
                ("block3", "drop"): (5, (1, 1, 1, 5)),
            },
        ),
        (
            models.WideConv4(None, filters=(2, 3, 4, 5), drop_rate=0.3),
            {("drop2",): (5, (1, 2, 2, 4)), ("drop3",): (5, (1, 1, 1, 5))},
        ),
    ],
    ids=["resnet12", "conv4_wide"],
)
def test_networks_drop_behind_their_blocks(module, where):
    images, found = jax.random.normal(KEY, (1, 16, 16, 1)), {}
    params = module.init(KEY, images)

    def watched(method, args, kwargs, context):
        if not isinstance(context.module, DropBlock):
            return method(*args, **kwargs)
        assert context.module.rate == 0.3
        found[context.module.path] = (context.module.size, args[0].shape)
        return jnp.full_like(args[0], len(found))  # later layers read this, and features hold it

    with linen.intercept_methods(watched):
        features = module.apply(params, images)
    assert found == where
    if "block3" in str(where):
        np.testing.assert_array_equal(features, 4.0)  # the mean of the last one over positions
    else:
        np.testing.assert_array_equal(features, [[1.0] * 16 + [2.0] * 5])
