"""What a training will take, found before it runs, and the choice of what fits a memory budget."""

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.flags.settings import UsageError
from experiments.flags.training import RunPlan
from experiments.runtime import distributed
from experiments.runtime.blocks import CompiledSteps
from experiments.runtime.devices import largest_divisor, program_bytes

# What keeps less than each adjoint and gives the same gradient. Truncation gives another one, so that it is
# only ever asked for; who asks for `remat` may have a loss for which mixed gradients are wrong; and what
# follows a request for the host's memory is the user's to say.
THRIFTIER = {
    "reverse": ("mixed", "recursive"),
    "mixed": ("recursive",),
}
_CACHE_HIT = "/jax/compilation_cache/cache_hits"


class Program(NamedTuple):
    """A compiled block of meta-steps.

    Attributes:
      plan: The run that it was compiled from.
      blocks: holds it, for the training loop.
      memory_bytes: arguments, results and temporaries: on a CPU of all its devices, which share the
        machine's memory, elsewhere of one device.
      seconds: what compiling took.
      cached: whether it was read from the cache of compiled programs.
    """

    plan: RunPlan
    blocks: CompiledSteps
    memory_bytes: int
    seconds: float
    cached: bool


class Choice(NamedTuple):
    """A program, and in words how it was found."""

    program: Program
    search: str


def compile_program(
    plan: RunPlan, blocks: CompiledSteps, state: Any, data: Any, *, mesh: Mesh
) -> Program:
    """Compiles a block of steps for arguments that lie on the devices of a mesh."""
    events = []

    def listen(event: str, **details: Any) -> None:
        events.append(event)

    jax.monitoring.register_event_listener(listen)
    try:
        compiled = blocks.compile(state, data)
    finally:
        jax.monitoring.unregister_event_listener(listen)
    num_bytes = program_bytes(compiled, mesh.local_devices)
    if num_bytes is None:
        raise UsageError(
            f"{mesh.devices.flat[0]} does not tell what a program needs; leave out --plan and "
            "--memory_budget."
        )
    # The same in every process: what is chosen by it has to be.
    num_bytes = max(distributed.exchange(num_bytes))
    return Program(plan, blocks, num_bytes, blocks.seconds, _CACHE_HIT in events)


def choose(compiled: Callable[[RunPlan], Program], plan: RunPlan, *, tasks: int) -> Choice:
    """Finds the first program that fits the memory budget, if there is one.

    Fewer tasks at once come before a thriftier adjoint. They leave the arithmetic as it is, and a CPU is even
    quicker with them: conv4-64, 5 inner steps, a core of an Intel Xeon, 8 tasks at once and 1: 448 and 294 ms
    by strides, 2.4 and 0.9 s by max-pooling; whereas `mixed` has 16% more arithmetic than `reverse`, and
    `recursive` 37%. By strides memory falls by 87% with one task at once, by 60% and 51% with the adjoints.

    Args:
      compiled: Function that compiles a run's training.
      plan: The run as asked for; the adjoint and the tasks at once may change.
      tasks: how many of a device's tasks are taken at once if nothing changes.

    Raises:
      UsageError: if nothing fits.
    """
    budget = plan.memory_budget or math.inf
    tried: list[tuple[int, str]] = []

    def named(candidate: RunPlan) -> str:
        unchanged = candidate.tasks_at_once == plan.tasks_at_once
        return (
            f"{candidate.inner.adjoint}, {tasks if unchanged else candidate.tasks_at_once} at once"
        )

    def attempt(adjoint: str, at_once: int) -> Program:
        asked = plan.tasks_at_once if at_once == tasks else at_once
        changed = plan._replace(inner=plan.inner._replace(adjoint=adjoint), tasks_at_once=asked)
        program = compiled(changed)
        tried.append((program.memory_bytes, named(changed)))
        return program

    def with_adjoint(adjoint: str) -> Program | None:
        most = attempt(adjoint, tasks)
        if most.memory_bytes <= budget:
            return most
        # One task next, because compiling takes seconds: where that is too large, so is all between.
        least = attempt(adjoint, 1) if tasks > 1 else most
        if least.memory_bytes > budget:
            return None
        # Memory grows by about the same amount with each task, so that few more need compiling.
        growth = (most.memory_bytes - least.memory_bytes) / (tasks - 1)
        for at_once in _halvings(tasks):
            if least.memory_bytes + growth * (at_once - 1) <= budget:
                between = attempt(adjoint, at_once)
                if between.memory_bytes <= budget:
                    return between
        return least

    # The derivatives of other estimators and learners have nothing to do with adjoints.
    unrolls = plan.inner.estimator == "backprop" and plan.inner.entry.unrolls
    asked = plan.inner.adjoint
    thriftier = THRIFTIER.get(asked, ()) if unrolls else ()
    for adjoint in (asked, *thriftier):
        if program := with_adjoint(adjoint):
            break
    else:
        smallest = min(tried)
        raise UsageError(
            f"--memory_budget={plan.training.memory_budget} is too small: the smallest program found, "
            f"{smallest[1]}, needs {in_words(smallest[0])}. Use a larger budget, fewer "
            "--inner_steps, fewer --queries, or a smaller network."
        )
    sizes = [f"{words} needs {in_words(num_bytes)}" for num_bytes, words in tried]
    return Choice(program, f"{'; '.join(sizes)}; taken: {named(program.plan)}")


def rows(program: Program, *, flops: int, mesh: Mesh) -> list[tuple[str, str]]:
    """Puts into words for `report.table` what a block of meta-steps takes.

    Args:
      program: the block.
      flops: operations of one meta-step, as `metajax.flops` counts.
      mesh: the devices; the rate of their matrix products is measured here, in well under a second.
    """
    training = program.plan.training
    rate = product_rate(mesh, jnp.dtype(training.precision))
    where = "on a device"
    if _one_memory(mesh):
        where = f"on {mesh.size} CPU devices together" if mesh.size > 1 else "on the CPU"
    return [
        (
            "memory",
            f"{in_words(program.memory_bytes)} {where}: arguments with the data, results and temporaries of "
            "the training program; validation and test with their data, libraries and compiler come on top",
        ),
        (
            "arithmetic",
            f"{operations_in_words(flops)} a meta-step, in matrix products and convolutions",
        ),
        (
            "floor",
            f"{three_digits(1000 * flops / rate)} ms a meta-step, "
            f"{training.meta_batch * rate / flops:,.1f} tasks/s: what that arithmetic "
            f"alone takes at {operations_in_words(rate)}/s, the rate of large matrix products "
            f"in {training.precision} measured here",
        ),
        (
            "compile time",
            f"{program.seconds:.1f} s" + (", read from the cache" if program.cached else ""),
        ),
    ]


def product_rate(mesh: Mesh, dtype: Any) -> float:
    """Measures the operations a second of large matrix products, on all devices of a mesh at once."""
    size = 1024 if _one_memory(mesh) else 4096
    by_rows = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    left = jax.device_put(jnp.ones((mesh.size * size, size), dtype), by_rows)
    right = jax.device_put(jnp.ones((size, size), dtype), NamedSharding(mesh, PartitionSpec()))
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(left, right))

    def seconds() -> float:
        start = time.perf_counter()
        jax.block_until_ready(product(left, right))
        return time.perf_counter() - start

    return 2 * mesh.size * size**3 / min(seconds() for _ in range(5))


def in_words(num_bytes: int) -> str:
    """A size in the largest binary unit that it fills, rounded up: a budget of that size is enough."""
    if num_bytes < 1024:
        return f"{num_bytes} bytes"
    units = ("KiB", "MiB", "GiB", "TiB")
    sizes = [math.ceil(10 * num_bytes / 1024**power) / 10 for power in range(1, 5)]
    power = next((power for power, size in enumerate(sizes) if size < 1024), 3)
    return f"{sizes[power]:.1f} {units[power]}"


def operations_in_words(number: float) -> str:
    """A number of floating-point operations in the largest unit that it fills."""
    power = next((power for power in range(5) if number / 1000**power < 999.5), 5)
    return f"{three_digits(number / 1000**power)} {('', 'k', 'M', 'G', 'T', 'P')[power]}FLOP"


def three_digits(number: float) -> str:
    """A number to three digits, or all those before the point."""
    return f"{number:,.0f}" if number >= 99.95 else f"{number:.3g}"


def _one_memory(mesh: Mesh) -> bool:
    """Whether the devices share one memory, as those of a CPU do."""
    return mesh.devices.flat[0].platform == "cpu"


def _halvings(number: int) -> list[int]:
    """Divisors of a number strictly between it and 1, each at most half of the one before."""
    found = []
    while number > 1 and (number := largest_divisor(number, at_most=number // 2)) > 1:
        found.append(number)
    return found
