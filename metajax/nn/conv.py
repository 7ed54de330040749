"""Two-dimensional convolution whose derivatives, of any order and mode, have a choice of implementations.

`lax.conv_general_dilated` is fast for one set of weights that is differentiated once. `jax.vmap` over the
weights of many tasks makes it a grouped convolution, and the derivatives of its gradients, which
second-order meta-learning needs, are convolutions with kernels as large as images. On a CPU XLA runs these
up to hundreds of times slower than the same arithmetic as a matrix product or as an ordinary convolution.
"""

import jax
import jax.numpy as jnp

from metajax.deprecation import renamed_arguments
from metajax.nn import conv_primitives
from metajax.nn.conv_implementations import NAMES, Geometry, Implementations

Array = jax.Array

PADDINGS = ("SAME", "VALID")
PLAIN = "plain"
"""Implementation by `lax.conv_general_dilated` and its own derivatives, which programs that leave JAX use."""


@renamed_arguments(kernels="implementation")
def conv2d(
    inputs: Array,
    kernel: Array,
    *,
    strides: tuple[int, int] = (1, 1),
    padding: str = "SAME",
    implementation: str | Implementations | None = None,
) -> Array:
    """Convolves images with a kernel, like `lax.conv_general_dilated`.

    It can be differentiated to any order, in forward and reverse mode, and vectorized over images, kernels or
    both (tasks with their own weights).

    Args:
      inputs: Float images [B, H, W, C].
      kernel: Float weights [h, w, C, F]; operands are promoted to their common dtype.
      strides: Vertical and horizontal stride, two ints of at least 1.
      padding: "SAME" pads with zeros as XLA does, so that H' = ceil(H / stride), with the odd row or column
        at the bottom or right; "VALID" does not pad.
      implementation: Implementation of the convolution and its gradients: "matmul", "lax" or "grouped" for
        all three, or `Implementations` with a name for each; see `metajax.nn.conv_implementations`. None
        chooses the fastest one known for the backend and shape. "plain" is `lax.conv_general_dilated` with
        its own derivatives: slower for many tasks, and the only one whose number of images B may be
        symbolic, as `jax.export` has it.

    Returns:
      Float images [B, H', W', F].

    Raises:
      ValueError: If ranks, channels, strides, padding or implementation do not fit, or the kernel is larger
        than an unpadded image.

    Example:
      >>> conv2d(jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 16)), strides=(2, 2)).shape
      (2, 4, 4, 16)
    """
    _check(inputs, kernel, strides, padding)
    dtype = jnp.result_type(inputs, kernel)
    inputs, kernel = inputs.astype(dtype), kernel.astype(dtype)
    (height, width), (rows, columns) = inputs.shape[1:3], kernel.shape[:2]
    down, across = strides
    pads = (_pads(height, rows, down, padding), _pads(width, columns, across, padding))
    if implementation == PLAIN:
        images = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(inputs, kernel, strides, pads, dimension_numbers=images)
    geometry = Geometry((height, width), (rows, columns), (down, across), pads)
    return conv_primitives.conv(inputs[None], kernel[None], geometry, _names(implementation))[0]


def _names(implementation: str | Implementations | None) -> Implementations:
    """Resolves an option to a name, or None, for each of the three computations."""
    names = (
        implementation
        if isinstance(implementation, Implementations)
        else Implementations(*[implementation] * 3)
    )
    for name in names:
        if name is not None and name not in NAMES:
            raise ValueError(
                f"There is no implementation {name!r}; use one of {', '.join(NAMES)}, or None."
            )
    return names


def _pads(size: int, extent: int, stride: int, padding: str) -> tuple[int, int]:
    """Computes the numbers of zeros before and after `size` entries, for a kernel of length `extent`."""
    if padding == "VALID":
        return 0, 0
    outputs = -(-size // stride)
    total = max((outputs - 1) * stride + extent - size, 0)
    return total // 2, total - total // 2


def _check(inputs: Array, kernel: Array, strides: tuple[int, int], padding: str) -> None:
    """Raises a ValueError unless shapes and options fit."""
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
