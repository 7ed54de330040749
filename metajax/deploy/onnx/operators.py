"""Elementwise operations, shapes, reductions and orders of JAX as ONNX operators."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from metajax.deploy.onnx.graph import Graph, Value
from metajax.deploy.onnx.rules import RULES, dtype_of, rule, shape_of
from metajax.errors import DataError

_ALIKE = {
    "add": "Add",
    "add_any": "Add",
    "sub": "Sub",
    "mul": "Mul",
    "div": "Div",
    "max": "Max",
    "min": "Min",
    "pow": "Pow",
    "neg": "Neg",
    "abs": "Abs",
    "sign": "Sign",
    "exp": "Exp",
    "log": "Log",
    "tanh": "Tanh",
    "logistic": "Sigmoid",
    "sqrt": "Sqrt",
    "erf": "Erf",
    "sin": "Sin",
    "cos": "Cos",
    "tan": "Tan",
    "asinh": "Asinh",
    "atan": "Atan",
    "floor": "Floor",
    "ceil": "Ceil",
    "eq": "Equal",
    "lt": "Less",
    "le": "LessOrEqual",
    "gt": "Greater",
    "ge": "GreaterOrEqual",
}


def _alike(operator: str) -> Callable[..., Any]:
    return lambda graph, equation, *values: graph.add(operator, *values)


RULES.update({name: _alike(operator) for name, operator in _ALIKE.items()})


def _one(equation: Any) -> Value:
    return np.ones((), dtype_of(equation))


@rule("ne")
def _ne(graph: Graph, equation: Any, *values: Value) -> Value:
    return graph.add("Not", graph.add("Equal", *values))


@rule("rsqrt")
def _rsqrt(graph: Graph, equation: Any, value: Value) -> Value:
    return graph.add("Reciprocal", graph.add("Sqrt", value))


@rule("log1p")
def _log1p(graph: Graph, equation: Any, value: Value) -> Value:
    return graph.add("Log", graph.add("Add", value, _one(equation)))


@rule("expm1")
def _expm1(graph: Graph, equation: Any, value: Value) -> Value:
    return graph.add("Sub", graph.add("Exp", value), _one(equation))


@rule("erfc")
def _erfc(graph: Graph, equation: Any, value: Value) -> Value:
    return graph.add("Sub", _one(equation), graph.add("Erf", value))


@rule("square")
def _square(graph: Graph, equation: Any, value: Value) -> Value:
    return graph.add("Mul", value, value)


@rule("round")
def _round(graph: Graph, equation: Any, value: Value) -> Value:
    if equation.params["rounding_method"] == jax.lax.RoundingMethod.TO_NEAREST_EVEN:
        return graph.add("Round", value)
    half = np.asarray(0.5, dtype_of(equation))
    away = graph.add("Floor", graph.add("Add", graph.add("Abs", value), half))
    return graph.add("Mul", graph.add("Sign", value), away)


@rule("integer_pow")
def _integer_pow(graph: Graph, equation: Any, value: Value) -> Value:
    power = equation.params["y"]
    if power == 2:
        return graph.add("Mul", value, value)
    return graph.add("Pow", value, np.asarray(power, dtype_of(equation)))


@rule("rem")
def _rem(graph: Graph, equation: Any, *values: Value) -> Value:
    return graph.add("Mod", *values, fmod=1)


@rule("is_finite")
def _is_finite(graph: Graph, equation: Any, value: Value) -> Value:
    strange = graph.add("Or", graph.add("IsNaN", value), graph.add("IsInf", value))
    return graph.add("Not", strange)


@rule("and", "or", "xor", "not")
def _logic(graph: Graph, equation: Any, *values: Value) -> Value:
    name = equation.primitive.name.capitalize()
    return graph.add(name if dtype_of(equation) == np.bool_ else f"Bitwise{name}", *values)


@rule("clamp")
def _clamp(graph: Graph, equation: Any, least: Value, value: Value, most: Value) -> Value:
    return graph.add("Min", graph.add("Max", value, least), most)


@rule("select_n")
def _select(graph: Graph, equation: Any, which: Value, *cases: Value) -> Value:
    if dtype_of(equation) == np.bool_:
        return graph.add("Where", which, cases[1], cases[0])
    found = cases[-1]
    for number in reversed(range(len(cases) - 1)):
        is_this = graph.add("Equal", which, np.asarray(number, dtype_of(equation)))
        found = graph.add("Where", is_this, cases[number], found)
    return found


@rule("convert_element_type")
def _convert(graph: Graph, equation: Any, value: Value) -> Value:
    return graph.cast(value, equation.params["new_dtype"])


@rule("dim_as_value")
def _dim_as_value(graph: Graph, equation: Any) -> Value:
    scalar = graph.add("Squeeze", graph.size(equation.params["dim"]), np.array([0]))
    return graph.cast(scalar, equation.outvars[0].aval.dtype)


@rule("iota")
def _iota(graph: Graph, equation: Any, *sizes: Value) -> Value:
    shape, axis = equation.params["shape"], equation.params["dimension"]
    end = graph.add("Squeeze", graph.size(shape[axis]), np.array([0]))
    line = graph.cast(graph.add("Range", np.int64(0), end, np.int64(1)), equation.params["dtype"])
    if len(shape) == 1:
        return line
    others = np.array([i for i in range(len(shape)) if i != axis], np.int64)
    return graph.add("Expand", graph.add("Unsqueeze", line, others), graph.shape(shape))


@rule("broadcast_in_dim")
def _broadcast(graph: Graph, equation: Any, value: Value, *sizes: Value) -> Value:
    old, new = shape_of(equation), equation.params["shape"]
    places = equation.params["broadcast_dimensions"]
    more = np.array([axis for axis in range(len(new)) if axis not in places], np.int64)
    if len(more):
        value = graph.add("Unsqueeze", value, more)
    same = all(
        old[places.index(a)] == size if a in places else size == 1 for a, size in enumerate(new)
    )
    return value if same else graph.add("Expand", value, graph.shape(new))


@rule("reshape")
def _reshape(graph: Graph, equation: Any, value: Value, *sizes: Value) -> Value:
    return graph.reshape(value, equation.params["new_sizes"])


@rule("squeeze")
def _squeeze(graph: Graph, equation: Any, value: Value) -> Value:
    return graph.add("Squeeze", value, np.array(equation.params["dimensions"], np.int64))


@rule("transpose")
def _transpose(graph: Graph, equation: Any, value: Value) -> Value:
    return graph.add("Transpose", value, perm=equation.params["permutation"])


@rule("rev")
def _rev(graph: Graph, equation: Any, value: Value) -> Value:
    axes = np.array(equation.params["dimensions"], np.int64)
    back, end = np.full(len(axes), -1), np.full(len(axes), np.iinfo(np.int64).min)
    return graph.add("Slice", value, back, end, axes, back)


@rule("concatenate")
def _concatenate(graph: Graph, equation: Any, *values: Value) -> Value:
    return graph.add("Concat", *values, axis=equation.params["dimension"])


@rule("stack")
def _stack(graph: Graph, equation: Any, *values: Value) -> Value:
    axis = equation.params["axis"]
    rows = (graph.add("Unsqueeze", value, np.array([axis])) for value in values)
    return graph.add("Concat", *rows, axis=axis)


@rule("unstack")
def _unstack(graph: Graph, equation: Any, value: Value) -> list[Value]:
    axis = equation.params["axis"]
    return [
        graph.add("Gather", value, np.int64(row), axis=axis)
        for row in range(shape_of(equation)[axis])
    ]


@rule("tile")
def _tile(graph: Graph, equation: Any, value: Value) -> Value:
    return graph.add("Tile", value, graph.shape(equation.params["reps"]))


@rule("split")
def _split(graph: Graph, equation: Any, value: Value) -> Any:
    sizes = equation.params["sizes"]
    if len(sizes) == 1:
        return value
    axis = equation.params["axis"]
    return graph.add("Split", value, graph.shape(sizes), outputs=len(sizes), axis=axis)


@rule("pad")
def _pad(graph: Graph, equation: Any, value: Value, filling: Value) -> Value:
    config = equation.params["padding_config"]
    if any(inside for _, _, inside in config):
        raise DataError("padding between elements cannot be written as ONNX")
    before, after = ([row[i] for row in config] for i in (0, 1))
    return graph.add("Pad", value, graph.shape([*before, *after]), filling)


@rule("reduce_sum", "reduce_max", "reduce_min", "reduce_prod")
def _reduce(graph: Graph, equation: Any, value: Value) -> Value:
    operator = "Reduce" + equation.primitive.name.removeprefix("reduce_").capitalize()
    axes = np.array(equation.params["axes"], np.int64)
    return graph.add(operator, value, axes, keepdims=0) if len(axes) else value


@rule("reduce_and", "reduce_or")
def _reduce_logic(graph: Graph, equation: Any, value: Value) -> Value:
    operator = "ReduceMin" if equation.primitive.name == "reduce_and" else "ReduceMax"
    axes = np.array(equation.params["axes"], np.int64)
    return graph.cast(graph.add(operator, graph.cast(value, np.int32), axes, keepdims=0), np.bool_)


@rule("argmax", "argmin")
def _arg(graph: Graph, equation: Any, value: Value) -> Value:
    operator = "ArgMax" if equation.primitive.name == "argmax" else "ArgMin"
    (axis,) = equation.params["axes"]
    found = graph.add(operator, value, axis=axis, keepdims=0)
    return graph.cast(found, equation.params["index_dtype"])


@rule("cumsum")
def _cumsum(graph: Graph, equation: Any, value: Value) -> Value:
    axis, back = equation.params["axis"], equation.params["reverse"]
    return graph.add("CumSum", value, np.int64(axis), reverse=int(back))


@rule("sort")
def _sort(graph: Graph, equation: Any, *values: Value) -> list[Value]:
    axis, extent = equation.params["dimension"], shape_of(equation)
    if equation.params["num_keys"] != 1:
        raise DataError("sorting by several keys cannot be written as ONNX")
    # TopK of all keeps the order of equal ones, as a stable sort does.
    first, places = graph.add(
        "TopK", values[0], graph.size(extent[axis]), outputs=2, axis=axis, largest=0
    )
    return [first, *(graph.add("GatherElements", v, places, axis=axis) for v in values[1:])]


@rule("top_k")
def _top_k(graph: Graph, equation: Any, value: Value) -> Any:
    values, places = graph.add("TopK", value, graph.size(equation.params["k"]), outputs=2)
    return values, graph.cast(places, equation.outvars[1].aval.dtype)
