"""The convolution and its two gradients as three JAX primitives, each the derivative of the others.

`jax.custom_vjp` would end forward mode, and `jax.custom_jvp` would leave the implementation of the transposes
to JAX. As bilinear primitives the three are closed under differentiation of any order and mode, and under
`vmap`: their operands have an axis of tasks already. See `metajax.nn.conv_implementations` for shapes.
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
    """Computes y = C(x, w).

    Args:
      x: Images [T, B, H, W, C].
      w: Weights [T, h, w, C, F].
      geometry: Static shape of the convolution.
      names: Implementations of the convolution and of its derivatives.

    Returns:
      Images y [T, B, H', W', F].
    """
    return _bind(forward_p, x, w, geometry, names)


def input_grad(y: Array, w: Array, geometry: Geometry, names: Implementations) -> Array:
    """Computes the gradient of <y, C(x, w)> with respect to x.

    Args:
      y: Cotangents of the outputs, [T, B, H', W', F].
      w: Weights [T, h, w, C, F].
      geometry: Static shape of the convolution.
      names: Implementations of the convolution and of its derivatives.

    Returns:
      Gradients [T, B, H, W, C].
    """
    return _bind(input_grad_p, y, w, geometry, names)


def weight_grad(x: Array, y: Array, geometry: Geometry, names: Implementations) -> Array:
    """Computes the gradient of <y, C(x, w)> with respect to w.

    Args:
      x: Images [T, B, H, W, C].
      y: Cotangents of the outputs, [T, B, H', W', F].
      geometry: Static shape of the convolution.
      names: Implementations of the convolution and of its derivatives.

    Returns:
      Gradients [T, h, w, C, F].
    """
    return _bind(weight_grad_p, x, y, geometry, names)


def _bind(
    primitive: Primitive, a: Array, b: Array, geometry: Geometry, names: Implementations
) -> Array:
    """Binds a primitive to operands that vary over the same mesh axes."""
    return primitive.bind(*vary_alike(a, b), geometry=geometry, names=names)


def _abstract(which: str, a, b, *, geometry: Geometry, names: Implementations):
    """Computes the abstract value of a primitive's result."""
    del names
    unsharded = NamedSharding(a.sharding.mesh, PartitionSpec(*[None] * a.ndim))
    return a.update(shape=_shape(which, a, b, geometry), sharding=unsharded, weak_type=False)


def _shape(which: str, a, b, geometry: Geometry) -> tuple[int, ...]:
    """Computes the shape of a primitive's result."""
    if which == "forward":
        return (*a.shape[:2], *geometry.outputs, b.shape[-1])
    if which == "input_grad":
        return (*a.shape[:2], *geometry.size, b.shape[3])
    return (a.shape[0], *geometry.window, a.shape[-1], b.shape[-1])


def _compute(which: str, platform: str | None, a, b, *, geometry: Geometry, names: Implementations):
    """Computes a primitive by the implementation chosen for it."""
    platform = platform or jax.default_backend()
    implementation = getattr(names, which) or conv_implementations.quickest(platform, geometry)
    function = getattr(conv_implementations, which)
    return function(a, b, geometry=geometry, implementation=implementation)


def _batch(which: str, primitive: Primitive, operands, dims, *, geometry, names):
    """Merges a vectorized axis with the tasks, or with the images if the weights are not vectorized."""
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
    """Makes the primitive of one field of `Implementations`, with its rules but the derivatives."""
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

# With the trilinear form <y, C(x, w)>, each operand's cotangent is the form's gradient with respect to it:
# each primitive is the transpose of the other two.
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
