"""The options that every driver has."""

import dataclasses
import math
import re

from experiments.flags.learner import LearnerSettings
from experiments.flags.learner_checks import check_learner
from experiments.flags.settings import UsageError, option

MAX_SEED = 2**32 - 1  # JAX keeps 32 bits of a seed: a larger one would silently be another
MAX_COUNT = 2**31 - 1  # what the step counter holds
MAX_EPISODES = 10_000_000  # their scores are kept in memory
SCHEDULES = ("constant", "cosine", "linear")

_SIZE = re.compile(r"((?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*(?:(?:([kmgt])(i?))?b)?", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class TrainingSettings(LearnerSettings):
    """The options that every driver has."""

    meta_batch: int = option(
        16,
        "Tasks a meta-step averages over.",
        section="Training",
        least=1,
        most=MAX_EPISODES,
    )
    outer_optimizer: str = option(
        "adam",
        "The outer optimizer; sgd for the paper's reptile.",
        section="Training",
        choices=("adam", "sgd"),
    )
    outer_lr: float = option(2e-3, "Step size of the outer optimizer.", section="Training", above=0)
    outer_schedule: str = option(
        "cosine",
        "How the outer step size runs over training: constant, or along a cosine or a line to "
        "--outer_lr_end.",
        section="Training",
        choices=SCHEDULES,
    )
    outer_lr_end: float = option(
        0.0, "The outer step size that a schedule ends at.", section="Training", least=0
    )
    clip: float = option(
        0.0,
        "Clips each element of the meta-gradient to +- this; 0 does not.",
        section="Training",
        least=0,
    )
    steps: int = option(3000, "Meta-steps.", section="Training", least=1, most=MAX_COUNT)
    tasks_at_once: str = option(
        "auto",
        "Tasks vectorised together on a device, a number; fewer use less memory. auto is one on a CPU, "
        "all elsewhere.",
        section="Training",
    )
    queries_at_once: int = option(
        0,
        "Queries of a task answered together, for large query sets; fewer use less memory. 0 answers all. "
        "Not under batch norm.",
        section="Training",
        least=0,
    )
    memory_budget: str = option(
        "",
        "The most memory that the training program may take, such as 8GiB, 500MB or 2e9: on a CPU of all its "
        "devices, elsewhere of one. Where it needs more, fewer tasks are taken at once, and if that is not "
        "enough with the adjoint mixed, then recursive. What was tried is printed. --plan tells what a "
        "program needs; validation and test, libraries and compiler come on top. No limit if not given.",
        section="Training",
    )
    precision: str = option(
        "float32",
        "What the network computes in. Parameters, losses and updates are float32 in either.",
        section="Training",
        choices=("float32", "bfloat16"),
    )
    eval_every: int = option(
        250,
        "Meta-steps between validations; 0 validates at the end only.",
        section="Training",
        least=0,
    )
    valid_episodes: int = option(
        300, "Episodes of a validation.", section="Training", least=1, most=MAX_EPISODES
    )
    patience: int = option(
        0,
        "Stops after this many validations in a row without a new best; 0 never does.",
        section="Training",
        least=0,
    )
    skip_nonfinite: bool = option(
        False,
        "Leaves out meta-steps whose gradient is not finite and counts them, instead of stopping.",
        section="Training",
    )
    seed: int = option(
        0,
        "Seed of the parameters and the training tasks.",
        section="Training",
        least=0,
        most=MAX_SEED,
    )
    ensemble: int = option(
        1,
        "Keeps so many best checkpoints and tests the mean of their answers; each adapts by itself.",
        section="Training",
        least=1,
        most=100,
    )
    eval_episodes: int = option(600, "Test episodes.", section="Test", least=2, most=MAX_EPISODES)
    eval_seed: int = option(
        0,
        "Seed of the validation and test episodes; the same whatever --seed is.",
        section="Test",
        least=0,
        most=MAX_SEED,
    )
    mode: str = option(
        "train",
        "train trains, resuming if the work directory has a checkpoint, and tests; evaluate tests the best "
        "checkpoint, with other test options or on other images if wished, and writes to the folder "
        "evaluation there. Options that it is not given are those of the training.",
        section="Run",
        choices=("train", "evaluate"),
    )
    plan: bool = option(
        False,
        "Compiles the training and prints what it needs, instead of running it: memory, arithmetic, the time "
        "that arithmetic alone takes on this machine, and the time to compile. Writes no work directory.",
        section="Run",
    )
    init_from: str = option(
        "",
        "Work directory of another run, whose best encoder this one starts from: every parameter of the same "
        "name and shape but the last layer's. The outer optimizer starts afresh.",
        section="Training",
    )
    init_head: bool = option(
        False,
        "Takes from --init_from the last layer too, and everything else of the same name and shape, such as "
        "learned step sizes: a finished run is trained on, with more --steps or another --outer_lr.",
        section="Training",
    )
    freeze: bool = option(
        False,
        "Leaves the encoder of --init_from as it is, and trains what comes after it.",
        section="Training",
    )
    workdir: str = option(
        "",
        "Where everything is written. If not given: a folder under runs/ named after the settings, so "
        "that the same command finds its own work again.",
        section="Run",
    )
    compilation_cache: str = option(
        "",
        "Folder of compiled programs, which spare the next run compiling them; off keeps none. If not given: "
        "$JAX_COMPILATION_CACHE_DIR, else the folder programs beside the decoded images.",
        section="Run",
    )
    parameter_shards: int = option(
        1,
        "Over how many devices parameters and the outer optimizer's state are divided, for networks too "
        "large for one; each computes with the whole, gathered from the others.",
        section="Devices",
        least=1,
    )
    distributed: bool = option(
        False,
        "Makes one run of all processes started with this command, each with its share of the tasks. On "
        "Cloud TPU, Slurm and Open MPI they find each other; elsewhere the next three flags say where they "
        "are. The first one prints and writes.",
        section="Devices",
    )
    coordinator: str = option(
        "",
        "HOST:PORT where the first process listens, the same in all; an IPv6 address in brackets.",
        section="Devices",
    )
    num_processes: int = option(
        0, "How many there are; 0 is found out.", section="Devices", least=0
    )
    process_id: int = option(
        -1, "Which this one is, from 0; -1 is found out.", section="Devices", least=-1
    )
    join_seconds: int = option(
        300, "How long they wait for each other at the start.", section="Devices", least=1
    )
    log_every: int = option(50, "Meta-steps between rows of metrics.csv.", section="Run", least=1)
    checkpoint_every: int = option(
        250, "Meta-steps between checkpoints; 0 saves at the end only.", section="Run", least=0
    )
    published: float | None = option(
        None,
        "The published result to show beside ours: an accuracy in percent, an error as it is.",
        section="Run",
    )
    published_by: str = option("", "Where that result was published.", section="Run")


def check_together(settings: TrainingSettings) -> None:
    """Raises UsageError for options that are fine alone but not together."""
    if settings.patience and not settings.eval_every:
        raise UsageError(
            f"--patience={settings.patience} counts validations, but --eval_every=0 makes none; "
            "use a period, such as 250."
        )
    check_learner(settings)
    if settings.freeze and (not settings.init_from or settings.supervised):
        raise UsageError(
            "--freeze leaves an encoder of --init_from as it is, and goes with no learner whose training is "
            f"that of its encoder; this is --learner={settings.learner} --init_from={settings.init_from!r}."
        )
    if settings.init_head and not settings.init_from:
        raise UsageError("--init_head needs --init_from, the work directory of another run.")
    if settings.outer_lr_end and settings.outer_schedule == "constant":
        raise UsageError(
            f"--outer_lr_end={settings.outer_lr_end:g} does not go with --outer_schedule=constant; use "
            "cosine or linear."
        )
    if settings.outer_lr_end > settings.outer_lr:
        raise UsageError(
            f"--outer_lr_end={settings.outer_lr_end:g} is more than --outer_lr={settings.outer_lr:g}, which "
            "it falls from."
        )
    if settings.plan and settings.mode == "evaluate":
        raise UsageError("--plan is about training; leave out --mode=evaluate, or --plan.")
    if settings.mode == "evaluate" and not settings.workdir:
        raise UsageError("--mode=evaluate needs the --workdir of the training to evaluate.")
    check_processes(settings)
    tasks_at_once(settings)
    memory_budget(settings)


def hidden_widths(asked: str) -> tuple[int, ...]:
    """The widths that `--hidden` lists; UsageError if it is no list of them."""
    try:
        hidden = tuple(int(width) for width in asked.split(","))
    except ValueError:
        hidden = ()
    if not hidden or min(hidden) < 1:
        raise UsageError(f"--hidden={asked} is not a list of positive widths such as 40,40.")
    return hidden


def tasks_at_once(settings: TrainingSettings) -> int | None:
    """How many tasks a device vectorises, None for `auto`; UsageError if the flag is neither."""
    asked = str(settings.tasks_at_once).strip()
    if asked == "auto":
        return None
    if not (asked.isdecimal() and int(asked)):
        raise UsageError(
            f"--tasks_at_once={asked} is not a number of tasks; use 1 or more, or auto."
        )
    return int(asked)


def memory_budget(settings: TrainingSettings) -> int | None:
    """How many bytes the training program may take, None for any; UsageError if the flag is no size."""
    asked = settings.memory_budget.strip()
    if not asked:
        return None
    found = _SIZE.fullmatch(asked)
    number, prefix, binary = found.groups() if found else ("nan", None, None)
    unit = (1024 if binary else 1000) ** (" kmgt".index(prefix.lower()) if prefix else 0)
    size = float(number) * unit
    if not (math.isfinite(size) and size >= 1):
        raise UsageError(
            f"--memory_budget={settings.memory_budget} is not a size; use a number of bytes above zero, "
            "alone or in KiB, MiB, GiB, TiB, KB, MB, GB or TB, such as 8GiB."
        )
    return int(size)


def check_processes(settings: TrainingSettings) -> None:
    """Raises UsageError for flags of several processes that do not go together."""
    by_hand = {
        "coordinator": settings.coordinator,
        "num_processes": settings.num_processes or "",
        "process_id": settings.process_id if settings.process_id >= 0 else "",
    }
    given = [f"--{name}={value}" for name, value in by_hand.items() if value != ""]
    if given and not settings.distributed:
        raise UsageError(
            f"{given[0]} is for several processes; add --distributed, or leave it out."
        )
    if settings.num_processes and settings.process_id >= settings.num_processes:
        raise UsageError(
            f"--process_id={settings.process_id} is too large; use 0 to {settings.num_processes - 1}, as "
            f"--num_processes={settings.num_processes}."
        )
    if 0 < len(given) < 3:
        missing = next(name for name, value in by_hand.items() if value == "")
        raise UsageError(f"{given[0]} needs --{missing} too, or none of the two.")
    if settings.distributed and settings.plan:
        raise UsageError(
            "--plan is about the devices of one process; leave out --distributed, or see "
            "experiments.pod.check."
        )
