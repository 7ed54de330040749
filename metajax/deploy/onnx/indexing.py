"""Slices, gathers and scatters of JAX as ONNX operators."""

from typing import Any

import jax
import numpy as np

from metajax.deploy.onnx.graph import Graph, Value
from metajax.deploy.onnx.rules import dtype_of, rule, shape_of
from metajax.errors import DataError


@rule("slice")
def _slice(graph: Graph, equation: Any, value: Value) -> Value:
    starts, ends = equation.params["start_indices"], equation.params["limit_indices"]
    strides = equation.params["strides"] or (1,) * len(starts)
    shape = shape_of(equation)
    # An axis that is taken whole is not named, so that its size need not be known.
    axes = [
        a for a in range(len(shape)) if (starts[a], strides[a]) != (0, 1) or ends[a] != shape[a]
    ]
    if not axes:
        return value
    picked = ([sizes[a] for a in axes] for sizes in (starts, ends))
    steps = np.array([strides[a] for a in axes], np.int64)
    return graph.add("Slice", value, *map(graph.shape, picked), np.array(axes, np.int64), steps)


def _clamped(graph: Graph, start: Value, size: Any, extent: Any) -> Value:
    """Clamps the start [1] of a window to where it fits, as JAX does."""
    start = graph.reshape(graph.cast(start, np.int64), (1,))
    most = graph.add("Sub", graph.size(extent), graph.size(size))
    return graph.add("Min", graph.add("Max", start, np.array([0])), most)


def _cut(graph: Graph, value: Value, start: Value, axis: int, size: Any, extent: Any) -> Value:
    """Cuts a window out of one axis."""
    start = _clamped(graph, start, size, extent)
    end = graph.add("Add", start, graph.size(size))
    return graph.add("Slice", value, start, end, np.array([axis]))


@rule("dynamic_slice")
def _dynamic_slice(graph: Graph, equation: Any, value: Value, *starts: Value) -> Value:
    shape, sizes = shape_of(equation), equation.params["slice_sizes"]
    for axis, (extent, size) in enumerate(zip(shape, sizes, strict=True)):
        if extent != size:
            value = _cut(graph, value, starts[axis], axis, size, extent)
    return value


@rule("dynamic_update_slice")
def _dynamic_update_slice(
    graph: Graph, equation: Any, value: Value, new: Value, *starts: Value
) -> Value:
    shape, sizes = shape_of(equation), shape_of(equation, 1)
    moved = [axis for axis in range(len(shape)) if shape[axis] != sizes[axis]]
    if not moved:  # what is as large as the whole replaces it
        return graph.add("Identity", new)
    if len(moved) > 1:
        raise DataError("a window of several axes cannot be replaced in ONNX")
    axis = moved[0]
    start = _clamped(graph, starts[axis], sizes[axis], shape[axis])
    end = graph.add("Add", start, graph.size(sizes[axis]))
    before = graph.add("Slice", value, np.array([0]), start, np.array([axis]))
    after = graph.add("Slice", value, end, graph.size(shape[axis]), np.array([axis]))
    return graph.add("Concat", before, new, after, axis=axis)


def _places(
    graph: Graph, equation: Any, indices: Value, batching: tuple, of_indices: tuple, mapped: tuple
) -> tuple[Value, Value]:
    """Computes the places [..., k] that indices name in an operand, and the largest of each axis, [k]."""
    shape, rows = shape_of(equation), shape_of(equation, 1)[:-1]
    parts = [graph.cast(indices, np.int64)]
    for axis, of_index in zip(reversed(batching), reversed(of_indices), strict=True):
        end = graph.add("Squeeze", graph.size(shape[axis]), np.array([0]))
        line = graph.add("Range", np.int64(0), end, np.int64(1))
        apart = [shape[axis] if a == of_index else 1 for a in range(len(rows) + 1)]
        parts.insert(0, graph.add("Expand", graph.reshape(line, apart), graph.shape((*rows, 1))))
    places = graph.add("Concat", *parts, axis=-1) if len(parts) > 1 else parts[0]
    extents = graph.shape([shape[axis] for axis in (*batching, *mapped)])
    return places, graph.add("Sub", extents, np.array([1]))


@rule("gather")
def _gather(graph: Graph, equation: Any, value: Value, indices: Value) -> Value:
    """Takes whole slices at places along some axes, which is what indexing by arrays needs."""
    form, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    shape, batching = shape_of(equation), form.operand_batching_dims
    axes = (*batching, *form.start_index_map)
    rest = [axis for axis in range(len(shape)) if axis not in axes]
    if len(shape_of(equation, 1)) == 1 and {*form.collapsed_slice_dims} != {*axes}:
        return _window(graph, equation, value, indices)
    if any(sizes[a] != 1 for a in axes) or any(sizes[a] != shape[a] for a in rest):
        raise DataError("a gather of parts of slices cannot be written as ONNX here")
    places, last = _places(
        graph, equation, indices, batching, form.start_indices_batching_dims, form.start_index_map
    )
    inside = graph.add("Min", graph.add("Max", places, np.array([0])), last)
    found = graph.add("GatherND", _first(graph, value, axes, rest), inside)
    # ONNX puts the axes of slices last, and JAX at `offset_dims`.
    out = equation.outvars[0].aval.shape
    slices = [a for a in range(len(shape)) if a not in (*form.collapsed_slice_dims, *batching)]
    # Axes of slices of one element, which were not to vanish, come back at the end.
    short = [int(o) for o, a in zip(form.offset_dims, slices, strict=True) if a in axes]
    long = [axis for axis in range(len(out)) if axis not in short]
    count = len(long) - len(rest)
    rows, kept = iter(range(count)), iter(range(count, len(long)))
    perm = [next(kept if axis in form.offset_dims else rows) for axis in long]
    if perm != sorted(perm):
        found = graph.add("Transpose", found, perm=perm)
    if short:
        found = graph.add("Unsqueeze", found, np.array(short))
    if equation.params["mode"] != jax.lax.GatherScatterMode.FILL_OR_DROP:
        return found
    filling = equation.params["fill_value"]
    if filling is None:
        filling = np.nan if np.issubdtype(dtype_of(equation), np.floating) else 0
    equal = graph.cast(graph.add("Equal", places, inside), np.int32)
    fits = graph.cast(graph.add("ReduceMin", equal, np.array([-1]), keepdims=0), np.bool_)
    apart = [1 if axis in form.offset_dims else size for axis, size in enumerate(out)]
    return graph.add(
        "Where", graph.reshape(fits, apart), found, np.asarray(filling, dtype_of(equation))
    )


def _window(graph: Graph, equation: Any, value: Value, indices: Value) -> Value:
    """Takes one window, as `x[..., :1]` does."""
    form, sizes, shape = (
        equation.params["dimension_numbers"],
        equation.params["slice_sizes"],
        shape_of(equation),
    )
    for number, axis in enumerate(form.start_index_map):
        if sizes[axis] != shape[axis]:
            start = graph.add("Slice", indices, *(np.array([n]) for n in (number, number + 1, 0)))
            value = _cut(graph, value, start, axis, sizes[axis], shape[axis])
    gone = np.array(form.collapsed_slice_dims, np.int64)
    return graph.add("Squeeze", value, gone) if len(gone) else value


def _first(graph: Graph, value: Value, axes: tuple, rest: list[int]) -> Value:
    """Moves axes to the front."""
    perm = [*axes, *rest]
    return value if perm == sorted(perm) else graph.add("Transpose", value, perm=perm)


@rule("scatter", "scatter-add", "scatter_add")
def _scatter(graph: Graph, equation: Any, value: Value, indices: Value, updates: Value) -> Value:
    """Writes or adds whole slices at places along some axes; places outside are dropped."""
    form, shape = equation.params["dimension_numbers"], shape_of(equation)
    batching = form.operand_batching_dims
    axes = (*batching, *form.scatter_dims_to_operand_dims)
    rest = [axis for axis in range(len(shape)) if axis not in axes]
    count = len(shape_of(equation, 1)) - 1
    trailing = form.update_window_dims == tuple(range(count, count + len(rest)))
    if {*form.inserted_window_dims, *batching} != {*axes} or not trailing:
        raise DataError("a scatter of parts of slices cannot be written as ONNX here")
    places, last = _places(
        graph,
        equation,
        indices,
        batching,
        form.scatter_indices_batching_dims,
        form.scatter_dims_to_operand_dims,
    )
    # One more row at the end of each axis takes what is outside, and is cut off again.
    inside = graph.add(
        "And",
        graph.add("GreaterOrEqual", places, np.array([0])),
        graph.add("LessOrEqual", places, last),
    )
    end = graph.add("Add", last, np.array([1]))
    places = graph.add("Where", inside, places, end)
    moved = _first(graph, value, axes, rest)
    before, after = [0] * len(shape), [1] * len(axes) + [0] * len(rest)
    room = graph.add("Pad", moved, np.array([*before, *after]), np.zeros((), dtype_of(equation)))
    reduction = "none" if equation.primitive.name == "scatter" else "add"
    found = graph.add("ScatterND", room, places, updates, reduction=reduction)
    start = np.zeros(len(axes), np.int64)
    found = graph.add("Slice", found, start, end, np.arange(len(axes)))
    back = np.argsort([*axes, *rest]).tolist()
    return found if back == sorted(back) else graph.add("Transpose", found, perm=back)
