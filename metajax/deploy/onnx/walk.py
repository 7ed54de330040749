"""The way from a JAX function to an ONNX program: traced once, then written equation by equation."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from metajax.deploy.onnx import control, indexing, operators, products  # noqa: F401 - they register their rules
from metajax.deploy.onnx.graph import (
    IR_VERSION,
    OPSET,
    Graph,
    Value,
    helpers,
    is_constant,
    is_static,
    value_info,
)
from metajax.deploy.onnx.rules import RULES
from metajax.errors import DataError

_IDENTITIES = (
    "copy copy_p optimization_barrier device_put reduce_precision stop_gradient name".split()
)
_CALLS = ("jaxpr", "call_jaxpr", "fun_jaxpr", "call")


def to_onnx(
    function: Callable[..., Sequence[jax.Array]],
    arguments: Sequence[jax.ShapeDtypeStruct],
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
    properties: dict[str, str],
) -> bytes:
    """Writes a JAX function as an ONNX program.

    Args:
      function: Function of arrays that returns a sequence of arrays.
      arguments: Shapes and dtypes; sizes may be symbolic.
      inputs: Names of the arguments.
      outputs: Names of the results.
      properties: Facts for people and programs, by name.

    Returns:
      The content of an .onnx file.

    Raises:
      DataError: If the function uses an operation that has no counterpart here.
      ImportError: If `onnx` is not installed.

    Example:
      >>> argument = jax.ShapeDtypeStruct((3,), np.float32)
      >>> data = to_onnx(
      ...     lambda x: [2 * x], [argument], inputs=["x"], outputs=["y"], properties={}
      ... )  # doctest: +SKIP
    """
    onnx, graph = helpers(), Graph()
    closed = jax.make_jaxpr(lambda *values: list(function(*values)))(*arguments)
    for name, argument in zip(inputs, arguments, strict=True):
        for axis, size in enumerate(argument.shape):
            if not is_static((size,)) and str(size).isidentifier():
                graph.know_size(str(size), name, axis)
    found = write(graph, closed.jaxpr, [*closed.consts], list(inputs))
    for name, value in zip(outputs, found, strict=True):
        graph.nodes.append(onnx.helper.make_node("Identity", [graph.name(value)], [name]))
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.nodes,
            "metajax",
            [value_info(name, argument) for name, argument in zip(inputs, arguments, strict=True)],
            [value_info(name, aval) for name, aval in zip(outputs, closed.out_avals, strict=True)],
            graph.constants,
        ),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="metajax",
    )
    onnx.helper.set_model_props(model, properties)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def write(
    graph: Graph, jaxpr: Any, constants: Sequence[Value], inputs: Sequence[Value]
) -> list[Value]:
    """Writes the equations of a jaxpr into a graph; equations of constants are computed instead.

    Args:
      graph: Graph; changed in place.
      jaxpr: Jaxpr without its constants.
      constants: Values of its constants.
      inputs: Values of its arguments.

    Returns:
      Values of its results.

    Raises:
      DataError: If an operation has no counterpart.

    Example:
      >>> doubled = jax.make_jaxpr(lambda x: 2 * x)(1.0)
      >>> float(write(Graph(), doubled.jaxpr, doubled.consts, [jnp.float32(3)])[0])
      6.0
    """
    known: dict[Any, Value] = dict(zip(jaxpr.constvars, constants, strict=True))
    known.update(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> Value:
        if isinstance(atom, core.Literal):
            aval: Any = atom.aval
            return np.asarray(atom.val, aval.dtype)
        return known[atom]

    for equation in jaxpr.eqns:
        found = _equation(graph, equation, [read(atom) for atom in equation.invars])
        known.update(zip(equation.outvars, found, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _equation(graph: Graph, equation: Any, values: list[Value]) -> list[Value]:
    """Writes one equation."""
    name, parameters = equation.primitive.name, equation.params
    if name in _IDENTITIES:
        return values
    if name == "platform_index":  # the variants of a platform are equal in all but speed
        return [np.int32(len(parameters["platforms"]) - 1)]
    if name == "custom_linear_solve":
        lengths, solve = parameters["const_lengths"], parameters["jaxprs"].solve
        start = lengths.matvec + lengths.vecmat
        right = values[sum(lengths) :]
        return write(
            graph, solve.jaxpr, solve.consts, [*values[start : start + lengths.solve], *right]
        )
    if name in control.RULES:
        return control.RULES[name](graph, equation, values, write)
    for field in _CALLS:
        if (inner := parameters.get(field)) is not None:
            return write(graph, *_opened(inner), values)
    folds = name != "dim_as_value" and all(is_static(v.aval.shape) for v in equation.outvars)
    if folds and all(map(is_constant, values)):
        found = equation.primitive.bind(*map(jnp.asarray, values), **parameters)
        return list(found) if equation.primitive.multiple_results else [found]
    if name in control.BY_JAX:
        plain = control.BY_JAX[name](**parameters)
        closed = jax.make_jaxpr(plain)(
            *(jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in equation.invars)
        )
        return write(graph, closed.jaxpr, closed.consts, values)
    if name not in RULES:
        raise DataError(
            f"the operation {name} has no counterpart in ONNX here; export for JAX instead"
        )
    found = RULES[name](graph, equation, *values)
    return list(found) if isinstance(found, (list, tuple)) else [found]


def _opened(inner: Any) -> tuple[Any, Sequence[Value]]:
    """Separates a jaxpr from its constants."""
    return (inner.jaxpr, inner.consts) if hasattr(inner, "jaxpr") else (inner, ())
