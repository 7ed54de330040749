"""Compiles a training for a pod of TPUs that need not be attached, and predicts its memory and time.

The program is the meta-step that experiments.fewshot would run there with the same flags, compiled by the
real compiler for TPUs (pip install 'metajax[tpu]'); no TPU is needed, searched or used. The command prints,
per chip, memory, arithmetic, memory traffic and messages to other chips, a lower bound of the time of a step
by the datasheet, and its growth with the number of chips. The exit status is 1 if the program does not fit,
or if anything but averages of the meta-gradient and metrics passes between chips.

  python -m experiments.pod.check --topology=v5e:16x16
  python -m experiments.pod.check --topology=v5e:16x16 --slices=4 --learner=protonet
  python -m experiments.pod.check --topology=v5e:4x4 --learner=protonet --model=vit --parameter_shards=4
"""

import dataclasses
import importlib.metadata
import math
import os
import time
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies

from metajax.cost import flops
from metajax.sharding import task_mesh

from ..fewshot import driver as fewshot
from ..fewshot.options import FewshotSettings
from ..flags.plan import resolve
from ..flags.settings import TrainingError, UsageError, option
from ..flags.training import MAX_EPISODES
from ..reports import report
from ..runtime import memory
from ..runtime.devices import program_bytes
from ..runtime.launch import launch
from ..setup.experiment import Setup
from . import chips, hlo
from . import report as pod_report
from .chips import Topology

TASKS = 16  # tasks per chip, by default
# Without these variables libtpu asks the network which TPU this machine is, prints warnings, and refuses to
# run in a second process.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_LOG_DIR": "disabled",
}


@dataclasses.dataclass(frozen=True)
class PodSettings(FewshotSettings):
    """Options of few-shot classification, and of the pod."""

    meta_batch: int | None = option(
        None,
        f"Tasks per meta-step, on all chips together; if not given, {TASKS} per chip, training's default on "
        "one chip. The table of more and fewer chips keeps the tasks per chip.",
        section="Training",
        least=1,
        most=MAX_EPISODES,
    )
    topology: str = option(
        "v5e:16x16",
        f"Slice: a chip, one of {', '.join(chips.CHIPS)}, and the number of chips along each axis, such as "
        "v5e:8x8 or v5p:4x4x8.",
        section="Devices",
    )
    slices: int = option(
        1,
        "Number of such slices, connected by the data center's network.",
        section="Devices",
        least=1,
    )


def prepare(settings: PodSettings) -> None:
    """Configures JAX to compute on the CPU, and libtpu not to search for TPUs; call it before JAX is used.

    Args:
      settings: Settings of the command; none is read.
    """
    del settings
    os.environ.update(ENVIRONMENT)
    jax.config.update("jax_platforms", "cpu")


def start(settings: PodSettings) -> int:
    """Compiles a meta-step and prints the predictions.

    Args:
      settings: Settings of the command.

    Returns:
      Exit status.

    Raises:
      TrainingError: If the program does not fit, or exchanges unexpected messages.
    """
    where = chips.topology(settings.topology, slices=settings.slices)
    settings = dataclasses.replace(settings, meta_batch=settings.meta_batch or TASKS * where.chips)
    _check(settings, where)
    mesh = task_mesh(_devices(where), shards=settings.parameter_shards)
    setup = Setup(fewshot.build(settings), resolve(settings), mesh=mesh)
    rows = [
        *setup.experiment.announcement,
        ("pod", f"{where}, {where.chips:,} chips"),
        ("tasks", f"{settings.meta_batch:,} a meta-step, {setup.tasks_together} at once on a chip"),
    ]
    print(report.table(rows), flush=True)
    measured, rows = compile_step(setup, where)
    print(report.table(rows))
    print("\n" + pod_report.scaling_table(measured), flush=True)
    if problems := pod_report.verdict(measured):
        raise TrainingError(" ".join(problems))
    return 0


def compile_step(setup: Setup, where: Topology) -> tuple[pod_report.Report, list[tuple[str, str]]]:
    """Compiles a meta-step for the devices of a setup.

    Args:
      setup: The experiment, on devices that one can compile for.
      where: Chips.

    Returns:
      Measurements of the compiled step, and rows that describe them for `report.table`.

    Raises:
      TrainingError: If the compiler reports that it does not fit.
    """
    plan = setup.plan
    if plan.outer.estimator == "reptile":
        init_key, _ = jax.random.split(jax.random.key(plan.training.seed))
        setup.check_reptile(jax.jit(setup.learner.init)(init_key, setup.experiment.inputs))
    begin = time.perf_counter()
    step = jax.jit(setup.meta_step(), donate_argnums=0)
    arguments = _arguments(setup)
    operations = flops(step, *arguments)
    lowered = step.lower(*arguments)
    traced = time.perf_counter()
    compiled = _compile(lowered, where)
    seconds = time.perf_counter() - begin
    state, (_, metrics) = arguments[0], lowered.out_info
    program = hlo.parse(compiled.as_text())
    code = compiled.memory_analysis().generated_code_size_in_bytes
    measured = pod_report.Report(
        topology=where,
        num_tasks=plan.training.meta_batch,
        shards=plan.devices.parameter_shards,
        peak=program_bytes(compiled, setup.mesh.devices.ravel()) + code,
        operations=operations,
        traffic=hlo.memory_traffic(program),
        collectives=hlo.collectives(program),
        averaged=_bytes((state.meta, metrics)),
    )
    accessed = (compiled.cost_analysis() or {}).get("bytes accessed", math.nan)
    words = (
        f"in {seconds:.1f} s, {traced - begin:.1f} of them for tracing and counting; {_versions()}"
    )
    rows = [("compiled", words), _memory(measured, compiled, state)]
    return measured, rows + pod_report.rows(measured, accessed=accessed)


def _check(settings: PodSettings, where: Topology) -> None:
    """Checks that flags go with a pod, and with this one; raises UsageError otherwise."""
    defaults = {"distributed": False, "plan": False, "memory_budget": "", "mode": "train"}
    for name, value in defaults.items():
        if getattr(settings, name) != value:
            raise UsageError(
                f"--{name} is for training; leave it out: this command compiles in one process and runs "
                "nothing."
            )
    if settings.meta_batch % where.chips:
        raise UsageError(
            f"--meta_batch={settings.meta_batch} does not divide over the {where.chips} chips of {where}; "
            f"use a multiple of {where.chips}."
        )
    each = math.prod(where.shape)
    if each % settings.parameter_shards:
        raise UsageError(
            f"--parameter_shards={settings.parameter_shards} does not divide the {each} chips of a slice; "
            f"use a divisor of {each}."
        )
    if where.slices > 1 and where.chip.network_rate is None:
        raise UsageError(
            f"--slices={where.slices}: the rate of the network between slices of {where.generation} is not "
            "published; use one slice, or another chip."
        )


def _devices(where: Topology) -> Sequence[Any]:
    """Makes JAX devices of a pod, which can compile but not compute."""
    options: dict[str, Any] = dict(where.chip.options)
    if where.slices > 1:
        options["num_slices"] = where.slices
    try:
        return topologies.get_topology_desc(where.name, "tpu", **options).devices
    except jax.errors.JaxRuntimeError as error:
        raise UsageError(f"--topology={where.name}: {error}") from error
    except RuntimeError as error:
        raise ImportError(
            "The compiler for TPUs, libtpu, is not installed; pip install 'metajax[tpu]'."
        ) from error


def _arguments(setup: Setup) -> tuple[Any, Any]:
    """Makes abstract arguments of the meta-step, with shardings."""
    try:
        return setup.shapes()
    except ValueError as error:
        raise UsageError(
            f"--learner={setup.plan.inner.learner} does not work here: {error}"
        ) from error


def _compile(lowered: Any, where: Topology) -> Any:
    """Compiles, and turns an error about memory into one line."""
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        words = " ".join(str(error).split())
        if not words.startswith("RESOURCE_EXHAUSTED"):
            raise
        # The message ends with a link to an explanation, which is left out.
        why = words.partition(" See http")[0].rstrip(".")
        raise TrainingError(pod_report.does_not_fit(why, where)) from error


def _memory(measured: pod_report.Report, compiled: Any, state: Any) -> tuple[str, str]:
    """Formats the memory of a chip."""
    sizes, whole = compiled.memory_analysis(), measured.topology.chip.memory_bytes
    given, parameters = sizes.argument_size_in_bytes, _bytes_here(state.meta)
    host = sizes.host_temp_size_in_bytes + sizes.host_argument_size_in_bytes
    words = [
        f"parameters {memory.in_words(parameters)}",
        f"optimizer, data and other arguments {memory.in_words(max(given - parameters, 0))}",
        f"temporaries {memory.in_words(sizes.temp_size_in_bytes)}",
        f"code {memory.in_words(sizes.generated_code_size_in_bytes)}",
    ]
    words += [f"and {memory.in_words(host)} of its host"] if host else []
    return (
        "memory",
        f"{memory.in_words(measured.peak)} of a chip at the peak, {measured.peak / whole:.1%} of its "
        f"{memory.in_words(whole)}: " + ", ".join(words),
    )


def _bytes(tree: Any) -> int:
    """Counts the bytes of a tree's arrays."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _bytes_here(tree: Any) -> int:
    """Counts the bytes of a tree that one device holds."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _versions() -> str:
    """Formats the versions of JAX and the compiler."""
    names = ("jax", "jaxlib", "libtpu")
    found = []
    for name in names:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def main() -> None:
    """Runs the driver on the command line's flags."""
    launch(PodSettings, __doc__, start, prepare=prepare)


if __name__ == "__main__":
    main()
