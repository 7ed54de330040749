"""What a meta-step compiled for a pod of TPUs takes, whether that is right, and what follows for others."""

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from experiments.pod import chips
from experiments.pod.chips import Topology
from experiments.pod.hlo import BETWEEN, Collective
from experiments.runtime import plan

SCALING = (1, 8, 64, 256, 1024)


class Step(NamedTuple):
    """The least seconds of a meta-step, by the datasheet.

    Attributes:
      arithmetic: matrix products and convolutions at the peak rate.
      memory: what passes to and from a chip's memory.
      exchange: what passes between chips.
    """

    arithmetic: float
    memory: float
    exchange: float

    @property
    def seconds(self) -> float:
        """Arithmetic and memory at once, and then the exchange."""
        return max(self.arithmetic, self.memory) + self.exchange


class Report(NamedTuple):
    """What is known of a compiled meta-step.

    Attributes:
      where: the chips it was compiled for.
      num_tasks: tasks of a meta-step, on all chips.
      shards: over how many chips parameters are divided.
      peak: bytes of a chip's memory that it takes, with its code.
      operations: of all chips, as `metajax.flops` counts.
      traffic: bytes to and from the memory of a chip.
      found: what chips exchange.
      averaged: bytes of what is averaged over tasks: the meta-gradient and the metrics.
    """

    where: Topology
    num_tasks: int
    shards: int
    peak: int
    operations: int
    traffic: int
    found: Sequence[Collective]
    averaged: int


def predict(told: Report, where: Topology) -> Step:
    """The least time of a step on so many chips, each with the tasks that it has in what was compiled."""
    return Step(
        told.operations / told.where.chips / where.chip.peak,
        told.traffic / where.chip.memory_rate,
        sum(_exchange_seconds(told, where)) if where.chips > 1 else 0.0,
    )


def _exchange_seconds(told: Report, where: Topology) -> Iterator[float]:
    """Yields the least time of each message of a step on so many chips."""
    same, inside = where == told.where, math.prod(told.where.shape)
    if not same and told.shards == 1 and (told.where.chips == 1 or told.where.slices > 1):
        # One average, which takes no message on a chip and on several slices what suits their number.
        yield chips.collective_seconds("all-reduce", told.averaged, where, group=where.chips)
        return
    for one in told.found:
        times, group = one.times or 1, one.group
        if BETWEEN in one.kind:
            yield times * chips.between_seconds(one.num_bytes, where) if same else 0.0
            continue
        if group in (0, inside):
            group = inside if same else where.chips
        elif not same and one.kind == "all-reduce" and group == inside // told.shards:
            group = math.prod(where.shape) // told.shards
            yield times * chips.between_seconds(one.num_bytes / group, where)
        yield times * chips.collective_seconds(one.kind, one.num_bytes, where, group=group)


def unexpected(told: Report) -> list[str]:
    """Says what passes between chips and should not; each a sentence."""
    problems, most = [], _expected(told)
    for one in told.found:
        gathers = one.kind in ("all-gather", "reduce-scatter")
        groups = {told.shards} | ({math.prod(told.where.shape)} if told.where.slices > 1 else set())
        if one.kind not in most or (gathers and one.group not in groups):
            problems.append(f"{_in_words(one)}: not expected.")
        elif one.times is None:
            problems.append(f"{_in_words(one)}: not expected in a loop.")
    for kind, limit in most.items():
        same = [one for one in told.found if one.kind == kind]
        total = sum((one.times or 1) * one.num_bytes for one in same)
        if total > limit:
            problems.append(
                f"{kind} of {plan.in_words(total)} a step: more than the {plan.in_words(told.averaged)} of "
                "the meta-gradient and metrics."
            )
        times = sum(one.times or 1 for one in same)
        if told.shards == 1 and (times > 1 or (not times and kind.startswith("all-reduce"))):
            problems.append(f"{kind}: {times} times a step, not once.")
    return problems


def _expected(told: Report) -> dict[str, int]:
    """Kinds of what may pass between chips, and how many bytes of each in a step."""
    if told.where.chips == 1:
        return {}
    most = {"all-reduce": told.averaged}
    if told.where.slices > 1:
        # Each chip passes on its part of the average, whose size is rounded up to 4 KiB, and up to one more.
        # How the parts come about in a slice and are put together again is the compiler's choice.
        inside = math.prod(told.where.shape)
        average = inside * 2**12 * (math.ceil(told.averaged / inside / 2**12) + 1)
        ways = ("all-reduce", f"all-reduce {BETWEEN}", "all-gather", "collective-permute")
        most = dict.fromkeys(ways, average)
    if told.shards > 1:
        # Parameters are gathered. What is averaged over those who share one goes on over all others; the
        # compiler may take either for a whole all-reduce.
        for kind in ("all-reduce", "all-gather", "reduce-scatter"):
            most[kind] = most.get(kind, 0) + told.averaged
    return most


def verdict(told: Report) -> list[str]:
    """Says what is wrong with a program: that it does not fit, or what is unexpected."""
    problems = unexpected(told)
    if told.peak > told.where.chip.memory_bytes:
        problems.insert(0, does_not_fit(f"it takes {plan.in_words(told.peak)}", told.where))
    return problems


def scaling_table(told: Report) -> str:
    """Lays out the least time of a step, and tasks a second, over numbers of chips; a chip's tasks stay."""
    lines = [("chips", "as", "tasks", "step", "exchange", "tasks/s", "efficiency", "")]
    alone = None
    numbers = sorted({*SCALING, told.where.chips})
    for number in numbers:
        same = number == told.where.chips
        where = told.where if same else chips.of_chips(told.where.generation, number)
        if where is None or number % told.shards:
            continue
        step = predict(told, where)
        num_tasks = told.num_tasks * number // told.where.chips
        rate = num_tasks / step.seconds
        alone = alone or rate / number
        lines.append(
            (
                f"{number:,}",
                str(where),
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


def does_not_fit(why: str, where: Topology) -> str:
    """The sentence of a program that is too large."""
    return (
        f"The program does not fit the {plan.in_words(where.chip.memory_bytes)} of a chip of "
        f"{where.generation}: {why}. Use a smaller --meta_batch or --tasks_at_once, --adjoint=mixed or "
        "recursive, or --parameter_shards."
    )


def rows(told: Report, *, accessed: float) -> list[tuple[str, str]]:
    """Puts into words for `report.table` what a chip does in a step.

    Args:
      told: of the step.
      accessed: the bytes that XLA's cost analysis tells.
    """
    chip, step = told.where.chip, predict(told, told.where)
    counts = Counter(map(_in_words, told.found))
    messages = [f"{n} x {words}" if n > 1 else words for words, n in counts.items()]
    names = itertools.chain(["exchange"], itertools.repeat(""))
    bound = "arithmetic" if step.arithmetic > step.memory else "memory"
    return [
        (
            "FLOPs",
            f"{plan.operations_in_words(told.operations / told.where.chips)} of a chip in matrix products "
            f"and convolutions: {_milliseconds(step.arithmetic)} at {plan.operations_in_words(chip.peak)}/s, "
            "the peak in bfloat16, in which TPUs multiply float32 too unless asked for more precision",
        ),
        (
            "traffic",
            f"{plan.in_words(told.traffic)} to and from a chip's memory: {_milliseconds(step.memory)} at "
            f"{chip.memory_rate / 1e9:,.0f} GB/s; XLA counts {accessed / 2**30:.1f} GiB accessed, those on "
            "the chip included and loops once",
        ),
        *zip(names, messages, strict=False),
        (
            "step",
            f"{_milliseconds(step.seconds)} at least, of which {_milliseconds(step.exchange)} exchange: a "
            f"floor by the datasheet, with {bound} as its bound; kernels that wait or reach less come on top",
        ),
    ]


def _in_words(found: Collective) -> str:
    often = {1: "", None: ", in a loop"}.get(found.times, f", {found.times} times")
    arrays = f" of {found.arrays} arrays" if found.arrays > 1 else ""
    group = f" over {found.group:,} chips" if found.group else ""
    source = f", from {found.source}" if found.source else ""
    return f"{found.kind} of {plan.in_words(found.num_bytes)}{arrays}{group}{often}{source}"


def _milliseconds(seconds: float) -> str:
    return f"{plan.three_digits(1000 * seconds)} ms"
