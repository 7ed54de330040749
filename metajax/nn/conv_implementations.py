"""How a convolution and its two gradients are computed: the kernels, and which one runs where.

The convolution y = C(x, w) is bilinear, and so are the gradients of <y, C(x, w)> with respect to x and to
w. Each of the three is computed by the kernel that is quickest for its backend and shape:

  matmul   the neighbourhoods laid side by side (im2col), then one matrix product for all tasks.
  lax      one task after another, each of the three as an ordinary `lax.conv_general_dilated`.
  grouped  `lax.conv_general_dilated` with a group of channels for each task.

Here x is [T, B, H, W, C], w is [T, h, w, C, F] and y is [T, B, H', W', F]: tasks have weights of their own.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from metajax.manual_axes import vary_alike

Array = jax.Array
Pads = tuple[tuple[int, int], tuple[int, int]]

NAMES = ("matmul", "lax", "grouped")
_IMAGES = ("NHWC", "HWIO", "NHWC")
# Positions (images x height x width) that one step of the weight gradient contracts over. On a CPU its
# operands then stay in a core's cache: 75 images of 14 x 14 x 64 take 10.7 ms so, and 34 ms at once (a core
# of an Intel Xeon with 2 MB of cache, jax 0.10.2).
_CHUNK = 1600


class Geometry(NamedTuple):
    """What a convolution is besides its operands."""

    size: tuple[int, int]
    window: tuple[int, int]
    strides: tuple[int, int]
    pads: Pads

    @property
    def outputs(self) -> tuple[int, int]:
        """Height and width of the result."""
        return tuple(
            (n + low + high - k) // s + 1
            for n, k, s, (low, high) in zip(
                self.size, self.window, self.strides, self.pads, strict=True
            )
        )


class Implementations(NamedTuple):
    """The names of the kernels of a convolution; None is the quickest known where it runs."""

    forward: str | None = None
    input_grad: str | None = None
    weight_grad: str | None = None


def forward(x: Array, w: Array, *, geometry: Geometry, kernel: str) -> Array:
    """Convolves x [T, B, H, W, C] with w [T, h, w, C, F]."""
    return _FORWARD[kernel](x, w, geometry)


def input_grad(y: Array, w: Array, *, geometry: Geometry, kernel: str) -> Array:
    """Gradient of <y, C(x, w)> with respect to x: [T, B, H, W, C]."""
    return _INPUT_GRAD[kernel](y, w, geometry)


def weight_grad(x: Array, y: Array, *, geometry: Geometry, kernel: str) -> Array:
    """Gradient of <y, C(x, w)> with respect to w: [T, h, w, C, F]."""
    return _WEIGHT_GRAD[kernel](x, y, geometry)


def quickest(platform: str, geometry: Geometry) -> str:
    """Names the kernel to use on a platform ("cpu", "cuda", "rocm" or "tpu"), from measurements.

    On two cores of an Intel Xeon, jax 0.10.2, second-order MAML of conv4-64 one task at a time: by
    max-pooling 25.9 tasks/s with lax and 12.7 with matmul (15 queries a class); by strides 184 with lax and
    203 with matmul (5 queries). No other platform has been measured.
    """
    if platform != "cpu":
        return "matmul"
    # Spread out by strides, the gradients as ordinary convolutions would mostly multiply by zero.
    return "matmul" if max(geometry.strides) > 1 else "lax"


def _matmul_forward(x: Array, w: Array, geometry: Geometry) -> Array:
    return jnp.einsum("tbhwk,tkf->tbhwf", _patches(x, geometry), _rows(w))


def _matmul_input_grad(y: Array, w: Array, geometry: Geometry) -> Array:
    tasks, batch = y.shape[:2]
    like = jax.ShapeDtypeStruct((tasks, batch, *geometry.size, w.shape[3]), y.dtype)
    lay_back = jax.linear_transpose(lambda x: _patches(x, geometry), like)
    return lay_back(jnp.einsum("tbhwf,tkf->tbhwk", y, _rows(w)))[0]


def _matmul_weight_grad(x: Array, y: Array, geometry: Geometry) -> Array:
    grad = jnp.einsum("tbhwk,tbhwf->tkf", _patches(x, geometry), y)
    return grad.reshape(x.shape[0], *geometry.window, x.shape[-1], y.shape[-1])


def _rows(w: Array) -> Array:
    tasks, *_, filters = w.shape
    return w.reshape(tasks, -1, filters)


def _patches(x: Array, geometry: Geometry) -> Array:
    """Lays the neighbourhood of each output in its channels: [T, B, H', W', h * w * C]."""
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
    """Computes each task alone: what `lax` makes of many tasks' weights is slow on a CPU."""

    def each(a, b, geometry):
        if a.shape[0] == 1:
            return one(a[0], b[0], geometry)[None]
        return lax.map(lambda pair: one(*pair, geometry), (a, b))

    return each


def _lax_forward(x: Array, w: Array, geometry: Geometry) -> Array:
    return lax.conv_general_dilated(
        *_evened(x, w), geometry.strides, geometry.pads, dimension_numbers=_IMAGES
    )


def _evened(x: Array, w: Array) -> tuple[Array, Array]:
    """Adds a channel of zeros to an odd number of them, with which XLA's CPU backend is slow.

    75 images of 84 x 84 under 32 filters take 46.6, 16.8, 51.5 and 21.7 ms with 3, 4, 5 and 6 channels (one
    core of an Intel Xeon, jax 0.10.2). A single channel has a kernel of its own. No other backend has been
    measured; for those `lax` is not the first choice.
    """
    channels = x.shape[-1]
    if channels == 1 or channels % 2 == 0:
        return x, w
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, 1))), jnp.pad(
        w, ((0, 0), (0, 0), (0, 1), (0, 0))
    )


def _lax_input_grad(y: Array, w: Array, geometry: Geometry) -> Array:
    # The images are y, spread out by the strides, under the kernel turned by half a circle.
    turned = jnp.flip(w, (0, 1)).transpose(0, 1, 3, 2)
    return lax.conv_general_dilated(
        *_evened(y, turned),
        (1, 1),
        _opposite_pads(geometry),
        lhs_dilation=geometry.strides,
        dimension_numbers=_IMAGES,
    )


def _opposite_pads(geometry: Geometry) -> Pads:
    pads = []
    for axis, (n, k, s) in enumerate(
        zip(geometry.size, geometry.window, geometry.strides, strict=True)
    ):
        low = k - 1 - geometry.pads[axis][0]
        span = (geometry.outputs[axis] - 1) * s + 1
        pads.append((low, n + k - 1 - span - low))
    return tuple(pads)


def _lax_weight_grad(x: Array, y: Array, geometry: Geometry) -> Array:
    """Convolves, for each channel, the images with the outputs, the batch in the place of channels.

    `lax`'s own gradient has the same contraction, but in a layout for which XLA's CPU backend has no quick
    kernel: in the body of a loop it was 100 to 400 times slower.
    """
    batch, (height, width) = x.shape[0], geometry.outputs
    # An even number: with 3 or 5 images of 32 channels it takes three times as long as with 2, 4 or 6.
    chunk = max(2, min(8, _CHUNK // (height * width) // 2 * 2))
    chunks, rest = divmod(batch, chunk)
    if batch == 1 or (chunks == 1 and not rest):
        return _lax_weight_grad_of_chunk(x, y, geometry)
    # Hundreds of chunks added up in bfloat16 would be a third off.
    exact = jnp.promote_types(x.dtype, jnp.float32)
    shape = (*geometry.window, x.shape[-1], y.shape[-1])
    total, *_ = vary_alike(jnp.zeros(shape, exact), x, y)
    if rest:
        padding = rest % 2 if rest > 1 else 0
        last = (jnp.pad(a[-rest:], ((0, padding), *[(0, 0)] * 3)) for a in (x, y))
        total = _lax_weight_grad_of_chunk(*last, geometry).astype(exact)
    if not chunks:
        return total.astype(x.dtype)

    def add(total, start):
        # Read where they lie: reshaped into chunks, operands of which there is a rest would be copied.
        pair = (lax.dynamic_slice_in_dim(a, start, chunk) for a in (x, y))
        return total + _lax_weight_grad_of_chunk(*pair, geometry).astype(exact), None

    return lax.scan(add, total, jnp.arange(chunks) * chunk)[0].astype(x.dtype)


def _lax_weight_grad_of_chunk(x: Array, y: Array, geometry: Geometry) -> Array:
    pads = []
    for axis, (n, k, s) in enumerate(
        zip(geometry.size, geometry.window, geometry.strides, strict=True)
    ):
        # The rows at the end that no window reaches must not make the result larger than the kernel.
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
    like = jax.ShapeDtypeStruct((*y.shape[:2], *geometry.size, w.shape[3]), y.dtype)
    return jax.linear_transpose(lambda x: _grouped_forward(x, w, geometry), like)(y)[0]


def _grouped_weight_grad(x: Array, y: Array, geometry: Geometry) -> Array:
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
