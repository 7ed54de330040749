"""Two-dimensional convolution as one matrix product.

`lax.conv_general_dilated` is quick for one set of weights that is differentiated once. `jax.vmap`
over the weights of many tasks makes it a grouped convolution, and the derivatives of its gradients,
which second-order meta-learning needs, are convolutions with kernels as large as images. On a CPU
XLA runs these eight to forty times slower than the same arithmetic as a matrix product, which stays
one under `vmap` and under any order of differentiation.
"""

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array

PADDINGS = ("SAME", "VALID")


def conv2d(
    inputs: Array,
    kernel: Array,
    *,
    strides: tuple[int, int] = (1, 1),
    padding: str = "SAME",
) -> Array:
    """Convolves images with a kernel, like `lax.conv_general_dilated`, by one matrix product.

    The strided slices of the padded images, one for each position in the kernel, are laid side by
    side (im2col), so the patches take h * w / (stride area) times the memory of the images.

    Args:
      inputs: [B, H, W, C].
      kernel: [h, w, C, F].
      strides: steps down and across; both at least 1.
      padding: "SAME" pads with zeros as XLA does, so that H' = ceil(H / stride), with the odd row
        or column at the bottom or right; "VALID" does not pad.

    Returns:
      [B, H', W', F].

    Raises:
      ValueError: if ranks, channels, strides or padding do not fit, or the kernel is larger than an
        unpadded image.
    """
    _check(inputs, kernel, strides, padding)
    *window, channels, filters = kernel.shape
    pads = [
        _pads(size, extent, stride, padding)
        for size, extent, stride in zip(inputs.shape[1:3], window, strides, strict=True)
    ]
    if any(low or high for low, high in pads):
        inputs = jnp.pad(inputs, ((0, 0), *pads, (0, 0)))
    patches = _patches(inputs, window, strides)
    return patches @ kernel.reshape(window[0] * window[1] * channels, filters)


def _patches(images: Array, window: list[int], strides: tuple[int, int]) -> Array:
    """Lays the neighbourhood of each output in its channels: [B, H', W', h * w * C]."""
    batch, *size, channels = images.shape
    spans = [(n - k) // s * s + 1 for n, k, s in zip(size, window, strides, strict=True)]
    slices = [
        lax.slice(
            images,
            (0, top, left, 0),
            (batch, top + spans[0], left + spans[1], channels),
            (1, *strides, 1),
        )
        for top in range(window[0])
        for left in range(window[1])
    ]
    return jnp.concatenate(slices, axis=-1)


def _pads(size: int, extent: int, stride: int, padding: str) -> tuple[int, int]:
    """How many zeros to put before and after `size` entries."""
    if padding == "VALID":
        return 0, 0
    outputs = -(-size // stride)
    total = max((outputs - 1) * stride + extent - size, 0)
    return total // 2, total - total // 2


def _check(inputs: Array, kernel: Array, strides: tuple[int, int], padding: str) -> None:
    if inputs.ndim != 4 or kernel.ndim != 4:
        raise ValueError(
            f"conv2d takes inputs [B, H, W, C] and a kernel [h, w, C, F], not {inputs.shape} and "
            f"{kernel.shape}; add the missing axes, or vmap over the extra ones."
        )
    if inputs.shape[-1] != kernel.shape[2]:
        raise ValueError(
            f"Inputs {inputs.shape} have {inputs.shape[-1]} channels, but the kernel "
            f"{kernel.shape} reads {kernel.shape[2]}; images are [B, H, W, C] and kernels "
            "[h, w, C, F]."
        )
    if padding not in PADDINGS:
        raise ValueError(f"Padding {padding!r} is not known; use one of {', '.join(PADDINGS)}.")
    if len(strides) != 2 or min(strides) < 1:
        raise ValueError(f"Strides {strides} are not two integers of at least 1, such as (2, 2).")
    if padding == "VALID" and any(
        n < k for n, k in zip(inputs.shape[1:3], kernel.shape[:2], strict=True)
    ):
        raise ValueError(
            f"A kernel of {kernel.shape[:2]} does not fit in images of {inputs.shape[1:3]}; use "
            'larger images or padding="SAME".'
        )
