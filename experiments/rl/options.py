"""Options of meta-reinforcement learning, and the typed plan they are resolved into."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from metajax.rl.losses import CURVATURES

from ..flags.environments import ActingOptions
from ..flags.learner import UNROLLS
from ..flags.plan import RunPlan, part, resolve
from ..flags.settings import PACKAGE, UsageError, option, redeclare
from ..flags.training import TrainingSettings, check_together, hidden_widths

OUTER = ("vpg", "promp", "trpo", "es")
LIVED = ("vpg", "promp", "trpo")  # Those that improve on experience that is gathered before.
VALUE_SCALES = ("standard", "raw")
BASELINES = ("linear", "value", "constant", "none")


@dataclasses.dataclass(frozen=True)
class RlOptions(ActingOptions):
    """The environment, the policy, and how experience is gathered and used."""

    episodes: int = option(
        20,
        "Episodes of a task before each adaptation, and after the last.",
        section="Episodes",
        least=1,
        never={"learner": ("rl2",)},
        basic=True,
    )
    calls: int = option(
        1,
        "Adaptations to new experience in training, each of --inner_steps.",
        section="Episodes",
        least=1,
        never={"learner": ("rl2",)},
    )
    test_calls: int = option(
        3,
        "Adaptations to new experience in validation and test; the table shows the return after each.",
        section="Episodes",
        least=0,
        most=100,
        scope="test",
        never={"learner": ("rl2",)},
        basic=True,
    )
    test_episodes: int = option(
        0,
        "Episodes of a task before each adaptation in validation and test; 0 is as in training.",
        section="Episodes",
        least=0,
        scope="test",
        never={"learner": ("rl2",)},
    )
    trial_episodes: int = option(
        2,
        "rl2: Episodes of a trial, in which the state is kept.",
        section="Episodes",
        least=1,
        only={"learner": ("rl2",)},
        basic=True,
    )
    multitask_steps: int = option(
        0,
        "Outer steps of a policy that is trained on all tasks without adaptation and then fine-tuned to each "
        "test task, the baseline beside the learner's returns; 0 leaves it out.",
        section="Test",
        least=0,
        scope="test",
        never={"learner": ("rl2",)},
    )
    greedy: bool = option(
        False,
        "Takes the most likely action in validation and test, instead of a drawn one.",
        section="Test",
        scope="test",
    )
    export_demonstrations: str = option(
        "",
        f"File to write demonstrations to, for python -m {PACKAGE}.imitation: episodes of the tested "
        "policy's most likely actions in the first test task, after all adaptations. Of a finished run with "
        "--mode=evaluate.",
        section="Test",
        scope="host",
        never={"learner": ("rl2",)},
    )
    export_episodes: int = option(
        20,
        "Episodes that are written to --export_demonstrations.",
        section="Test",
        least=1,
        scope="host",
        needs="export_demonstrations",
    )
    curvature: str = option(
        "lvc",
        "Surrogate of the inner loss, by its second derivative: none is log pi times the advantage, lvc the "
        "likelihood ratio, dice and loaded are exact and vary more.",
        section="Inner loop",
        choices=CURVATURES,
        only={"whole_life": (False,)},
        never={"learner": ("rl2",)},
    )
    halve_inner_lr: bool = option(
        False,
        "Halves the inner step size after the first step in validation and test, as MAML's protocol does.",
        section="Inner loop",
        scope="test",
        only={"inner_optimizer": ("sgd",)},
        never={"learner": ("rl2", "meta_sgd")},
    )
    baseline: str = option(
        "linear",
        "Baseline of returns: a linear one that is fitted to each task's experience, the value that the "
        "network predicts (always so for rl2), a constant, whose advantages are not normalized, as little "
        "experience needs it, or none.",
        section="Training",
        choices=BASELINES,
        never={"learner": ("rl2",)},
    )
    baseline_return: float = option(
        0.5,
        "The constant baseline of returns.",
        section="Training",
        only={"baseline": ("constant",)},
    )
    whole_life: bool = option(
        False,
        "Counts the rewards of all episodes of a task, also of those before adapting, as bandits do: in "
        "training, and as the test's return. Otherwise the return is that after the last adaptation. The "
        "surrogate is then none, as actions are credited for what is learned from them.",
        section="Training",
        never={"learner": ("rl2",)},
    )
    kl_cost: float = option(
        5e-4,
        "promp: Factor of the divergence of the policy before adapting from the one that acted.",
        section="Training",
        least=0,
        only={"outer": ("promp",)},
        never={"learner": ("rl2",)},
    )
    updates: int = redeclare(ActingOptions, "updates", 5, only={"outer": ("promp",)})
    minibatches: int = redeclare(ActingOptions, "minibatches", 1, only={"outer": ("promp",)})
    clip_ratio: float = redeclare(ActingOptions, "clip_ratio", 0.3, only={"outer": ("promp",)})
    max_kl: float = redeclare(ActingOptions, "max_kl", 0.01, only={"outer": ("trpo",)})
    entropy_bonus: float = option(
        0.0,
        "promp: Factor of the entropy of the policy after adapting, which is added to the return.",
        section="Training",
        least=0,
        only={"outer": ("promp",)},
    )
    value_cost: float = option(
        0.5,
        "promp: Factor of half the squared error of a predicted value.",
        section="Training",
        least=0,
        only={"outer": ("promp",)},
    )
    value_scale: str = option(
        "standard",
        "rl2: Scale of predicted values: standard takes mean and deviation of the returns of a step's tasks, "
        "so that errors of values weigh the same whatever the rewards; raw takes the returns as they are.",
        section="Training",
        choices=VALUE_SCALES,
        only={"learner": ("rl2",), "outer": LIVED},
    )
    exploration: float = option(
        0.0,
        "promp: Factor of E-MAML's term, which credits the policy before adapting for what follows.",
        section="Training",
        least=0,
        only={"outer": ("promp",), "whole_life": (False,)},
        never={"learner": ("rl2",)},
    )


@dataclasses.dataclass(frozen=True)
class RlSettings(RlOptions, TrainingSettings):
    """Every option of meta-reinforcement learning."""

    predicts: ClassVar[str] = "decisions"

    inner_lr: float = redeclare(TrainingSettings, "inner_lr", 0.1, help="Inner step size.")
    adjoint: str = redeclare(
        TrainingSettings,
        "adjoint",
        "reverse",
        only={"learner": UNROLLS, "outer": ("vpg", "promp", "trpo")},
    )
    outer: str = option(
        "promp",
        "Outer step: vpg follows the policy gradient through the adaptation; promp takes several clipped "
        "steps on the same experience (for rl2 this is PPO); trpo a natural gradient within a trust region; "
        "es evolution strategies, which differentiate nothing.",
        section="Training",
        choices=OUTER,
        basic=True,
    )
    outer_lr: float = redeclare(TrainingSettings, "outer_lr", 1e-3)
    outer_schedule: str = redeclare(TrainingSettings, "outer_schedule", "constant")
    es_sigma: float | None = redeclare(TrainingSettings, "es_sigma", None, only={"outer": ("es",)})
    meta_batch: int = redeclare(TrainingSettings, "meta_batch", 20)
    steps: int = redeclare(TrainingSettings, "steps", 200)
    tasks_at_once: str = redeclare(TrainingSettings, "tasks_at_once", "1000000")
    eval_every: int = redeclare(TrainingSettings, "eval_every", 50)
    valid_episodes: int = redeclare(
        TrainingSettings, "valid_episodes", 40, help="Tasks of a validation."
    )
    eval_episodes: int = redeclare(TrainingSettings, "eval_episodes", 40, help="Test tasks.")
    log_every: int = redeclare(TrainingSettings, "log_every", 5)
    checkpoint_every: int = redeclare(TrainingSettings, "checkpoint_every", 50)

    @property
    def estimator(self) -> str:
        """The estimator of the meta-gradient: only evolution strategies do without backpropagation."""
        return "es" if self.outer == "es" else "backprop"

    @property
    def updates_per_step(self) -> int:
        """Steps of the outer optimizer in a meta-step."""
        return self.updates * self.minibatches if self.outer == "promp" else 1

    def in_force(self, name: str) -> Any:
        """Returns the value of an option."""
        return getattr(self, name, None)


class RlPlan(NamedTuple):
    """A run of meta-reinforcement learning as resolved from its options.

    Attributes:
      common: Plan that all drivers share.
      options: Options of the environment, the policy and the experience.
      env_options: Values of the environment's own options.
      hidden: Widths of the policy's hidden layers.
      outer: Outer step, one of OUTER.
      reads: Whether the learner reads its own history, as rl2 does, instead of taking inner steps.
    """

    common: RunPlan
    options: RlOptions
    env_options: dict[str, Any]
    hidden: tuple[int, ...]
    outer: str
    reads: bool


def plan_of(settings: RlSettings) -> RlPlan:
    """Checks settings and resolves them.

    Raises:
      UsageError: If options do not go together.
    """
    check_together(settings)
    if settings.ensemble > 1:
        raise UsageError(
            f"--ensemble={settings.ensemble} is not for policies, whose actions have no mean; use 1."
        )
    if settings.export_demonstrations:
        folder = Path(settings.export_demonstrations).expanduser().parent
        if not folder.is_dir():
            raise UsageError(
                f"--export_demonstrations={settings.export_demonstrations} is in no folder that exists; make "
                f"{folder} first."
            )
    if settings.outer == "trpo" and settings.adjoint not in ("reverse", "remat", "first_order"):
        raise UsageError(
            f"--adjoint={settings.adjoint} does not go with --outer=trpo, which differentiates forward "
            "too; use reverse or remat."
        )
    if settings.minibatches > 1 and settings.meta_batch % settings.minibatches:
        raise UsageError(
            f"--minibatches={settings.minibatches} does not divide --meta_batch={settings.meta_batch}; "
            "use a divisor."
        )
    return RlPlan(
        common=resolve(settings),
        options=part(RlOptions, settings),
        env_options=settings.env_options,
        hidden=hidden_widths(settings.hidden),
        outer=settings.outer,
        reads=not settings.entry.inner,
    )
