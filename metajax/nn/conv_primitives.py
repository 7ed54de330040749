"""The convolution and its two gradients as three JAX primitives, each the derivative of the others.

`jax.custom_vjp` would end forward mode, and `jax.custom_jvp` would leave the choice of the transposed
kernels to JAX. As bilinear primitives the three are closed under differentiation of any order and mode, and
under `vmap`: their operands have an axis of tasks already. See `metajax.nn.conv_implementations` for shapes.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import NamedSharding, PartitionSpec

from metajax.manual_axes import vary_alike
from metajax.nn import conv_implementations
from metajax.nn.conv_implementations import Geometry, Implementations

Array = jax.Array

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def conv(x: Array, w: Array, geometry: Geometry, names: Implementations) -> Array:
    """y = C(x, w)."""
    return _bind(forward_p, x, w, geometry, names)


def input_grad(y: Array, w: Array, geometry: Geometry, names: Implementations) -> Array:
    """The gradient of <y, C(x, w)> with respect to x."""
    return _bind(input_grad_p, y, w, geometry, names)


def weight_grad(x: Array, y: Array, geometry: Geometry, names: Implementations) -> Array:
    """The gradient of <y, C(x, w)> with respect to w."""
    return _bind(weight_grad_p, x, y, geometry, names)


def _bind(
    primitive: Primitive, a: Array, b: Array, geometry: Geometry, names: Implementations
) -> Array:
    return primitive.bind(*vary_alike(a, b), geometry=geometry, names=names)


def _abstract(which: str, a, b, *, geometry: Geometry, names: Implementations):
    del names
    unsharded = NamedSharding(a.sharding.mesh, PartitionSpec(*[None] * a.ndim))
    return a.update(shape=_shape(which, a, b, geometry), sharding=unsharded, weak_type=False)


def _shape(which: str, a, b, geometry: Geometry) -> tuple[int, ...]:
    if which == "forward":
        return (*a.shape[:2], *geometry.outputs, b.shape[-1])
    if which == "input_grad":
        return (*a.shape[:2], *geometry.size, b.shape[3])
    return (a.shape[0], *geometry.window, a.shape[-1], b.shape[-1])


def _compute(which: str, platform: str | None, a, b, *, geometry: Geometry, names: Implementations):
    platform = platform or jax.default_backend()
    kernel = getattr(names, which) or conv_implementations.quickest(platform, geometry)
    return getattr(conv_implementations, which)(a, b, geometry=geometry, kernel=kernel)


def _batch(which: str, primitive: Primitive, operands, dims, *, geometry, names):
    """Merges a vectorised axis with the tasks; with the images where the weights are not vectorised."""
    a, b = operands
    if which != "weight_grad" and dims[1] is None:
        size = a.shape[dims[0]]
        a = jnp.moveaxis(a, dims[0], 1)
        merged = a.reshape(a.shape[0], size * a.shape[2], *a.shape[3:])
        out = _bind(primitive, merged, b, geometry, names)
        return out.reshape(a.shape[0], size, a.shape[2], *out.shape[2:]), 1
    size = next(x.shape[dim] for x, dim in zip(operands, dims, strict=True) if dim is not None)
    tasks = a.shape[0] if dims[0] is None else jnp.moveaxis(a, dims[0], 0).shape[1]

    def merge(operand, dim):
        if dim is None:
            operand = jnp.broadcast_to(operand, (size, *operand.shape))
        else:
            operand = jnp.moveaxis(operand, dim, 0)
        return operand.reshape(size * tasks, *operand.shape[2:])

    out = _bind(primitive, merge(a, dims[0]), merge(b, dims[1]), geometry, names)
    return out.reshape(size, tasks, *out.shape[1:]), 0


def _primitive(which: str) -> Primitive:
    primitive = Primitive(f"metajax_conv_{which}")
    primitive.def_impl(
        jax.jit(functools.partial(_compute, which, None), static_argnames=("geometry", "names"))
    )
    primitive.def_abstract_eval(functools.partial(_abstract, which))
    batching.primitive_batchers[primitive] = functools.partial(_batch, which, primitive)
    for platform in PLATFORMS:
        compute: Callable = functools.partial(_compute, which, platform)
        mlir.register_lowering(
            primitive, mlir.lower_fun(compute, multiple_results=False), platform=platform
        )
    return primitive


forward_p, input_grad_p, weight_grad_p = map(_primitive, Implementations._fields)

# With the trilinear form <y, C(x, w)>, each operand's cotangent is the gradient with respect to it.
ad.defbilinear(
    forward_p,
    lambda ct, x, w, *, geometry, names: input_grad(ct, w, geometry, names),
    lambda ct, x, w, *, geometry, names: weight_grad(x, ct, geometry, names),
)
ad.defbilinear(
    input_grad_p,
    lambda ct, y, w, *, geometry, names: conv(ct, w, geometry, names),
    lambda ct, y, w, *, geometry, names: weight_grad(ct, y, geometry, names),
)
ad.defbilinear(
    weight_grad_p,
    lambda ct, x, y, *, geometry, names: input_grad(y, ct, geometry, names),
    lambda ct, x, y, *, geometry, names: conv(x, ct, geometry, names),
)
