"""Predicted time of a meta-step compiled for a pod, checks of its messages, predictions for other pods."""

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ..runtime import memory
from . import chips
from .chips import Topology
from .hlo import BETWEEN, Collective

SCALING = (1, 8, 64, 256, 1024)


class Step(NamedTuple):
    """Lower bounds of a meta-step's time in seconds, by the datasheet.

    Attributes:
      arithmetic: Matrix products and convolutions at the peak rate.
      memory: Traffic to and from a chip's memory.
      exchange: Messages between chips.
    """

    arithmetic: float
    memory: float
    exchange: float

    @property
    def seconds(self) -> float:
        """Time of arithmetic and memory traffic at once, followed by the exchange."""
        return max(self.arithmetic, self.memory) + self.exchange


class Report(NamedTuple):
    """Measurements of a compiled meta-step.

    Attributes:
      topology: Chips that it was compiled for.
      num_tasks: Number of tasks per meta-step, on all chips.
      shards: Number of chips that the parameters are sharded over.
      peak: Bytes of a chip's memory at the peak, with the program's code.
      operations: Operations of all chips, as `metajax.flops` counts them.
      traffic: Bytes to and from the memory of a chip.
      collectives: Messages between chips.
      averaged: Bytes that are averaged over tasks: the meta-gradient and the metrics.
    """

    topology: Topology
    num_tasks: int
    shards: int
    peak: int
    operations: int
    traffic: int
    collectives: Sequence[Collective]
    averaged: int


def predict(report: Report, topology: Topology) -> Step:
    """Predicts a lower bound of the time of a step on other chips, with unchanged tasks per chip.

    Args:
      report: Measurements of the compiled step.
      topology: Chips to predict for.

    Returns:
      The bounds.
    """
    return Step(
        report.operations / report.topology.chips / topology.chip.peak,
        report.traffic / topology.chip.memory_rate,
        sum(_exchange_seconds(report, topology)) if topology.chips > 1 else 0.0,
    )


def _exchange_seconds(report: Report, topology: Topology) -> Iterator[float]:
    """Yields lower bounds of the time of each message of a step."""
    same, inside = topology == report.topology, math.prod(report.topology.shape)
    if (
        not same
        and report.shards == 1
        and (report.topology.chips == 1 or report.topology.slices > 1)
    ):
        # Compiled for a single chip (no messages) or several slices (messages that depend on their number):
        # the only message on other chips is one average.
        yield chips.collective_seconds(
            "all-reduce", report.averaged, topology, group=topology.chips
        )
        return
    for one in report.collectives:
        times, group = one.times or 1, one.group
        # Messages between slices are predicted only for the pod that was compiled for.
        if BETWEEN in one.kind:
            yield times * chips.between_seconds(one.num_bytes, topology) if same else 0.0
            continue
        # A group of all chips of a slice (or one that the program does not name) becomes all chips; a group
        # of the copies of a shard keeps its share of a slice, and is then averaged over slices.
        if group in (0, inside):
            group = inside if same else topology.chips
        elif not same and one.kind == "all-reduce" and group == inside // report.shards:
            group = math.prod(topology.shape) // report.shards
            yield times * chips.between_seconds(one.num_bytes / group, topology)
        yield times * chips.collective_seconds(one.kind, one.num_bytes, topology, group=group)


def unexpected(report: Report) -> list[str]:
    """Finds messages between chips that a meta-step should not need.

    Args:
      report: Measurements of the compiled step.

    Returns:
      A sentence per problem.
    """
    problems, most = [], _expected(report)
    for one in report.collectives:
        gathers = one.kind in ("all-gather", "reduce-scatter")
        groups = {report.shards} | (
            {math.prod(report.topology.shape)} if report.topology.slices > 1 else set()
        )
        if one.kind not in most or (gathers and one.group not in groups):
            problems.append(f"{_in_words(one)}: not expected.")
        elif one.times is None:
            problems.append(f"{_in_words(one)}: not expected in a loop.")
    for kind, limit in most.items():
        same = [one for one in report.collectives if one.kind == kind]
        total = sum((one.times or 1) * one.num_bytes for one in same)
        if total > limit:
            problems.append(
                f"{kind} of {memory.in_words(total)} per step: more than the "
                f"{memory.in_words(report.averaged)} of the meta-gradient and metrics."
            )
        times = sum(one.times or 1 for one in same)
        if report.shards == 1 and (times > 1 or (not times and kind.startswith("all-reduce"))):
            problems.append(f"{kind}: {times} times per step, not once.")
    return problems


def _expected(report: Report) -> dict[str, int]:
    """Lists the kinds of messages that a step may need, with their maximal bytes."""
    if report.topology.chips == 1:
        return {}
    most = {"all-reduce": report.averaged}
    if report.topology.slices > 1:
        # Each chip exchanges its part of the average, whose size is rounded up to 4 KiB, with up to 4 KiB
        # more. The compiler chooses how the parts are made within a slice, and how they are put together
        # again.
        inside = math.prod(report.topology.shape)
        average = inside * 2**12 * (math.ceil(report.averaged / inside / 2**12) + 1)
        ways = ("all-reduce", f"all-reduce {BETWEEN}", "all-gather", "collective-permute")
        most = dict.fromkeys(ways, average)
    if report.shards > 1:
        # Parameters are gathered, and gradients averaged within the group that shares a copy, then over
        # groups; the compiler may use an all-reduce for either.
        for kind in ("all-reduce", "all-gather", "reduce-scatter"):
            most[kind] = most.get(kind, 0) + report.averaged
    return most


def verdict(report: Report) -> list[str]:
    """Finds what is wrong with a program: too little memory, or unexpected messages.

    Args:
      report: Measurements of the compiled step.

    Returns:
      A sentence per problem.
    """
    problems = unexpected(report)
    if report.peak > report.topology.chip.memory_bytes:
        problems.insert(
            0, does_not_fit(f"it takes {memory.in_words(report.peak)}", report.topology)
        )
    return problems


def scaling_table(report: Report) -> str:
    """Formats times of a step and tasks per second over numbers of chips, at constant tasks per chip.

    Args:
      report: Measurements of the compiled step.

    Returns:
      Lines of a table.
    """
    lines = [("chips", "as", "tasks", "step", "exchange", "tasks/s", "efficiency", "")]
    alone = None
    numbers = sorted({*SCALING, report.topology.chips})
    for number in numbers:
        same = number == report.topology.chips
        topology = report.topology if same else chips.of_chips(report.topology.generation, number)
        if topology is None or number % report.shards:
            continue
        step = predict(report, topology)
        num_tasks = report.num_tasks * number // report.topology.chips
        rate = num_tasks / step.seconds
        alone = alone or rate / number
        lines.append(
            (
                f"{number:,}",
                str(topology),
                f"{num_tasks:,}",
                _milliseconds(step.seconds),
                _milliseconds(step.exchange),
                f"{rate:,.0f}",
                f"{rate / number / alone:.1%}",
                "compiled" if same else "predicted",
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def does_not_fit(why: str, topology: Topology) -> str:
    """Formats the error of a program that is too large.

    Args:
      why: Reason.
      topology: Chips.

    Returns:
      Two sentences, with the remedy.
    """
    return (
        f"The program does not fit the {memory.in_words(topology.chip.memory_bytes)} of a chip of "
        f"{topology.generation}: {why}. Use a smaller --meta_batch or --tasks_at_once, --adjoint=mixed or "
        "recursive, or --parameter_shards."
    )


def rows(report: Report, *, accessed: float) -> list[tuple[str, str]]:
    """Formats a chip's work in a step for `report.table`.

    Args:
      report: Measurements of the compiled step.
      accessed: Bytes accessed by the cost analysis of XLA.

    Returns:
      Pairs of name and text.
    """
    chip, step = report.topology.chip, predict(report, report.topology)
    counts = Counter(map(_in_words, report.collectives))
    messages = [f"{n} x {words}" if n > 1 else words for words, n in counts.items()]
    names = itertools.chain(["exchange"], itertools.repeat(""))
    bound = "arithmetic" if step.arithmetic > step.memory else "memory"
    return [
        (
            "FLOPs",
            f"{memory.operations_in_words(report.operations / report.topology.chips)} of a chip in matrix "
            f"products and convolutions: {_milliseconds(step.arithmetic)} at "
            f"{memory.operations_in_words(chip.peak)}/s, "
            "the peak in bfloat16, in which TPUs multiply float32 too unless asked for more precision",
        ),
        (
            "traffic",
            f"{memory.in_words(report.traffic)} to and from a chip's memory: {_milliseconds(step.memory)} at "
            f"{chip.memory_rate / 1e9:,.0f} GB/s; XLA counts {accessed / 2**30:.1f} GiB accessed, with "
            "local memory of the chip and each loop once",
        ),
        *zip(names, messages, strict=False),
        (
            "step",
            f"{_milliseconds(step.seconds)} at least, of which {_milliseconds(step.exchange)} exchange: a "
            f"lower bound by the datasheet, limited by {bound}; kernels that wait or are slower take longer",
        ),
    ]


def _in_words(found: Collective) -> str:
    """Formats a collective."""
    often = {1: "", None: ", in a loop"}.get(found.times, f", {found.times} times")
    arrays = f" of {found.arrays} arrays" if found.arrays > 1 else ""
    group = f" over {found.group:,} chips" if found.group else ""
    source = f", from {found.source}" if found.source else ""
    return f"{found.kind} of {memory.in_words(found.num_bytes)}{arrays}{group}{often}{source}"


def _milliseconds(seconds: float) -> str:
    """Formats seconds as milliseconds."""
    return f"{memory.three_digits(1000 * seconds)} ms"
