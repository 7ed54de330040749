"""Memory, arithmetic and time of a training before it runs, and the search for what fits a memory budget."""

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ..flags.plan import RunPlan
from ..flags.settings import UsageError
from . import distributed
from .compiled_steps import CompiledSteps
from .devices import largest_divisor, program_bytes

# Adjoints that store less than the requested one and give the same gradient. `truncated` gives another
# gradient and is never chosen here; `remat` may have been requested for a loss that `mixed` and `recursive`
# cannot differentiate; and a request to store on the host leaves the next choice to the user.
THRIFTIER = {
    "reverse": ("mixed", "recursive"),
    "mixed": ("recursive",),
}
_CACHE_HIT = "/jax/compilation_cache/cache_hits"


class Program(NamedTuple):
    """Compiled meta-steps with their costs.

    Attributes:
      plan: Run that they were compiled from.
      compiled_steps: The program, for the training loop.
      memory_bytes: Size of arguments, results and temporaries: of all devices on a CPU, whose devices share
        the machine's memory, elsewhere of one device.
      seconds: Duration of compilation.
      cached: Whether it was read from the cache of compiled programs.
    """

    plan: RunPlan
    compiled_steps: CompiledSteps
    memory_bytes: int
    seconds: float
    cached: bool


class Choice(NamedTuple):
    """The program chosen for a memory budget.

    Attributes:
      program: Chosen program.
      search: Description of the programs that were tried.
    """

    program: Program
    search: str


def compile_program(
    plan: RunPlan, compiled_steps: CompiledSteps, state: Any, data: Any, *, mesh: Mesh
) -> Program:
    """Compiles meta-steps for arguments on the devices of a mesh, and measures the program.

    Args:
      plan: Run that the steps were built from.
      compiled_steps: Steps to compile.
      state: Training state on the devices.
      data: Data that a step reads, on the devices.
      mesh: Mesh of the devices.

    Returns:
      The program, with the memory of the process that needs most.

    Raises:
      UsageError: If the backend does not report a program's memory.
    """
    events = []

    def listen(event: str, **details: Any) -> None:
        events.append(event)

    jax.monitoring.register_event_listener(listen)
    try:
        compiled = compiled_steps.compile(state, data)
    finally:
        jax.monitoring.unregister_event_listener(listen)
    num_bytes = program_bytes(compiled, mesh.local_devices)
    if num_bytes is None:
        raise UsageError(
            f"The backend of {mesh.devices.flat[0]} does not report the memory of programs; leave out --plan "
            "and --memory_budget."
        )
    # The maximum over processes, so that all of them choose the same program.
    num_bytes = max(distributed.exchange(num_bytes))
    seconds = compiled_steps.seconds
    return Program(plan, compiled_steps, num_bytes, seconds, _CACHE_HIT in events)


def choose(compiled: Callable[[RunPlan], Program], plan: RunPlan, *, tasks: int) -> Choice:
    """Finds the first program that fits the memory budget, or compiles the requested one without a budget.

    Fewer tasks at once are tried before an adjoint that stores less. They leave the arithmetic as it is,
    and a CPU is even faster with them: conv4-64, 5 inner steps, a core of an Intel Xeon, 8 tasks at once
      and 1: 448 and 294 ms
    by strides, 2.4 and 0.9 s by max-pooling; whereas `mixed` has 16% more arithmetic than `reverse`, and
    `recursive` 37%. By strides memory falls by 87% with one task at once, by 60% and 51% with the adjoints.

    Args:
      compiled: Function that compiles a run's training.
      plan: Requested run; the adjoint and the tasks at once may change.
      tasks: Number of tasks that a device takes at once as requested.

    Returns:
      The program, and a description of the search.

    Raises:
      UsageError: If no program fits.
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
        # One task at once comes next, because compiling takes seconds: if it does not fit, nothing does.
        least = attempt(adjoint, 1) if tasks > 1 else most
        if least.memory_bytes > budget:
            return None
        # Memory grows about linearly in the tasks at once: only sizes predicted to fit are compiled.
        growth = (most.memory_bytes - least.memory_bytes) / (tasks - 1)
        for at_once in _halvings(tasks):
            if least.memory_bytes + growth * (at_once - 1) <= budget:
                between = attempt(adjoint, at_once)
                if between.memory_bytes <= budget:
                    return between
        return least

    # Other estimators and learners do not differentiate an unrolled inner loop: adjoints do not matter.
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
            "--inner_steps, fewer --queries or --episodes, or a smaller network."
        )
    sizes = [f"{words} needs {in_words(num_bytes)}" for num_bytes, words in tried]
    return Choice(program, f"{'; '.join(sizes)}; chosen: {named(program.plan)}")


def rows(program: Program, *, flops: int | None, mesh: Mesh) -> list[tuple[str, str]]:
    """Formats the costs of a meta-step for `report.table`.

    Args:
      program: Compiled meta-steps.
      flops: Operations of one meta-step, as `metajax.flops` counts them; None if they are not known before
        it runs.
      mesh: Mesh of the devices; the rate of their matrix products is measured, in well under a second.

    Returns:
      Pairs of a name and a description.
    """
    training = program.plan.training
    where = "on a device"
    if _one_memory(mesh):
        where = f"on {mesh.size} CPU devices together" if mesh.size > 1 else "on the CPU"
    return [
        (
            "memory",
            f"{in_words(program.memory_bytes)} {where}: arguments with the data, results and temporaries of "
            "the training program; validation and test with their data, libraries and compiler are extra",
        ),
        *_arithmetic(training, flops, mesh),
        (
            "compile time",
            f"{program.seconds:.1f} s" + (", read from the cache" if program.cached else ""),
        ),
    ]


def _arithmetic(training: Any, flops: int | None, mesh: Mesh) -> list[tuple[str, str]]:
    """Formats the operations of a meta-step and the time that they take at least."""
    if flops is None:
        text = (
            "not known before it runs: a search in the meta-step ends when it has found something"
        )
        return [("arithmetic", text)]
    rate = product_rate(mesh, jnp.dtype(training.precision))
    return [
        (
            "arithmetic",
            f"{operations_in_words(flops)} per meta-step, in matrix products and convolutions",
        ),
        (
            "floor",
            f"{three_digits(1000 * flops / rate)} ms per meta-step, "
            f"{training.meta_batch * rate / flops:,.1f} tasks/s: the time of that arithmetic "
            f"alone at {operations_in_words(rate)}/s, the rate of large matrix products "
            f"in {training.precision} measured here",
        ),
    ]


def product_rate(mesh: Mesh, dtype: Any) -> float:
    """Measures the rate of large matrix products on all devices of a mesh at once.

    Args:
      mesh: Mesh of the devices.
      dtype: Dtype of the matrices.

    Returns:
      Floating-point operations per second of all devices together, the best of five measurements.
    """
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
    """Formats a size in the largest binary unit below it, rounded up: a memory budget of that size suffices.

    Args:
      num_bytes: Number of bytes, not negative.

    Returns:
      A text such as "1.5 GiB".
    """
    if num_bytes < 1024:
        return f"{num_bytes} bytes"
    units = ("KiB", "MiB", "GiB", "TiB")
    sizes = [math.ceil(10 * num_bytes / 1024**power) / 10 for power in range(1, 5)]
    power = next((power for power, size in enumerate(sizes) if size < 1024), 3)
    return f"{sizes[power]:.1f} {units[power]}"


def operations_in_words(number: float) -> str:
    """Formats a number of floating-point operations in the largest unit below it.

    Args:
      number: Number of operations, not negative.

    Returns:
      A text such as "1.5 GFLOP".
    """
    power = next((power for power in range(5) if number / 1000**power < 999.5), 5)
    return f"{three_digits(number / 1000**power)} {('', 'k', 'M', 'G', 'T', 'P')[power]}FLOP"


def three_digits(number: float) -> str:
    """Formats a number to three significant digits, or all digits before the decimal point.

    Args:
      number: Number to format.

    Returns:
      A text such as "1.23" or "12,345".
    """
    return f"{number:,.0f}" if number >= 99.95 else f"{number:.3g}"


def _one_memory(mesh: Mesh) -> bool:
    """Returns whether the devices share one memory, like CPU devices."""
    return mesh.devices.flat[0].platform == "cpu"


def _halvings(number: int) -> list[int]:
    """Lists divisors of a number strictly between it and 1, each at most half of the one before."""
    found = []
    while number > 1 and (number := largest_divisor(number, at_most=number // 2)) > 1:
        found.append(number)
    return found
