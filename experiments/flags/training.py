"""Options that every driver has, in groups: estimator, training, test, devices, run."""

import dataclasses
import math
import re
from typing import Any, ClassVar

from metajax.zoo.learners import LEARNERS

from .learner import (
    INNER,
    PENALIZED,
    SUPERVISED,
    UNROLLS,
    LearnerOptions,
)
from .settings import (
    UsageError,
    check_combinations,
    option,
)

MAX_SEED = 2**32 - 1  # JAX keeps 32 bits of a seed: a larger one would silently be another
MAX_COUNT = 2**31 - 1  # largest value of the step counter
AFTER_TRAINING = ("evaluate", "bundle")  # modes that take a training as it is
MAX_EPISODES = 10_000_000  # their scores are kept in memory
SCHEDULES = ("constant", "cosine", "linear")
OUTER = ("backprop", "reptile", "es", "pes")
SIGMA, PAIRS, UNROLLED = 0.01, 4, 5  # of evolution strategies, if not given

_SIZE = re.compile(r"((?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*(?:(?:([kmgt])(i?))?b)?", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class OuterOptions:
    """The estimator of the meta-gradient, and the outer optimizer."""

    outer: str | None = option(
        None,
        "Estimator of the meta-gradient: backprop through the inner loop; reptile, from the start to "
        "where tasks end; es, antithetic evolution strategies; pes, persistent ones over --pes_unrolls "
        "calls of --inner_steps each. By default that of the learner's paper.",
        section="Training",
        choices=OUTER,
    )
    es_sigma: float | None = option(
        None,
        f"es, pes: Standard deviation of the perturbations of the meta-parameters [{SIGMA}].",
        section="Training",
        above=0,
        only={"outer": ("es", "pes")},
    )
    es_pairs: int | None = option(
        None,
        f"es: Antithetic pairs of perturbations per task [{PAIRS}].",
        section="Training",
        least=1,
        only={"outer": ("es",)},
    )
    pes_unrolls: int | None = option(
        None,
        f"pes: Truncations in the life of a task [{UNROLLED}].",
        section="Training",
        least=1,
        only={"outer": ("pes",)},
    )
    multi_step_loss: int | None = option(
        None,
        "Meta-steps over which the training loss moves from the mean of the losses after each inner step to "
        "the last alone; 0 is the last from the start. By default a tenth of --steps for maml_plus_plus, "
        "0 for others.",
        section="Training",
        least=0,
        neutral=(0,),
        only={"outer": ("backprop", "es"), "learner": UNROLLS},
        # The loss after every step calls `adapt` once per step, which would restart the minibatch pass.
        never={
            "learner": PENALIZED,
            "adjoint": ("truncated",),
            "inner_steps": (0, 1),
            "protocol": ("sequence",),
        },
    )
    first_order_steps: int = option(
        0,
        "Meta-steps at the beginning that are first order, whatever --adjoint is.",
        section="Training",
        least=0,
        only={"outer": ("backprop",), "learner": UNROLLS},
        never={"protocol": ("sequence",)},
    )
    outer_optimizer: str = option(
        "adam",
        "Outer optimizer; sgd for the paper's reptile.",
        section="Training",
        choices=("adam", "sgd"),
        protocol=False,
    )
    outer_lr: float = option(
        2e-3,
        "Step size of the outer optimizer.",
        section="Training",
        above=0,
        protocol=False,
        basic=True,
    )
    outer_schedule: str = option(
        "cosine",
        "Schedule of the outer step size: constant, or along a cosine or a line to --outer_lr_end.",
        section="Training",
        choices=SCHEDULES,
        protocol=False,
    )
    outer_lr_end: float = option(
        0.0,
        "Outer step size at the end of a schedule.",
        section="Training",
        least=0,
        protocol=False,
        never={"outer_schedule": ("constant",)},
    )
    clip: float = option(
        0.0,
        "Clips each element of the meta-gradient to +- this; 0 does not.",
        section="Training",
        least=0,
        protocol=False,
    )


@dataclasses.dataclass(frozen=True)
class TrainingOptions:
    """How long, in which sizes and from where training runs."""

    meta_batch: int = option(
        16,
        "Tasks per meta-step.",
        section="Training",
        least=1,
        most=MAX_EPISODES,
        protocol=False,
        basic=True,
    )
    steps: int = option(
        3000,
        "Meta-steps.",
        section="Training",
        least=1,
        most=MAX_COUNT,
        protocol=False,
        basic=True,
    )
    tasks_at_once: str = option(
        "auto",
        "Tasks vectorized together on a device, a number; fewer use less memory. auto is one on a CPU, "
        "all elsewhere.",
        section="Training",
        protocol=False,
    )
    queries_at_once: int = option(
        0,
        "Queries of a task answered together, for large query sets; fewer use less memory. 0 answers all. "
        "Not under batch norm.",
        section="Training",
        least=0,
        protocol=False,
        never={"norm": ("batch",), "attack": ("fgsm", "pgd"), "protocol": ("sequence",)},
    )
    memory_budget: str = option(
        "",
        "Largest memory of the training program, such as 8GiB, 500MB or 2e9: on a CPU of all its devices, "
        "elsewhere of one. A program that needs more is compiled again with fewer tasks at once and, if that "
        "is not enough, with the adjoint mixed, then recursive; all attempts are printed. --plan prints the "
        "need of a program; validation and test, libraries and compiler come on top. No limit by default.",
        section="Training",
        scope="display",
    )
    precision: str = option(
        "float32",
        "Data type that the network computes in. Parameters, losses and updates are float32 in either.",
        section="Training",
        choices=("float32", "bfloat16"),
    )
    eval_every: int = option(
        250,
        "Meta-steps between validations; 0 validates at the end only.",
        section="Training",
        least=0,
        protocol=False,
    )
    valid_episodes: int = option(
        300,
        "Episodes of a validation.",
        section="Training",
        least=1,
        most=MAX_EPISODES,
        protocol=False,
    )
    patience: int = option(
        0,
        "Stops after this many validations in a row without a new best; 0 never does.",
        section="Training",
        least=0,
        protocol=False,
        never={"eval_every": (0,)},
    )
    skip_nonfinite: bool = option(
        False,
        "Leaves out meta-steps whose gradient is not finite and counts them, instead of stopping.",
        section="Training",
        scope="display",
    )
    seed: int = option(
        0,
        "Seed of the parameters and the training tasks.",
        section="Training",
        least=0,
        most=MAX_SEED,
        protocol=False,
        basic=True,
    )
    ensemble: int = option(
        1,
        "Number of best checkpoints that are kept and tested together, by the mean of their answers; each "
        "adapts by itself.",
        section="Training",
        least=1,
        most=100,
    )
    init_from: str = option(
        "",
        "Work directory of another run, whose best encoder this one starts from: every parameter of the same "
        "name and shape except the last layer's. The outer optimizer starts afresh.",
        section="Start",
        shared=False,
    )
    init_head: bool = option(
        False,
        "Takes from --init_from the last layer too, and everything else of the same name and shape, such as "
        "learned step sizes: a finished run is trained on, with more --steps or another --outer_lr.",
        section="Start",
        needs="init_from",
    )
    freeze: bool = option(
        False,
        "Leaves the encoder of --init_from as it is, and trains what comes after it.",
        section="Start",
        needs="init_from",
        never={"learner": SUPERVISED},
    )


@dataclasses.dataclass(frozen=True)
class TestOptions:
    """The test episodes."""

    eval_episodes: int = option(
        600,
        "Test episodes.",
        section="Test",
        least=2,
        most=MAX_EPISODES,
        scope="test",
        protocol=False,
    )
    eval_seed: int = option(
        0,
        "Seed of the validation and test episodes; independent of --seed.",
        section="Test",
        least=0,
        most=MAX_SEED,
        scope="test",
        protocol=False,
    )


@dataclasses.dataclass(frozen=True)
class DeviceOptions:
    """Devices and processes."""

    parameter_shards: int = option(
        1,
        "Number of devices that parameters and the outer optimizer's state are divided over, for networks "
        "too large for one; each computes with the whole, gathered from the others.",
        section="Devices",
        least=1,
        scope="host",
        shared=True,
    )
    distributed: bool = option(
        False,
        "Makes one run of all processes started with this command, each with its share of the tasks. On "
        "Cloud TPU, Slurm and Open MPI they find each other; elsewhere the next three flags name their "
        "addresses. The first one prints and writes.",
        section="Devices",
        scope="host",
        shared=True,
        never={"plan": (True,)},
    )
    coordinator: str = option(
        "",
        "HOST:PORT where the first process listens, the same in all; an IPv6 address in brackets.",
        section="Devices",
        scope="host",
        needs="distributed",
    )
    num_processes: int = option(
        0,
        "Number of processes; 0 finds it out.",
        section="Devices",
        least=0,
        scope="host",
        shared=True,
        needs="distributed",
    )
    process_id: int = option(
        -1,
        "Number of this process, from 0; -1 finds it out.",
        section="Devices",
        least=-1,
        scope="host",
        needs="distributed",
    )
    join_seconds: int = option(
        300,
        "Seconds that processes wait for each other at the start.",
        section="Devices",
        least=1,
        scope="host",
        shared=True,
    )


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """What a command does, and where it writes."""

    mode: str = option(
        "train",
        "train trains, resuming if the work directory has a checkpoint, and tests; evaluate tests the best "
        "checkpoint, with other test options or on other images if given, and writes to the folder "
        "evaluation there; bundle writes its bundle again, the folder model, calibrated anew. Options that "
        "these two are not given are those of the training.",
        section="Run",
        choices=("train", *AFTER_TRAINING),
        scope="display",
        basic=True,
    )
    plan: bool = option(
        False,
        "Compiles the training and prints what it needs, instead of running it: memory, arithmetic, the time "
        "that arithmetic alone takes on this machine, and the time to compile. Writes no work directory.",
        section="Run",
        scope="display",
        never={"mode": AFTER_TRAINING},
        basic=True,
    )
    skip_test: bool = option(
        False,
        "Ends after training, without the test: validation.json and valid_scores.csv have the scores of the "
        "best checkpoint on the validation episodes. The same command without it tests.",
        section="Run",
        scope="display",
        never={"mode": AFTER_TRAINING, "plan": (True,)},
    )
    workdir: str = option(
        "",
        "Folder of everything that is written. By default a folder under runs/ named after the settings, so "
        "that the same command finds its own work again.",
        section="Run",
        scope="host",
        basic=True,
    )
    compilation_cache: str = option(
        "",
        "Folder of compiled programs, which spare the next run compiling them; off keeps none. By default "
        "$JAX_COMPILATION_CACHE_DIR, else the folder programs next to the decoded images.",
        section="Run",
        scope="host",
    )
    log_every: int = option(
        50, "Meta-steps between rows of metrics.csv.", section="Run", least=1, scope="display"
    )
    track: str = option(
        "tensorboard",
        "Trackers that show the run, separated by commas: tensorboard, wandb, mlflow and trackio, each set "
        "up by its own environment variables; empty for none.",
        section="Run",
        scope="display",
    )
    track_project: str = option(
        "metajax",
        "Project of wandb and trackio, experiment of mlflow.",
        section="Run",
        scope="display",
    )
    checkpoint_every: int = option(
        250,
        "Meta-steps between checkpoints; 0 saves at the end only.",
        section="Run",
        least=0,
        protocol=False,
    )
    published: float | None = option(
        None,
        "Published result to show next to the measured one: an accuracy in percent, an error as it is.",
        section="Run",
        scope="display",
        shared=False,
    )
    published_by: str = option(
        "", "Source of the published result.", section="Run", scope="display", shared=False
    )

    @property
    def after_training(self) -> bool:
        """Whether the command takes a training as it is."""
        return self.mode in AFTER_TRAINING


@dataclasses.dataclass(frozen=True)
class TrainingSettings(
    RunOptions, DeviceOptions, TestOptions, TrainingOptions, OuterOptions, LearnerOptions
):
    """Options of every driver: what a command asks for."""

    predicts: ClassVar[str] = "classes"

    @property
    def estimator(self) -> str:
        """The outer estimator in force."""
        return self.outer or self.entry.outer

    @property
    def updates_per_step(self) -> int:
        """Steps of the outer optimizer in a meta-step."""
        return 1

    def in_force(self, name: str) -> Any:
        """Returns the value of an option, where none is given that of the learner."""
        if name == "outer":
            return self.estimator
        value = getattr(self, name, None)
        return self.own_options.get(name) if value is None else value


def multi_step_loss(settings: TrainingSettings) -> int:
    """Returns the meta-steps over which the loss after every inner step counts; 0 for the last alone."""
    if settings.multi_step_loss is not None:
        return settings.multi_step_loss
    fits = settings.inner_steps > 1 and settings.estimator == "backprop"
    fits = fits and settings.in_force("protocol") != "sequence"
    fits = fits and settings.in_force("attack") in (None, "none")
    return settings.steps // 10 if settings.entry.multi_step and fits else 0


def check_together(settings: TrainingSettings) -> None:
    """Raises UsageError for options that are fine alone but not together."""
    check_combinations(settings)
    _check_learner(settings)
    if settings.outer_lr_end > settings.outer_lr:
        raise UsageError(
            f"--outer_lr_end={settings.outer_lr_end:g} is more than --outer_lr={settings.outer_lr:g}, the "
            "start of the schedule; use a smaller one."
        )
    if settings.after_training and not settings.workdir:
        raise UsageError(
            f"--mode={settings.mode} needs the --workdir of the training to {settings.mode}."
        )
    check_processes(settings)
    tasks_at_once(settings.tasks_at_once)
    memory_budget(settings.memory_budget)


def _check_learner(settings: TrainingSettings) -> None:
    """Raises UsageError for an estimator or an option of the learner that it cannot have."""
    if settings.predicts not in settings.entry.predicts:
        able = ", ".join(n for n, entry in LEARNERS.items() if settings.predicts in entry.predicts)
        raise UsageError(
            f"--learner={settings.learner} predicts {settings.entry.predicts[0]}, and these tasks ask for "
            f"{settings.predicts}; use one of {able}."
        )
    able = {"reptile": INNER, "pes": INNER, "es": [n for n in LEARNERS if n not in SUPERVISED]}
    if settings.learner not in able.get(settings.estimator, (settings.learner,)):
        raise UsageError(
            f"--outer={settings.estimator} does not go with --learner={settings.learner}; use "
            "--outer=backprop."
        )
    if settings.multi_step_loss and settings.own_options.get("minibatch"):
        # The loss after every step calls `adapt` once per step, which would restart the minibatch pass.
        raise UsageError(
            f"--multi_step_loss={settings.multi_step_loss} does not go with --minibatch="
            f"{settings.minibatch}; leave out one of the two."
        )


def hidden_widths(asked: str) -> tuple[int, ...]:
    """Reads the widths of `--hidden`.

    Raises:
      UsageError: If it is not a list of positive widths.
    """
    try:
        hidden = tuple(int(width) for width in asked.split(","))
    except ValueError:
        hidden = ()
    if not hidden or min(hidden) < 1:
        raise UsageError(f"--hidden={asked} is not a list of positive widths such as 40,40.")
    return hidden


def tasks_at_once(asked: str) -> int | None:
    """Reads `--tasks_at_once`: the tasks that a device vectorizes, or None for "auto".

    Raises:
      UsageError: If it is neither.
    """
    asked = str(asked).strip()
    if asked == "auto":
        return None
    if not (asked.isdecimal() and int(asked)):
        raise UsageError(
            f"--tasks_at_once={asked} is not a number of tasks; use 1 or more, or auto."
        )
    return int(asked)


def memory_budget(asked: str) -> int | None:
    """Reads `--memory_budget`: the bytes of the training program, or None for any number.

    Raises:
      UsageError: If it is not a size.
    """
    if not asked.strip():
        return None
    found = _SIZE.fullmatch(asked.strip())
    number, prefix, binary = found.groups() if found else ("nan", None, None)
    unit = (1024 if binary else 1000) ** (" kmgt".index(prefix.lower()) if prefix else 0)
    size = float(number) * unit
    if not (math.isfinite(size) and size >= 1):
        raise UsageError(
            f"--memory_budget={asked} is not a size; use a number of bytes above zero, "
            "alone or in KiB, MiB, GiB, TiB, KB, MB, GB or TB, such as 8GiB."
        )
    return int(size)


def check_processes(devices: DeviceOptions) -> None:
    """Raises UsageError for flags of several processes that do not go together."""
    by_hand = {
        "coordinator": devices.coordinator,
        "num_processes": devices.num_processes or "",
        "process_id": devices.process_id if devices.process_id >= 0 else "",
    }
    given = [f"--{name}={value}" for name, value in by_hand.items() if value != ""]
    if devices.num_processes and devices.process_id >= devices.num_processes:
        raise UsageError(
            f"--process_id={devices.process_id} is too large; use 0 to {devices.num_processes - 1}, as "
            f"--num_processes={devices.num_processes}."
        )
    if 0 < len(given) < 3:
        missing = next(name for name, value in by_hand.items() if value == "")
        raise UsageError(f"{given[0]} needs --{missing} too, or none of the two.")
