"""The cost of a computation, read from the program that JAX traces: nothing is compiled and nothing runs."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.extend.core import jaxprs_in_params
from jax.interpreters.partial_eval import dce_jaxpr

from metajax.nn import conv_primitives


def flops(function: Callable[..., Any], *args: Any) -> int:
    """Counts the floating-point operations of a function's matrix products and convolutions.

    A multiplication and an addition are two operations; products with padding are not counted. Recomputation
    in a backward pass counts again; values that nothing reads do not count. A `cond` counts its most
    expensive branch. Primitives other than `dot_general` and convolutions count as zero.

    Args:
      function: Function that JAX can trace.
      *args: Arguments of the function, or `jax.ShapeDtypeStruct`s of their shapes.

    Returns:
      Number of operations, summed over all devices if the function has a `shard_map`.

    Raises:
      ValueError: If a matrix product is in a loop whose number of iterations is not known before it runs.

    Example:
      >>> flops(jnp.dot, jnp.ones((2, 3)), jnp.ones((3, 5)))  # 2 * 2 * 3 * 5
      60
    """
    # XLA's `cost_analysis` would not do: it counts the body of a loop once, however often it runs. A product
    # in a loop of 7 and of 1000 iterations is 524,290 operations to it, and 524,288 without the loop (jax
    # 0.10.2).
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    read, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _of_program(read)


def _of_program(jaxpr: Any) -> int:
    """Counts the operations of a jaxpr."""
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: Any) -> int:
    """Counts the operations of an equation, and of the programs in it."""
    primitive, params = equation.primitive, equation.params
    if primitive in _MULTIPLICATIONS:
        return 2 * _MULTIPLICATIONS[primitive](equation)
    if primitive.name.startswith(
        "metajax_"
    ):  # another primitive of metajax: count its implementation
        operands = [jax.ShapeDtypeStruct(var.aval.shape, var.aval.dtype) for var in equation.invars]
        return flops(functools.partial(primitive.impl, **params), *operands)
    if primitive.name == "custom_linear_solve":  # its other programs are for derivatives
        return _of_program(params["jaxprs"].solve.jaxpr)
    inner = [_of_program(jaxpr) for jaxpr in jaxprs_in_params(params)]
    if primitive.name == "scan":
        return params["length"] * sum(inner)
    if primitive.name == "cond":
        return max(inner)
    if primitive.name == "shard_map":  # holds the program of one device
        sizes = params["mesh"].shape
        return math.prod(sizes[axis] for axis in params["newly_manual_axes"]) * sum(inner)
    if primitive.name == "while" and any(inner):
        raise ValueError(
            "A while_loop holds a matrix product, and its number of iterations is not known before it runs; "
            "use jax.lax.scan, or a fori_loop whose bounds are plain numbers."
        )
    return sum(
        inner
    )  # a function under jit, remat or a custom derivative; zero for other primitives


def _of_product(equation: Any) -> int:
    """Counts the multiplications of a `dot_general`."""
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval
    return equation.outvars[0].aval.size * math.prod(left.shape[axis] for axis in contracted)


def _of_convolution(equation: Any) -> int:
    """Counts the multiplications of a `conv_general_dilated`, products with padding left out."""
    x, w, y = (var.aval.shape for var in (*equation.invars, *equation.outvars))
    params = equation.params
    x_axes, w_axes, y_axes = params["dimension_numbers"]
    pairs = [
        _pairs(x[i], w[j], y[k], stride, low, spread, apart)
        for i, j, k, stride, (low, _), spread, apart in zip(
            x_axes[2:],
            w_axes[2:],
            y_axes[2:],
            params["window_strides"],
            params["padding"],
            params["lhs_dilation"],
            params["rhs_dilation"],
            strict=True,
        )
    ]
    # The weights have the channels of one group, whether channels or images come in groups.
    return y[y_axes[0]] * y[y_axes[1]] * w[w_axes[1]] * math.prod(pairs)


def _of_bilinear(roles: str) -> Callable[[Any], int]:
    """Makes a counter for a primitive of `nn.conv_primitives`.

    All three sum the same products x * w * y, over different axes. `roles` names the two operands and the
    result in this order, such as "xwy".
    """

    def count(equation: Any) -> int:
        operands = (*equation.invars, *equation.outvars)
        shapes = {role: var.aval.shape for role, var in zip(roles, operands, strict=True)}
        (tasks, batch, *_, channels), filters = shapes["x"], shapes["w"][-1]
        geometry = equation.params["geometry"]
        pairs = [
            _pairs(size, window, outputs, stride, low)
            for size, window, outputs, stride, (low, _) in zip(
                geometry.size,
                geometry.window,
                geometry.outputs,
                geometry.strides,
                geometry.pads,
                strict=True,
            )
        ]
        return tasks * batch * channels * filters * math.prod(pairs)

    return count


def _pairs(
    size: int, window: int, outputs: int, stride: int, low: int, spread: int = 1, apart: int = 1
) -> int:
    """Counts, along one axis, the pairs of an output and a weight that meet an input.

    Inputs are dilated by `spread` and weights by `apart`; pairs that meet padding or a gap between inputs do
    not count.
    """
    places = (out * stride + k * apart - low for out in range(outputs) for k in range(window))
    return sum(0 <= place <= (size - 1) * spread and place % spread == 0 for place in places)


_MULTIPLICATIONS: dict[Any, Callable[[Any], int]] = {
    lax.dot_general_p: _of_product,
    lax.conv_general_dilated_p: _of_convolution,
    conv_primitives.forward_p: _of_bilinear("xwy"),
    conv_primitives.input_grad_p: _of_bilinear("ywx"),
    conv_primitives.weight_grad_p: _of_bilinear("xyw"),
}
