"""Implementations of a convolution and its two gradients, and the choice of one for a backend and shape.

The convolution y = C(x, w) is bilinear, and so are the gradients of <y, C(x, w)> with respect to x and to
w. Each of the three has these implementations:

  matmul   patches as rows of a matrix (im2col), then one matrix product for all tasks.
  lax      one task after another, each of the three as an ordinary `lax.conv_general_dilated`.
  grouped  `lax.conv_general_dilated` with a group of channels for each task.

Here x is [T, B, H, W, C], w is [T, h, w, C, F] and y is [T, B, H', W', F]: each task has its own weights.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from metajax.deprecation import renamed_attributes
from metajax.manual_axes import vary_alike

Array = jax.Array
Pads = tuple[tuple[int, int], tuple[int, int]]

NAMES = ("matmul", "lax", "grouped")
_IMAGES = ("NHWC", "HWIO", "NHWC")
# Positions (images x height x width) that one step of the weight gradient contracts over. On a CPU its
# operands then stay in a core's cache: 75 images of 14 x 14 x 64 take 10.7 ms in such steps, and 34 ms in one
# (a core of an Intel Xeon with 2 MB of cache, jax 0.10.2).
_CHUNK = 1600


class Geometry(NamedTuple):
    """Static shape of a convolution, without the numbers of images and channels.

    Attributes:
      size: Height and width of the input images.
      window: Height and width of the kernel.
      strides: Vertical and horizontal stride.
      pads: Zeros (before, after) the rows, and (before, after) the columns.
    """

    size: tuple[int, int]
    window: tuple[int, int]
    strides: tuple[int, int]
    pads: Pads

    @property
    def outputs(self) -> tuple[int, int]:
        """Height and width of the output images."""
        height, width = (
            (n + low + high - k) // s + 1
            for n, k, s, (low, high) in zip(
                self.size, self.window, self.strides, self.pads, strict=True
            )
        )
        return height, width


class Implementations(NamedTuple):
    """Names of the implementations of a convolution and its gradients.

    Attributes:
      forward: Name of the implementation of the convolution: "matmul", "lax" or "grouped"; None chooses the
        fastest one known for the backend and shape.
      input_grad: Name for the gradient with respect to the images, or None.
      weight_grad: Name for the gradient with respect to the weights, or None.

    Example:
      >>> mixed = Implementations(forward="lax", weight_grad="matmul")
      >>> metajax.nn.conv2d(jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 2)), implementation=mixed).shape
      (1, 4, 4, 2)
    """

    forward: str | None = None
    input_grad: str | None = None
    weight_grad: str | None = None


def forward(x: Array, w: Array, *, geometry: Geometry, implementation: str) -> Array:
    """Computes the convolution y = C(x, w).

    Args:
      x: Images [T, B, H, W, C].
      w: Weights [T, h, w, C, F].
      geometry: Static shape of the convolution.
      implementation: Name of the implementation, one of `NAMES`.

    Returns:
      Images y [T, B, H', W', F].
    """
    return _FORWARD[implementation](x, w, geometry)


def input_grad(y: Array, w: Array, *, geometry: Geometry, implementation: str) -> Array:
    """Computes the gradient of <y, C(x, w)> with respect to x.

    Args:
      y: Cotangents of the outputs, [T, B, H', W', F].
      w: Weights [T, h, w, C, F].
      geometry: Static shape of the convolution.
      implementation: Name of the implementation, one of `NAMES`.

    Returns:
      Gradients [T, B, H, W, C].
    """
    return _INPUT_GRAD[implementation](y, w, geometry)


def weight_grad(x: Array, y: Array, *, geometry: Geometry, implementation: str) -> Array:
    """Computes the gradient of <y, C(x, w)> with respect to w.

    Args:
      x: Images [T, B, H, W, C].
      y: Cotangents of the outputs, [T, B, H', W', F].
      geometry: Static shape of the convolution.
      implementation: Name of the implementation, one of `NAMES`.

    Returns:
      Gradients [T, h, w, C, F].
    """
    return _WEIGHT_GRAD[implementation](x, y, geometry)


def quickest(platform: str, geometry: Geometry) -> str:
    """Chooses the fastest implementation known for a platform, from measurements.

    On two cores of an Intel Xeon, jax 0.10.2, second-order MAML of conv4-64 one task at a time: with
    max-pooling 25.9 tasks/s by lax and 12.7 by matmul (15 queries per class); with strides 184 by lax and
    203 by matmul (5 queries). No other platform has been measured.

    Args:
      platform: Name of the platform: "cpu", "cuda", "rocm" or "tpu".
      geometry: Static shape of the convolution.

    Returns:
      Name of the implementation, one of `NAMES`.
    """
    if platform != "cpu":
        return "matmul"
    # The gradients of strided convolutions, as ordinary ones, would mostly multiply by the zeros of dilation.
    return "matmul" if max(geometry.strides) > 1 else "lax"


def _matmul_forward(x: Array, w: Array, geometry: Geometry) -> Array:
    """Multiplies patches by the weights as a matrix."""
    return jnp.einsum("tbhwk,tkf->tbhwf", _patches(x, geometry), _rows(w))


def _matmul_input_grad(y: Array, w: Array, geometry: Geometry) -> Array:
    """Multiplies outputs by the transposed weights, and adds the patches up to images (col2im)."""
    tasks, batch = y.shape[:2]
    like = jax.ShapeDtypeStruct((tasks, batch, *geometry.size, w.shape[3]), y.dtype)
    add_patches = jax.linear_transpose(lambda x: _patches(x, geometry), like)
    return add_patches(jnp.einsum("tbhwf,tkf->tbhwk", y, _rows(w)))[0]


def _matmul_weight_grad(x: Array, y: Array, geometry: Geometry) -> Array:
    """Multiplies transposed patches by the outputs."""
    grad = jnp.einsum("tbhwk,tbhwf->tkf", _patches(x, geometry), y)
    return grad.reshape(x.shape[0], *geometry.window, x.shape[-1], y.shape[-1])


def _rows(w: Array) -> Array:
    """Reshapes weights to matrices [T, h * w * C, F]."""
    tasks, *_, filters = w.shape
    return w.reshape(tasks, -1, filters)


def _patches(x: Array, geometry: Geometry) -> Array:
    """Collects the inputs of each output in its channels: [T, B, H', W', h * w * C] (im2col)."""
    if any(low or high for low, high in geometry.pads):
        x = jnp.pad(x, ((0, 0), (0, 0), *geometry.pads, (0, 0)))
    spans = [(n - 1) * s + 1 for n, s in zip(geometry.outputs, geometry.strides, strict=True)]
    (down, across), (height, width) = geometry.strides, spans
    slices = [
        x[:, :, top : top + height : down, left : left + width : across]
        for top in range(geometry.window[0])
        for left in range(geometry.window[1])
    ]
    return jnp.concatenate(slices, axis=-1)


def _task_by_task(one: Callable[..., Array]) -> Callable[..., Array]:
    """Loops over tasks: a grouped convolution, which `lax` makes of many tasks' weights, is slow on a CPU."""

    def each(a, b, geometry):
        if a.shape[0] == 1:
            return one(a[0], b[0], geometry)[None]
        return lax.map(lambda pair: one(*pair, geometry), (a, b))

    return each


def _lax_forward(x: Array, w: Array, geometry: Geometry) -> Array:
    """Convolves the images of one task, x [B, H, W, C] with w [h, w, C, F]."""
    return lax.conv_general_dilated(
        *_with_even_channels(x, w), geometry.strides, geometry.pads, dimension_numbers=_IMAGES
    )


def _with_even_channels(x: Array, w: Array) -> tuple[Array, Array]:
    """Adds a channel of zeros to an odd number of channels, with which XLA's CPU backend is slow.

    75 images of 84 x 84 under 32 filters take 46.6, 16.8, 51.5 and 21.7 ms with 3, 4, 5 and 6 channels (one
    core of an Intel Xeon, jax 0.10.2). XLA has separate code for a single channel. No other backend has been
    measured; for those `lax` is not the first choice.
    """
    channels = x.shape[-1]
    if channels == 1 or channels % 2 == 0:
        return x, w
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, 1))), jnp.pad(
        w, ((0, 0), (0, 0), (0, 1), (0, 0))
    )


def _lax_input_grad(y: Array, w: Array, geometry: Geometry) -> Array:
    """Convolves outputs with weights to the gradient of one task's images."""
    # The gradient is y, dilated by the strides, convolved with the kernel rotated by 180 degrees.
    rotated = jnp.flip(w, (0, 1)).transpose(0, 1, 3, 2)
    return lax.conv_general_dilated(
        *_with_even_channels(y, rotated),
        (1, 1),
        _opposite_pads(geometry),
        lhs_dilation=geometry.strides,
        dimension_numbers=_IMAGES,
    )


def _opposite_pads(geometry: Geometry) -> Pads:
    """Computes the padding with which the gradient of the images has their size n.

    Padded, the dilated outputs of `span` rows have n + k - 1, of which a kernel of k rows leaves n.
    """

    def along(axis: int) -> tuple[int, int]:
        n, k, s = geometry.size[axis], geometry.window[axis], geometry.strides[axis]
        low = k - 1 - geometry.pads[axis][0]
        span = (geometry.outputs[axis] - 1) * s + 1
        return low, n + k - 1 - span - low

    return along(0), along(1)


def _lax_weight_grad(x: Array, y: Array, geometry: Geometry) -> Array:
    """Convolves the images of each channel with the outputs; the batch takes the place of channels.

    `lax`'s own gradient has the same contraction, but in a layout for which XLA's CPU backend has no fast
    code: in the body of a loop it was 100 to 400 times slower.
    """
    batch, (height, width) = x.shape[0], geometry.outputs
    # An even number of images: 3 or 5 of them, of 32 channels, take three times as long as 2, 4 or 6.
    chunk = max(2, min(8, _CHUNK // (height * width) // 2 * 2))
    chunks, rest = divmod(batch, chunk)
    if batch == 1 or (chunks == 1 and not rest):
        return _lax_weight_grad_of_chunk(x, y, geometry)
    # Sums are float32 at least: hundreds of chunks summed in bfloat16 would be a third off.
    exact = jnp.promote_types(x.dtype, jnp.float32)
    shape = (*geometry.window, x.shape[-1], y.shape[-1])
    total, *_ = vary_alike(jnp.zeros(shape, exact), x, y)
    if rest:
        padding = rest % 2 if rest > 1 else 0
        images, outputs = (jnp.pad(a[-rest:], ((0, padding), *[(0, 0)] * 3)) for a in (x, y))
        total = _lax_weight_grad_of_chunk(images, outputs, geometry).astype(exact)
    if not chunks:
        return total.astype(x.dtype)

    def add(total, start):
        # Slices are read in place; operands with a remainder, reshaped into chunks, would be copied.
        images, outputs = (lax.dynamic_slice_in_dim(a, start, chunk) for a in (x, y))
        return total + _lax_weight_grad_of_chunk(images, outputs, geometry).astype(exact), None

    return lax.scan(add, total, jnp.arange(chunks) * chunk)[0].astype(x.dtype)


def _lax_weight_grad_of_chunk(x: Array, y: Array, geometry: Geometry) -> Array:
    """Computes the weight gradient [h, w, C, F] of a few images, in one convolution."""
    pads = []
    for axis, (n, k, s) in enumerate(
        zip(geometry.size, geometry.window, geometry.strides, strict=True)
    ):
        # A negative padding crops rows at the end that no window reaches; else the result would outgrow the
        # kernel.
        low = geometry.pads[axis][0]
        pads.append((low, (geometry.outputs[axis] - 1) * s + k - n - low))
    grad = lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0),
        y.transpose(1, 2, 0, 3),
        (1, 1),
        pads,
        rhs_dilation=geometry.strides,
        dimension_numbers=_IMAGES,
    )
    return grad.transpose(1, 2, 0, 3)


def _grouped_forward(x: Array, w: Array, geometry: Geometry) -> Array:
    """Convolves all tasks at once, their channels side by side in groups."""
    tasks, batch, height, width, channels = x.shape
    filters = w.shape[-1]
    y = lax.conv_general_dilated(
        x.transpose(1, 2, 3, 0, 4).reshape(batch, height, width, tasks * channels),
        w.transpose(1, 2, 3, 0, 4).reshape(*w.shape[1:4], tasks * filters),
        geometry.strides,
        geometry.pads,
        dimension_numbers=_IMAGES,
        feature_group_count=tasks,
    )
    return y.reshape(*y.shape[:3], tasks, filters).transpose(3, 0, 1, 2, 4)


def _grouped_input_grad(y: Array, w: Array, geometry: Geometry) -> Array:
    """Transposes the grouped convolution with respect to the images."""
    like = jax.ShapeDtypeStruct((*y.shape[:2], *geometry.size, w.shape[3]), y.dtype)
    return jax.linear_transpose(lambda x: _grouped_forward(x, w, geometry), like)(y)[0]


def _grouped_weight_grad(x: Array, y: Array, geometry: Geometry) -> Array:
    """Transposes the grouped convolution with respect to the weights."""
    like = jax.ShapeDtypeStruct((x.shape[0], *geometry.window, x.shape[-1], y.shape[-1]), x.dtype)
    return jax.linear_transpose(lambda w: _grouped_forward(x, w, geometry), like)(y)[0]


_FORWARD = {
    "matmul": _matmul_forward,
    "lax": _task_by_task(_lax_forward),
    "grouped": _grouped_forward,
}
_INPUT_GRAD = {
    "matmul": _matmul_input_grad,
    "lax": _task_by_task(_lax_input_grad),
    "grouped": _grouped_input_grad,
}
_WEIGHT_GRAD = {
    "matmul": _matmul_weight_grad,
    "lax": _task_by_task(_lax_weight_grad),
    "grouped": _grouped_weight_grad,
}

__getattr__ = renamed_attributes(__name__, {"Kernels": "metajax.nn.Implementations"})
