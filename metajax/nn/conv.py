"""Two-dimensional convolution whose derivatives, of any order and mode, run on kernels of our choice.

`lax.conv_general_dilated` is quick for one set of weights that is differentiated once. `jax.vmap` over the
weights of many tasks makes it a grouped convolution, and the derivatives of its gradients, which
second-order meta-learning needs, are convolutions with kernels as large as images. On a CPU XLA runs these
up to hundreds of times slower than the same arithmetic as a matrix product or as an ordinary convolution.
"""

import jax
import jax.numpy as jnp

from metajax.nn import conv_primitives
from metajax.nn.conv_implementations import NAMES, Geometry, Implementations

Array = jax.Array

PADDINGS = ("SAME", "VALID")


def conv2d(
    inputs: Array,
    kernel: Array,
    *,
    strides: tuple[int, int] = (1, 1),
    padding: str = "SAME",
    implementation: str | Implementations | None = None,
) -> Array:
    """Convolves images with a kernel, like `lax.conv_general_dilated`.

    It may be differentiated to any order, in forward and reverse mode, and vectorised over images, kernels
    or both (tasks with weights of their own).

    Args:
      inputs: [B, H, W, C].
      kernel: [h, w, C, F], of the inputs' dtype or one that promotes with it.
      strides: steps down and across; both at least 1.
      padding: "SAME" pads with zeros as XLA does, so that H' = ceil(H / stride), with the odd row or column
        at the bottom or right; "VALID" does not pad.
      implementation: how to compute it and its gradients: "matmul", "lax" or "grouped" for all three, or
        `Implementations` with a name for each; see `metajax.nn.conv_implementations`. None takes the
        quickest known for the backend and shape.

    Returns:
      [B, H', W', F].

    Raises:
      ValueError: if ranks, channels, strides, padding or kernels do not fit, or the kernel is larger than
        an unpadded image.
    """
    _check(inputs, kernel, strides, padding)
    inputs, kernel = (
        operand.astype(jnp.result_type(inputs, kernel)) for operand in (inputs, kernel)
    )
    window = kernel.shape[:2]
    pads = tuple(
        _pads(size, extent, stride, padding)
        for size, extent, stride in zip(inputs.shape[1:3], window, strides, strict=True)
    )
    geometry = Geometry(inputs.shape[1:3], window, tuple(strides), pads)
    return conv_primitives.conv(inputs[None], kernel[None], geometry, _names(implementation))[0]


def _names(implementation: str | Implementations | None) -> Implementations:
    names = (
        implementation
        if isinstance(implementation, Implementations)
        else Implementations(*[implementation] * 3)
    )
    for name in names:
        if name is not None and name not in NAMES:
            raise ValueError(
                f"There is no kernel {name!r}; use one of {', '.join(NAMES)}, or None."
            )
    return names


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
