"""Graphs of ONNX operators that are built node by node, with constants folded and sizes symbolic."""

import ast
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from metajax.errors import DataError
from metajax.types import Array

OPSET = 18
"""Version of the operators; onnxruntime 1.14 and later know it."""
IR_VERSION = 8
"""Version of the file format that belongs to it."""

Value = Array | np.ndarray | np.generic | str
"""A constant, or the name of what a node computes."""


def helpers() -> Any:
    """Imports the `onnx` package, which is optional.

    Returns:
      The module `onnx`.

    Raises:
      ImportError: If it is not installed.

    Example:
      >>> onnx = helpers()  # doctest: +SKIP
    """
    try:
        import onnx
    except ImportError as error:
        raise ImportError(
            "ONNX programs need onnx; install it by: pip install 'metajax[onnx]'"
        ) from error
    return onnx


class Graph:
    """Nodes in the order of their computation; the body of a loop is a graph of its own, inside another.

    Attributes:
      nodes: Nodes so far.
      outer: Graph around it; None for the program.
    """

    def __init__(self, outer: "Graph | None" = None):
        self.nodes: list[Any] = []
        self.outer = outer
        self._root: Graph = self if outer is None else outer._root
        # Sizes that are known outside are known inside, and not the other way round.
        self._sizes: dict[str, str] = {} if outer is None else dict(outer._sizes)
        if outer is None:
            self._count = 0
            self.constants: list[Any] = []
            self._names: dict[tuple, str] = {}

    def fresh(self) -> str:
        """Returns a name that nothing has."""
        self._root._count += 1
        return f"v{self._root._count}"

    def add(self, operator: str, *inputs: Value | None, outputs: int = 1, **attributes: Any) -> Any:
        """Adds a node.

        Args:
          operator: Name of the ONNX operator.
          *inputs: Values it reads; None leaves out an optional one.
          outputs: Number of its results.
          **attributes: Attributes of the operator.

        Returns:
          The name of its result, or a list of names if `outputs` is not 1.
        """
        names = ["" if value is None else self.name(value) for value in inputs]
        made = [self.fresh() for _ in range(outputs)]
        self.nodes.append(helpers().helper.make_node(operator, names, made, **attributes))
        return made[0] if outputs == 1 else made

    def name(self, value: Value) -> str:
        """Returns the name of a value; constants become part of the program.

        Args:
          value: Value.

        Returns:
          Name of the value.
        """
        if isinstance(value, str):
            return value
        root, array = self._root, np.asarray(value)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in root._names:
            root._names[key] = root.fresh()
            tensor = helpers().numpy_helper.from_array(
                np.ascontiguousarray(array), root._names[key]
            )
            # `ascontiguousarray` makes a vector of a scalar.
            if not array.shape:
                del tensor.dims[:]
            root.constants.append(tensor)
        return root._names[key]

    def know_size(self, symbol: str, source: str, axis: int) -> None:
        """Finds a symbolic size in the shape of an input.

        Args:
          symbol: Name of the size.
          source: Name of the input.
          axis: Axis of the input that has this size.
        """
        if symbol not in self._sizes:
            self._sizes[symbol] = self.add("Shape", source, start=axis, end=axis + 1)

    def size(self, size: Any) -> Value:
        """Computes a size.

        Args:
          size: An int, or a polynomial of symbolic sizes as `jax.export` has them.

        Returns:
          The size, a vector [1] int64.
        """
        if isinstance(size, (int, np.integer)):
            return np.array([size], np.int64)
        text = str(size)
        if text not in self._sizes:
            self._sizes[text] = self._computed(ast.parse(text, mode="eval").body, text)
        return self._sizes[text]

    def _computed(self, node: ast.AST, text: str) -> Any:
        """Computes the formula of a size, such as `3*q + 1`."""
        operators = {ast.Add: "Add", ast.Sub: "Sub", ast.Mult: "Mul"}
        functions = {"floordiv": "Div", "mod": "Mod", "max": "Max", "min": "Min"}
        match node:
            case ast.Constant(value=int(value)):
                return np.array([value], np.int64)
            case ast.Name(id=name) if name in self._sizes:
                return self._sizes[name]
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return self.add("Neg", self._computed(operand, text))
            case ast.BinOp(left=left, op=op, right=right) if type(op) in operators:
                sides = (self._computed(side, text) for side in (left, right))
                return self.add(operators[type(op)], *sides)
            case ast.BinOp(left=left, op=ast.Pow(), right=ast.Constant(value=int(power))):
                base = self._computed(left, text)
                return self.add("Pow", base, np.array([power], np.int64))
            case ast.Call(func=ast.Name(id=name), args=arguments) if name in functions:
                return self.add(functions[name], *(self._computed(a, text) for a in arguments))
        raise DataError(f"the size {text} of an array cannot be written as ONNX")

    def shape(self, shape: Sequence[Any]) -> Value:
        """Computes a shape.

        Args:
          shape: Sizes, some of them symbolic.

        Returns:
          The shape, a vector int64.
        """
        if all(isinstance(size, (int, np.integer)) for size in shape):
            return np.array(shape, np.int64)
        text = str(tuple(map(str, shape)))
        if text not in self._sizes:
            self._sizes[text] = self.add("Concat", *map(self.size, shape), axis=0)
        return self._sizes[text]

    def reshape(self, value: Value, shape: Sequence[Any]) -> str:
        """Reshapes a value.

        Args:
          value: Value.
          shape: New shape; one symbolic size is found by its number of elements.

        Returns:
          The name of the result.
        """
        unknown = [not isinstance(size, (int, np.integer)) for size in shape]
        if sum(unknown) == 1 and 0 not in shape:
            inferred = [
                -1 if symbolic else size for symbolic, size in zip(unknown, shape, strict=True)
            ]
            return self.add("Reshape", value, np.array(inferred, np.int64))
        return self.add("Reshape", value, self.shape(shape))

    def cast(self, value: Value, dtype: Any) -> str:
        """Casts a value.

        Args:
          value: Value.
          dtype: New dtype.

        Returns:
          The name of the result.
        """
        return self.add("Cast", value, to=element_type(dtype))


def element_type(dtype: Any) -> int:
    """Returns the ONNX number of a dtype.

    Args:
      dtype: A dtype of NumPy or JAX.

    Returns:
      The number.

    Raises:
      DataError: If ONNX has no such dtype, as that of random keys.

    Example:
      >>> element_type(np.float32)  # doctest: +SKIP
      1
    """
    try:
        return helpers().helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    except (TypeError, ValueError, KeyError) as error:
        raise DataError(f"values of type {dtype} cannot be written as ONNX") from error


def value_info(name: str, aval: Any) -> Any:
    """Describes an input or output.

    Args:
      name: Name of the value.
      aval: Shape and dtype, as `jax.ShapeDtypeStruct` has them.

    Returns:
      The `ValueInfoProto`.

    Example:
      >>> value_info("x", jax.ShapeDtypeStruct((2,), np.float32)).name  # doctest: +SKIP
      'x'
    """
    shape = [size if isinstance(size, int) else str(size) for size in aval.shape]
    return helpers().helper.make_tensor_value_info(name, element_type(aval.dtype), shape)


def is_constant(value: Value) -> bool:
    """Finds out whether a value is known before the program runs.

    Args:
      value: Value.

    Returns:
      True for constants.

    Example:
      >>> is_constant(np.ones(2)), is_constant("v1")
      (True, False)
    """
    return not isinstance(value, str)


def is_static(shape: Sequence[Any]) -> bool:
    """Finds out whether a shape has no symbolic size.

    Args:
      shape: Shape.

    Returns:
      True if all sizes are numbers.

    Example:
      >>> is_static((2, 3))
      True
    """
    return all(isinstance(size, (int, np.integer)) for size in shape)


def signature(values: Sequence[Any]) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Returns shapes and dtypes of traced values.

    Args:
      values: Variables of a jaxpr.

    Returns:
      One structure each.

    Example:
      >>> signature(jax.make_jaxpr(jnp.sin)(jnp.ones(2)).jaxpr.invars)
      (ShapeDtypeStruct(shape=(2,), dtype=float32),)
    """
    return tuple(jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in values)
