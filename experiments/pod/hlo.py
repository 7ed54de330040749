"""Analysis of a compiled program's text: messages between devices, and traffic to and from memory.

The text is `jax.stages.Compiled.as_text()`: the scheduled and optimized program of one device.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_BITS = {"pred": 8, "bf16": 16, "token": 0}
_ARRAY = re.compile(r"\b(pred|token|bf16|[sufc]\d+\w*)\[([\d,]*)\](?:\{([^{}]*)\})?")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = ")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(
    r"\b(?:calls|body|to_apply|branch_computations|true_computation|false_computation)="
    r"(\{[^}]*\}|%[\w.\-]+)"
)
_TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_MEGASCALE = re.compile(r'_xla_megascale_transfer_type="(\w+)"')

BETWEEN = "between slices"
KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
    "send",
)
_SLICES = ("slice", "dynamic-slice", "gather")
# Instructions without memory traffic: the first name arrays, the others call computations.
_NAMING = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "partition-id")
_CALLING = ("while", "conditional", "call", "async-start", "async-update", "after-all")


class Array(NamedTuple):
    """An array of a program.

    Attributes:
      num_bytes: Bytes of its numbers.
      padded: Bytes including the padding of its layout to whole tiles.
      in_memory: Whether it is in the device's memory (HBM), not in the chip's local memory.
    """

    num_bytes: int
    padded: int
    in_memory: bool


class Instruction(NamedTuple):
    """A line of a program.

    Attributes:
      arrays: Arrays of the result.
      opcode: Name of the operation.
      operands: Names of the instructions that it reads.
      details: Other attributes; the value of a constant, the number of a parameter.
    """

    arrays: list[Array]
    opcode: str
    operands: list[str]
    details: str


Computation = dict[str, Instruction]


class Program(NamedTuple):
    """A program, parsed.

    Attributes:
      computations: Computations by name.
      results: Name of each computation's root instruction, by the computation's name.
      entry: Name of the computation that runs first.
    """

    computations: dict[str, Computation]
    results: dict[str, str]
    entry: str


class Collective(NamedTuple):
    """An exchange between devices.

    Attributes:
      kind: Opcode, such as all-reduce; between slices of TPUs, "all-reduce between slices".
      num_bytes: Size of the whole: of the reduced arrays, of the gathered arrays, or of each device's
        message.
      arrays: Number of arrays.
      group: Number of devices that take part together; 0 if the program does not contain it.
      times: Number of times it runs; None in a loop of unknown length.
      source: Operation of the traced program that it comes from.
    """

    kind: str
    num_bytes: int
    arrays: int
    group: int
    times: int | None
    source: str


def parse(text: str) -> Program:
    """Parses the text of a compiled program.

    Args:
      text: Text of the program.

    Returns:
      The program.
    """
    program, name = Program({}, {}, ""), ""
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            name = found[2]
            program.computations[name] = {}
            program = program._replace(entry=name) if found[1] else program
        elif found := _INSTRUCTION.match(line):
            program.computations[name][found[2]] = _instruction(line[found.end() :])
            if found[1]:
                program.results[name] = found[2]
    return program


def collectives(program: Program) -> list[Collective]:
    """Finds the exchanges between devices, in the order in which computations are called.

    Of an asynchronous collective only the start counts; the compiler for TPUs weaves the rest into other
    kernels.

    Args:
      program: Parsed program.

    Returns:
      Collectives, those outside of loops and kernels first.
    """
    found = []
    for called, times in _runs(program, fused=True):
        computation = program.computations[called]
        begun = {
            operand
            for instruction in computation.values()
            if '"AsyncCollectiveStart"' in instruction.details
            for operand in instruction.operands
        }
        for name, instruction in computation.items():
            kind = instruction.opcode.removesuffix("-start")
            woven = "chain_id=" in instruction.details and name not in begun
            if kind in KINDS and not woven:
                found.append(_collective(kind, instruction, computation, times))
    return found


def memory_traffic(program: Program) -> int:
    """Counts the bytes that a device reads from and writes to its memory, with the padding of layouts.

    Arrays in the chip's local memory do not count. If a kernel reads slices of an array, or writes a slice in
    place, the slices count. All branches of a conditional count, and a loop of unknown length counts once.

    Args:
      program: Parsed program.

    Returns:
      Bytes of one run of the program.
    """
    return sum(
        (times or 1) * _traffic(program, program.computations[name], instruction)
        for name, times in _runs(program)
        for instruction in program.computations[name].values()
    )


def _instruction(text: str) -> Instruction:
    """Parses the text after the equals sign: result opcode(operands), details."""
    end = _matching(text, 0) if text.startswith("(") else text.index(" ")
    opcode, _, rest = text[end:].strip().partition("(")
    close = _matching("(" + rest, 0) - 2
    operands = _NAME.findall(rest[:close])
    own = opcode in ("constant", "parameter")
    details = rest[:close] if own else rest[close + 1 :]
    return Instruction(_arrays(text[:end]), opcode, operands, details)


def _matching(text: str, start: int) -> int:
    """Finds the position after the bracket that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] in "([{") - (text[place] in ")]}")
        if depth == 0:
            return place + 1
    return len(text)


def _arrays(text: str) -> list[Array]:
    """Parses all arrays of a type; a tuple has several."""
    return [_array(*found) for found in _ARRAY.findall(text)]


def _array(dtype: str, dims: str, layout: str) -> Array:
    """Computes the size of an array, with and without the padding of its tiles."""
    shape = [int(length) for length in dims.split(",") if length]
    # The number of bits is in the name of other dtypes, such as f8e4m3fn, s32 and c64.
    bits = _BITS[dtype] if dtype in _BITS else int(re.match(r"\D+(\d+)", dtype)[1])
    padded, (order, _, tiling) = list(shape), layout.partition(":")
    if shape and (tile := re.match(r"T\(([\d,]+)\)", tiling)):
        minor_to_major = [int(axis) for axis in order.split(",")]
        lengths = [int(length) for length in tile[1].split(",")]
        for axis, length in zip(minor_to_major, reversed(lengths), strict=False):
            padded[axis] = -(-padded[axis] // length) * length
    elsewhere = re.search(r"S\((\d+)\)", tiling)
    return Array(
        -(-math.prod(shape) * bits // 8),
        -(-math.prod(padded) * bits // 8),
        elsewhere is None or elsewhere[1] == "0",
    )


def _runs(program: Program, *, fused: bool = False) -> Iterator[tuple[str, int | None]]:
    """Yields computations once per call, with the number of times that each call runs; None if unknown.

    With `fused`, computations inside kernels are included.
    """

    def walk(name: str, times: int | None) -> Iterator[tuple[str, int | None]]:
        yield name, times
        for instruction in program.computations[name].values():
            inner = times
            if instruction.opcode == "while":
                turns = _turns(program, instruction)
                inner = times and turns and times * turns
            # Other instructions call a kernel's body, or the scalar function of a reduction.
            elif instruction.opcode not in ("call", "conditional", "async-start") and not (
                fused and instruction.opcode == "fusion"
            ):
                continue
            for called in _CALLED.findall(instruction.details):
                for one in _NAME.findall(called):
                    yield from walk(one, inner)

    yield from walk(program.entry, 1)


def _turns(program: Program, loop: Instruction) -> int | None:
    """Finds the length of a loop: annotated, or the constant that a counter from 0 is compared with."""
    if known := _TURNS.search(loop.details):
        return int(known[1])
    condition = re.search(r"condition=%([\w.\-]+)", loop.details)[1]
    numbers = [
        int(i.details)
        for i in program.computations[condition].values()
        if i.opcode == "constant" and re.fullmatch(r"\d+", i.details)
    ]
    return numbers[0] if len(numbers) == 1 else None


def _collective(
    kind: str, instruction: Instruction, computation: Computation, times: int | None
) -> Collective:
    """Describes a collective by its operands."""
    # Operands, not results: the results of an asynchronous start contain its operands as well.
    sent = [array for name in instruction.operands for array in computation[name].arrays]
    group = _group(instruction.details)
    if beyond := _MEGASCALE.search(instruction.details):
        kind = f"{beyond[1].lower().replace('_', '-')} {BETWEEN}"
    source = re.search(r'op_name="([^"]*)"', instruction.details)
    return Collective(
        kind=kind,
        num_bytes=sum(array.num_bytes for array in sent) * (group if kind == "all-gather" else 1),
        arrays=len([array for array in sent if array.num_bytes]),
        group=group,
        times=times,
        source=source[1] if source else "",
    )


def _group(details: str) -> int:
    """Parses the number of devices in a replica group; 0 if there is none."""
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", details):
        return int(found[1])
    found = re.search(r"replica_groups=\{\{([\d,]+)\}", details)
    return len(found[1].split(",")) if found else 0


def _traffic(program: Program, computation: Computation, instruction: Instruction) -> int:
    """Counts the bytes of memory that an instruction reads and writes."""
    if instruction.opcode in _NAMING + _CALLING or instruction.opcode.endswith("-done"):
        return 0
    if instruction.opcode == "copy-start":  # results: the copy, its source, and a flag
        return sum(array.padded for array in instruction.arrays[:2] if array.in_memory)
    if instruction.opcode == "slice-start":  # results: the source, the slice, and a flag
        whole, part, *_ = instruction.arrays
        return part.padded * (whole.in_memory + part.in_memory)
    # A single instruction is treated like a kernel (a fusion) of one instruction.
    operands = {name: computation[name] for name in instruction.operands}
    if instruction.opcode == "fusion":
        name = _CALLED.search(instruction.details)[1].removeprefix("%")
        kernel, result = program.computations[name], program.results[name]
        numbered = {i.details: name for name, i in kernel.items() if i.opcode == "parameter"}
        parameters = [numbered[str(place)] for place in range(len(instruction.operands))]
    else:
        kernel = {name: Instruction(i.arrays, "parameter", [], "") for name, i in operands.items()}
        kernel[result := ""] = instruction
        parameters = instruction.operands
    total = 0
    for name, parameter in zip(instruction.operands, parameters, strict=True):
        whole = sum(array.padded for array in operands[name].arrays if array.in_memory)
        total += min(whole, _read(kernel, parameter))
    results = kernel[result].operands if kernel[result].opcode == "tuple" else [result]
    for array, name in zip(instruction.arrays, results, strict=False):
        total += min(array.padded, _written(kernel, name)) if array.in_memory else 0
    return total


def _read(kernel: Computation, name: str) -> float:
    """Counts the bytes of an array that a kernel reads; infinity stands for the whole array."""
    total = 0.0
    for user, instruction in kernel.items():
        if name not in instruction.operands:
            continue
        if instruction.opcode == "bitcast":
            total += _read(kernel, user)
        elif instruction.operands.index(name) or instruction.operands.count(name) > 1:
            return math.inf
        elif instruction.opcode in _SLICES:
            total += _padded(instruction)
        elif instruction.opcode != "dynamic-update-slice":
            return math.inf
    return total


def _written(kernel: Computation, name: str) -> int:
    """Counts the bytes of a result that a kernel writes, only the slice if it writes in place."""
    instruction = kernel[name]
    if instruction.opcode == "bitcast":
        return _written(kernel, instruction.operands[0])
    if instruction.opcode == "dynamic-update-slice":
        return _padded(kernel[instruction.operands[1]])
    return 0 if instruction.opcode == "parameter" else _padded(instruction)


def _padded(instruction: Instruction) -> int:
    """Adds up the padded bytes of an instruction's results."""
    return sum(array.padded for array in instruction.arrays)
