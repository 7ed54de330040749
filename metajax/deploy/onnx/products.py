"""Products of arrays and convolutions of JAX as ONNX operators."""

import string
from typing import Any

import numpy as np

from metajax.deploy.onnx.graph import Graph, Value
from metajax.deploy.onnx.rules import dtype_of, rule, shape_of
from metajax.errors import DataError


@rule("dot_general")
def _dot(graph: Graph, equation: Any, left: Value, right: Value) -> Value:
    (contract_left, contract_right), (batch_left, batch_right) = equation.params[
        "dimension_numbers"
    ]
    ranks = [len(shape_of(equation, argument)) for argument in (0, 1)]
    if ranks == [2, 2] and (contract_left, contract_right) == ((1,), (0,)):
        return graph.add("MatMul", left, right)
    letters = iter(string.ascii_letters)
    first = [next(letters) for _ in range(ranks[0])]
    second = [next(letters) for _ in range(ranks[1])]
    for a, b in zip((*contract_left, *batch_left), (*contract_right, *batch_right), strict=True):
        second[b] = first[a]
    batch = [first[a] for a in batch_left]
    free = [
        *(name for a, name in enumerate(first) if a not in (*contract_left, *batch_left)),
        *(name for b, name in enumerate(second) if b not in (*contract_right, *batch_right)),
    ]
    formula = f"{''.join(first)},{''.join(second)}->{''.join([*batch, *free])}"
    return graph.add("Einsum", left, right, equation=formula)


@rule("conv_general_dilated")
def _conv(graph: Graph, equation: Any, images: Value, kernel: Value) -> Value:
    parameters = equation.params
    if parameters["batch_group_count"] != 1:
        raise DataError("a convolution with groups of images cannot be written as ONNX")
    form, pads = parameters["dimension_numbers"], parameters["padding"]
    images = graph.add("Transpose", images, perm=form.lhs_spec)
    sizes = [shape_of(equation)[axis] for axis in form.lhs_spec]
    if set(parameters["lhs_dilation"]) != {1} or min(min(pair) for pair in pads) < 0:
        images = _spread(graph, equation, images, sizes, parameters["lhs_dilation"])
        pads = ((0, 0),) * len(pads)
    found = graph.add(
        "Conv",
        images,
        graph.add("Transpose", kernel, perm=form.rhs_spec),
        strides=parameters["window_strides"],
        pads=[*(before for before, _ in pads), *(after for _, after in pads)],
        dilations=parameters["rhs_dilation"],
        group=parameters["feature_group_count"],
    )
    return graph.add("Transpose", found, perm=np.argsort(form.out_spec).tolist())


def _spread(
    graph: Graph, equation: Any, images: Value, sizes: list[Any], dilation: tuple[int, ...]
) -> Value:
    """Puts zeros between pixels and around them, or cuts pixels off, as derivatives of convolutions do."""
    zero = np.zeros((), dtype_of(equation))
    for axis, factor in enumerate(dilation, 2):
        if factor > 1:
            # Each pixel becomes a row of itself and zeros; the zeros behind the last one are cut off.
            images = graph.add("Unsqueeze", images, np.array([axis + 1]))
            behind = [0] * (len(sizes) + 1)
            behind[axis + 1] = factor - 1
            images = graph.add("Pad", images, np.array([0] * len(behind) + behind), zero)
            long = sizes[axis] * factor
            sizes = [*sizes[:axis], long, *sizes[axis + 1 :]]
            images = graph.reshape(images, sizes)
            end = graph.size(long - factor + 1)
            images = graph.add("Slice", images, np.array([0]), end, np.array([axis]))
            sizes[axis] = long - factor + 1
    pads = equation.params["padding"]
    around = [0, 0, *(before for before, _ in pads), 0, 0, *(after for _, after in pads)]
    return graph.add("Pad", images, np.array(around), zero)
