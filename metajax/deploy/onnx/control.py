"""Loops and branches in ONNX, and factorizations that consist of them."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metajax.deploy.onnx.graph import Graph, Value, helpers, is_constant, value_info
from metajax.errors import DataError
from metajax.types import Array

Write = Callable[[Graph, Any, Sequence[Value], Sequence[Value]], list[Value]]

_UNROLLED = 4  # iterations up to which a loop is written out


def _scan(graph: Graph, equation: Any, values: list[Value], write: Write) -> list[Value]:
    """Writes a scan: its carry is that of the loop, and each iteration takes one row of its inputs."""
    parameters, closed = equation.params, equation.params["jaxpr"]
    consts, carries = parameters["num_consts"], parameters["num_carry"]
    length, back = parameters["length"], parameters["reverse"]
    fixed, carry, rows = (
        values[:consts],
        values[consts : consts + carries],
        values[consts + carries :],
    )
    kept = closed.out_avals[carries:]

    def body(inner: Graph, index: Value, carry: Sequence[Value]) -> list[Value]:
        row = [inner.add("Gather", each, index, axis=0) for each in rows]
        return write(inner, closed.jaxpr, closed.consts, [*fixed, *carry, *row])

    if isinstance(length, int) and length <= _UNROLLED:
        taken: list[list[Value]] = []
        for number in reversed(range(length)) if back else range(length):
            found = body(graph, np.int64(number), carry)
            carry, taken = found[:carries], [*taken, found[carries:]]
        if kept and not length:
            raise DataError("a loop without iterations cannot be written as ONNX")
        taken = taken[::-1] if back else taken
        stacked = [
            graph.add("Concat", *(graph.add("Unsqueeze", v, np.array([0])) for v in each), axis=0)
            for each in zip(*taken, strict=True)
        ]
        return [*carry, *stacked]
    steps = graph.add("Squeeze", graph.size(length), np.array([0]))

    def indexed(inner: Graph, number: str, carry: Sequence[Value]) -> list[Value]:
        last = inner.add("Sub", steps, np.int64(1)) if back else None
        index = inner.add("Sub", last, number) if back else number
        return body(inner, index, carry)

    found = _loop(graph, steps, None, carry, [*closed.out_avals], indexed)
    if back:
        end = np.array([np.iinfo(np.int64).min])
        one = np.array([-1])
        found[carries:] = [
            graph.add("Slice", v, one, end, np.array([0]), one) for v in found[carries:]
        ]
    return found


def _while(graph: Graph, equation: Any, values: list[Value], write: Write) -> list[Value]:
    """Writes a while loop."""
    parameters = equation.params
    test, body = parameters["cond_jaxpr"], parameters["body_jaxpr"]
    first, second = parameters["cond_nconsts"], parameters["body_nconsts"]
    of_test, of_body = values[:first], values[first : first + second]
    carry = values[first + second :]

    def goes_on(inner: Graph, carry: Sequence[Value]) -> Value:
        return write(inner, test.jaxpr, test.consts, [*of_test, *carry])[0]

    def step(inner: Graph, number: str, carry: Sequence[Value]) -> list[Value]:
        del number
        return write(inner, body.jaxpr, body.consts, [*of_body, *carry])

    return _loop(
        graph, None, goes_on(graph, carry), carry, [*body.out_avals], step, goes_on=goes_on
    )


def _loop(
    graph: Graph,
    steps: Value | None,
    test: Value | None,
    carry: Sequence[Value],
    avals: list[Any],
    body: Callable[[Graph, str, Sequence[Value]], list[Value]],
    *,
    goes_on: Callable[[Graph, Sequence[Value]], Value] | None = None,
) -> list[Value]:
    """Adds a Loop whose body computes the next carry, and then what is stacked."""
    onnx, inner = helpers(), Graph(graph)
    number, before = inner.fresh(), inner.fresh()
    names = [inner.fresh() for _ in carry]
    found = body(inner, number, names)
    after = inner.add("Identity", before)
    if goes_on is not None:
        after = inner.add("Identity", goes_on(inner, found[: len(carry)]))
    results = [inner.add("Identity", value) for value in found]  # an output is one node's
    flag = jax.ShapeDtypeStruct((), np.bool_)
    made = onnx.helper.make_graph(
        inner.nodes,
        "body",
        [
            value_info(number, jax.ShapeDtypeStruct((), np.int64)),
            value_info(before, flag),
            *(value_info(n, aval) for n, aval in zip(names, avals, strict=False)),
        ],
        [
            value_info(after, flag),
            *(value_info(name, aval) for name, aval in zip(results, avals, strict=True)),
        ],
    )
    first = np.True_ if test is None else test
    found = graph.add("Loop", steps, first, *carry, outputs=len(avals), body=made)
    return [found] if isinstance(found, str) else found


def _cond(graph: Graph, equation: Any, values: list[Value], write: Write) -> list[Value]:
    """Writes a branch; one that is known is written alone."""
    branches = equation.params["branches"]
    index, arguments = values[0], values[1:]
    if is_constant(index):
        chosen = branches[int(np.clip(int(np.asarray(index)), 0, len(branches) - 1))]
        return write(graph, chosen.jaxpr, chosen.consts, arguments)
    if len(branches) != 2:
        raise DataError(f"a choice of {len(branches)} branches cannot be written as ONNX")

    def branch(closed: Any) -> Any:
        inner = Graph(graph)
        found = write(inner, closed.jaxpr, closed.consts, arguments)
        names = [inner.add("Identity", value) for value in found]
        infos = [value_info(n, aval) for n, aval in zip(names, closed.out_avals, strict=True)]
        return helpers().helper.make_graph(inner.nodes, "branch", [], infos)

    no, yes = map(branch, branches)
    test = graph.cast(index, np.bool_)
    count = len(equation.outvars)
    found = graph.add("If", test, outputs=count, then_branch=yes, else_branch=no)
    return [found] if isinstance(found, str) else found


RULES: dict[str, Callable[[Graph, Any, list[Value], Write], list[Value]]] = {
    "scan": _scan,
    "while": _while,
    "cond": _cond,
}
"""Operations with programs inside, by name."""


def _cholesky(**parameters: Any) -> Callable[[Array], Array]:
    """Makes a Cholesky factorization of matrices [..., D, D], column by column."""
    del parameters

    def factor(matrix: Array) -> Array:
        size = matrix.shape[-1]

        def column(lower: Array, number: Array) -> tuple[Array, None]:
            here = (jnp.arange(size) == number).astype(matrix.dtype)
            row = (lower * here[:, None]).sum(-2)  # L[j]
            rest = matrix @ here - (lower * row[..., None, :]).sum(-1)  # A[:, j] - L L[j]
            pivot = jnp.sqrt((rest * here).sum(-1, keepdims=True))
            found = jnp.where(jnp.arange(size) >= number, rest / pivot, 0)
            return lower + found[..., :, None] * here, None

        return jax.lax.scan(column, jnp.zeros_like(matrix), jnp.arange(size))[0]

    return factor


def _triangular_solve(
    *,
    left_side: bool,
    lower: bool,
    transpose_a: bool,
    conjugate_a: bool,
    unit_diagonal: bool,
) -> Callable[[Array, Array], Array]:
    """Makes a solver of triangular systems, row by row."""
    del conjugate_a

    def solve(matrix: Array, right: Array) -> Array:
        if not left_side:  # X A = B is A^T X^T = B^T
            matrix, right = matrix.mT, right.mT
        if transpose_a:
            matrix = matrix.mT
        size = matrix.shape[-1]
        forward = lower == (transpose_a == (not left_side))
        order = jnp.arange(size) if forward else jnp.arange(size)[::-1]

        def row(found: Array, number: Array) -> tuple[Array, None]:
            here = (jnp.arange(size) == number).astype(matrix.dtype)
            line = (matrix * here[:, None]).sum(-2)  # A[i]
            rest = (right * here[:, None]).sum(-2) - (line[..., None] * found).sum(-2)
            pivot = 1 if unit_diagonal else (line * here).sum(-1)[..., None]
            return found + here[:, None] * (rest / pivot)[..., None, :], None

        solved = jax.lax.scan(row, jnp.zeros_like(right), order)[0]
        return solved if left_side else solved.mT

    return solve


BY_JAX: dict[str, Callable[..., Callable[..., Array]]] = {
    "cholesky": _cholesky,
    "triangular_solve": _triangular_solve,
}
"""Operations that ONNX lacks, as functions of the ones that it has."""
