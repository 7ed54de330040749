"""Attribution of an answer to the parts of an input."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from metajax.types import Array

# input [...] -> scalar score, such as the probability of a class.
ScalarFn = Callable[[Array], Array]


def integrated_gradients(
    score: ScalarFn, inputs: Array, baseline: Array, *, steps: int = 64, power: float = 1.0
) -> Array:
    """Attributes a score to the numbers of an input, along the straight way from a baseline.

    The sum over all numbers is score(inputs) - score(baseline), up to the error of the midpoint rule. A
    network that normalizes each input by its own statistics (group or layer norm) changes within a short part
    of the way, next to a constant baseline: a `power` of 4 finds what equal steps miss there.

    Args:
      score: Function input [...] -> scalar.
      inputs: Input [...].
      baseline: Input [...] that means "nothing", such as a picture of the mean color.
      steps: Number of gradients S.
      power: Exponent p of the ends (k / S)**p of the S parts of the way, 1 or more; above 1 they are shorter
        toward the baseline.

    Returns:
      Attributions [...], positive where a number speaks for the score.

    Raises:
      ValueError: If `steps` or `power` is below 1.

    Example:
      >>> integrated_gradients(lambda x: x[0] * x[1], jnp.array([2.0, 3.0]), jnp.zeros(2)).tolist()
      [3.0, 3.0]

    Reference: Sundararajan et al., 2017 (https://arxiv.org/abs/1703.01365), equation 1.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; use 1 or more.")
    if power < 1:
        raise ValueError(f"power is {power}; use 1 or more.")
    chex.assert_equal_shape([inputs, baseline])
    ends = (jnp.arange(steps + 1, dtype=inputs.dtype) / steps) ** power

    def add(total: Array, part: tuple[Array, Array]) -> tuple[Array, None]:
        start, end = part
        point = baseline + (start + end) / 2 * (inputs - baseline)
        return total + (end - start) * jax.grad(score)(point), None

    total, _ = jax.lax.scan(add, jnp.zeros_like(inputs), (ends[:-1], ends[1:]))
    return (inputs - baseline) * total


def occlusion(
    score: ScalarFn, image: Array, baseline: Array, *, patch: int, stride: int = 1
) -> Array:
    """Measures how much the score falls when a patch of the image is covered.

    Args:
      score: Function image [H, W, C] -> scalar.
      image: Image [H, W, C].
      baseline: Image [H, W, C] to cover with.
      patch: Side of the square patch in pixels.
      stride: Pixels between neighboring patches.

    Returns:
      Mean fall of the score over the patches that cover a pixel, [H, W]; 0 where none does.

    Raises:
      ValueError: If the patch does not fit into the image, or the stride is below 1.

    Example:
      >>> image = jnp.zeros((4, 4, 1)).at[0, 0].set(1.0)
      >>> occlusion(jnp.sum, image, jnp.zeros_like(image), patch=1)[0].tolist()
      [1.0, 0.0, 0.0, 0.0]

    Reference: Zeiler and Fergus, 2014 (https://arxiv.org/abs/1311.2901), section 4.2.
    """
    chex.assert_rank(image, 3)
    chex.assert_equal_shape([image, baseline])
    height, width, _ = image.shape
    if not 1 <= patch <= min(height, width):
        raise ValueError(f"patch is {patch}; use 1 to {min(height, width)}.")
    if stride < 1:
        raise ValueError(f"stride is {stride}; use 1 or more.")
    tops, lefts = (
        jnp.arange(0, height - patch + 1, stride),
        jnp.arange(0, width - patch + 1, stride),
    )
    corners = jnp.stack(jnp.meshgrid(tops, lefts, indexing="ij"), -1).reshape(-1, 2)
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)

    def covered(corner: Array) -> Array:
        top, left = corner
        return (rows >= top) & (rows < top + patch) & (columns >= left) & (columns < left + patch)

    def fall(corner: Array) -> Array:
        return whole - score(jnp.where(covered(corner)[..., None], baseline, image))

    whole = score(image)
    falls, masks = jax.lax.map(fall, corners), jax.vmap(covered)(corners)
    total, times = jnp.tensordot(falls, masks.astype(falls.dtype), 1), masks.sum(0)
    return total / jnp.maximum(times, 1)


def insertion_deletion(
    score: ScalarFn, image: Array, baseline: Array, attribution: Array, *, steps: int = 32
) -> tuple[Array, Array]:
    """Scores an attribution by what its most important pixels do, put in or taken away.

    Args:
      score: Function image [H, W, C] -> scalar.
      image: Image [H, W, C].
      baseline: Image [H, W, C] without the pixels.
      attribution: Importance of each pixel, [H, W].
      steps: Number of steps from no pixel to all.

    Returns:
      Mean score while pixels are inserted into the baseline, most important first, and mean score while they
      are deleted from the image; a good attribution has a large first and a small second number.

    Raises:
      ValueError: If `steps` is below 1.

    Example:
      >>> image = jnp.arange(4.0).reshape(2, 2, 1)
      >>> insertion, deletion = insertion_deletion(jnp.sum, image, 0 * image, image[..., 0], steps=4)
      >>> insertion.item(), deletion.item()
      (3.75, 1.25)

    Reference: Petsiuk et al., 2018 (https://arxiv.org/abs/1806.07421), section 3.2.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; use 1 or more.")
    chex.assert_equal_shape_prefix([image, baseline, attribution], 2)
    order = jnp.argsort(jnp.argsort(-attribution.reshape(-1))).reshape(attribution.shape)
    counts = jnp.round(jnp.arange(steps + 1) * order.size / steps)

    def both(count: Array) -> tuple[Array, Array]:
        chosen = (order < count)[..., None]
        return score(jnp.where(chosen, image, baseline)), score(jnp.where(chosen, baseline, image))

    inserted, deleted = jax.lax.map(both, counts)

    def area(values: Array) -> Array:  # by the trapezoid rule
        return (values[1:] + values[:-1]).mean() / 2

    return area(inserted), area(deleted)
