"""Options of imitation, and the typed plan they are resolved into."""

import dataclasses
from typing import Any, ClassVar, NamedTuple

from metajax.rl.discriminators import SIGNS
from metajax.types import Learner
from metajax.zoo.ingredients import Ingredients
from metajax.zoo.learners import LEARNERS, Entry
from metajax.zoo.options import Limits

from ..flags.environments import ActingOptions
from ..flags.plan import RunPlan, part, resolve
from ..flags.settings import PACKAGE, UsageError, defaults, option, redeclare
from ..flags.training import TrainingSettings, check_together, hidden_widths

# Learners of one expert in one task, which the zoo of meta-learners has not.
SINGLE = ("gail", "clone")
GAIL = {"learner": ("gail",)}
OF_ONE = {"learner": SINGLE}


def _no_meta_learner(ingredients: Ingredients) -> Learner:
    """Stands where a meta-learner is made: the driver makes these itself."""
    raise ValueError(f"{ingredients.options} are of no meta-learner.")


# Options of the outer optimizer, which a trust region and the steps of GAIL do without.
_OPTIMIZER = ("outer_optimizer", "outer_lr", "outer_schedule", "outer_lr_end", "clip")
_ENTRY = Entry(_no_meta_learner, unrolls=False, inner=False, predicts=("decisions",))


@dataclasses.dataclass(frozen=True)
class ImitationOptions(ActingOptions):
    """The environment, the demonstrations, the policy, and its discriminator."""

    expert_file: str = option(
        "",
        "File of demonstrations to imitate, .npz with observations, actions and ends, as python -m "
        f"{PACKAGE}.rl --export_demonstrations writes it. By default the environment's own expert acts.",
        section="Data",
        scope="host",
        only=OF_ONE,
        basic=True,
    )
    demonstrations: int = option(
        1,
        "Episodes of the expert: those of each task that a learner adapts to; for gail and clone all there "
        "are.",
        section="Episodes",
        least=1,
        basic=True,
    )
    queries: int = option(
        1,
        "Other episodes of the expert in each training task, which the adapted policy is scored on.",
        section="Episodes",
        least=1,
        never=OF_ONE,
    )
    query_noise: float = option(
        0.0,
        "Standard deviation of noise that throws the expert off its way in --queries, in units of the "
        "actions; the policy is scored on what the expert would do there. Demonstrations to adapt to have "
        "none.",
        section="Episodes",
        least=0,
        never=OF_ONE,
    )
    subsample: int = option(
        1,
        "Keeps every n-th step of a demonstration, from a random first one; a divisor of the horizon.",
        section="Episodes",
        least=1,
        only=OF_ONE,
    )
    task_seed: int = option(
        0,
        "Seed of the one task, where the file does not hold it.",
        section="Episodes",
        least=0,
        only=OF_ONE,
    )
    test_calls: int = option(
        1,
        "Adaptations to the same demonstrations in validation and test; the table shows the return after "
        "each.",
        section="Episodes",
        least=1,
        most=100,
        scope="test",
        never=OF_ONE,
    )
    test_episodes: int = option(
        10,
        "Episodes by which a policy is measured in each test task; for gail and clone every test task is one "
        "episode.",
        section="Test",
        least=1,
        scope="test",
        never=OF_ONE,
    )
    sampled: bool = option(
        False,
        "Draws actions in validation and test, instead of taking the most likely ones.",
        section="Test",
        scope="test",
    )
    clone_steps: int | None = option(
        None,
        "Outer steps of the cloned policy in the table: of all tasks without adaptation, or of the one "
        "expert. By default --steps, and 2000 for gail; 0 leaves it out.",
        section="Test",
        least=0,
        scope="test",
        never={"learner": ("clone",)},
    )
    finetune_steps: int = option(
        50,
        "Steps by which the cloned policy of all tasks is fine-tuned to the demonstrations of a test task.",
        section="Test",
        least=1,
        scope="test",
        never=OF_ONE,
    )
    finetune_lr: float = option(
        0.01,
        "Step size of that fine-tuning, by Adam.",
        section="Test",
        above=0,
        scope="test",
        never=OF_ONE,
    )
    learn_std: bool = option(
        False,
        "Learns the standard deviation of actions that are vectors, too. By default the loss has the initial "
        "one, and is their squared error: an expert that does not vary drives a learned one to zero, and "
        "inner gradients grow with its inverse square.",
        section="Training",
        never=OF_ONE,
    )
    policy_step: str = option(
        "trpo",
        "gail: Improvement of the policy: trpo, a natural gradient within a trust region, as published; or "
        "ppo, clipped steps of --outer_lr.",
        section="Training",
        choices=("trpo", "ppo"),
        only=GAIL,
    )
    episodes: int = option(
        25, "gail: Episodes of own experience per step.", section="Training", least=1, only=GAIL
    )
    max_kl: float = redeclare(
        ActingOptions, "max_kl", 0.01, only={**GAIL, "policy_step": ("trpo",)}
    )
    updates: int = redeclare(ActingOptions, "updates", 10, only={**GAIL, "policy_step": ("ppo",)})
    minibatches: int = redeclare(
        ActingOptions, "minibatches", 4, only={**GAIL, "policy_step": ("ppo",)}
    )
    clip_ratio: float = redeclare(
        ActingOptions, "clip_ratio", 0.2, only={**GAIL, "policy_step": ("ppo",)}
    )
    discount: float = redeclare(ActingOptions, "discount", 0.995, only=GAIL)
    trace: float = redeclare(ActingOptions, "trace", 0.97, only=GAIL)
    policy_entropy: float = option(
        0.0,
        "gail: Factor of the policy's entropy, which is added to its reward.",
        section="Training",
        least=0,
        only=GAIL,
    )
    sign: str = option(
        "positive",
        "gail: Reward of the discriminator D: positive is -log(1 - D), where episodes end on failure; "
        "negative is log D, where they end on success; difference is their sum. With --absorbing none favors "
        "long or short episodes.",
        section="Adversary",
        choices=SIGNS,
        only=GAIL,
    )
    absorbing: bool = option(
        False,
        "gail: Counts the steps from an end to the horizon as visits of a state, whose reward is learned.",
        section="Adversary",
        only=GAIL,
    )
    entropy: float = option(
        0.001,
        "gail: Factor of the entropy of the discriminator's answers, which is subtracted from its loss.",
        section="Adversary",
        least=0,
        only=GAIL,
    )
    gradient_penalty: float = option(
        0.0,
        "gail: Factor of the penalty of the discriminator's slopes; 10 is usual.",
        section="Adversary",
        least=0,
        only=GAIL,
    )
    discriminator_lr: float = option(
        0.01,
        "gail: Step size of the discriminator, by Adam. With few demonstrations 0.001 is steadier.",
        section="Adversary",
        above=0,
        only=GAIL,
    )
    discriminator_steps: int = option(
        1,
        "gail: Steps of the discriminator before each of the policy.",
        section="Adversary",
        least=1,
        only=GAIL,
    )
    discriminator_hidden: str = option(
        "100,100",
        "gail: Widths of the discriminator's hidden layers.",
        section="Adversary",
        only=GAIL,
    )


@dataclasses.dataclass(frozen=True)
class ImitationSettings(ImitationOptions, TrainingSettings):
    """Every option of imitation."""

    predicts: ClassVar[str] = "decisions"

    learner: str = redeclare(
        TrainingSettings,
        "learner",
        "maml",
        help="Meta-learner; or gail, generative adversarial imitation of one expert in one task, or clone, "
        "behavior cloning of it.",
        limits=Limits((*(n for n, e in LEARNERS.items() if "decisions" in e.predicts), *SINGLE)),
    )
    inner_steps: int = redeclare(TrainingSettings, "inner_steps", 5)
    inner_lr: float = redeclare(TrainingSettings, "inner_lr", 0.1, help="Inner step size.")
    outer: str | None = redeclare(TrainingSettings, "outer", None, never=OF_ONE)
    outer_lr: float = redeclare(TrainingSettings, "outer_lr", 1e-3)
    meta_batch: int = redeclare(
        TrainingSettings, "meta_batch", 20, never=OF_ONE, neutral=(1,), help="Tasks per meta-step."
    )
    steps: int = redeclare(TrainingSettings, "steps", 2000)
    precision: str = redeclare(
        TrainingSettings, "precision", "float32", limits=Limits(("float32",))
    )
    tasks_at_once: str = redeclare(TrainingSettings, "tasks_at_once", "1000000")
    eval_every: int = redeclare(
        TrainingSettings,
        "eval_every",
        200,
        never=GAIL,
        neutral=(0,),
        help="Meta-steps between validations; 0 validates at the end only. gail always does: to choose among "
        "its policies by the environment's reward would use what an imitator has not.",
    )
    valid_episodes: int = redeclare(
        TrainingSettings, "valid_episodes", 40, help="Tasks of a validation."
    )
    eval_episodes: int = redeclare(TrainingSettings, "eval_episodes", 40, help="Test tasks.")
    checkpoint_every: int = redeclare(TrainingSettings, "checkpoint_every", 200)

    @property
    def entry(self) -> Entry:
        """The learner's entry in the zoo; gail and clone have none there."""
        return _ENTRY if self.learner in SINGLE else LEARNERS[self.learner]

    @property
    def estimator(self) -> str:
        """The outer estimator in force."""
        return "gail" if self.learner == "gail" else self.outer or self.entry.outer

    @property
    def updates_per_step(self) -> int:
        """Steps of the outer optimizer in a meta-step."""
        proximal = self.learner == "gail" and self.policy_step == "ppo"
        return self.updates * self.minibatches if proximal else 1


class ImitationPlan(NamedTuple):
    """A run of imitation as resolved from its options.

    Attributes:
      common: Plan that all drivers share.
      options: Options of the environment, the demonstrations and the policy.
      env_options: Values of the environment's own options.
      hidden: Widths of the policy's hidden layers.
      discriminator: Widths of the discriminator's hidden layers.
      clone_steps: Steps of the cloned policy to compare with; 0 for none.
    """

    common: RunPlan
    options: ImitationOptions
    env_options: dict[str, Any]
    hidden: tuple[int, ...]
    discriminator: tuple[int, ...]
    clone_steps: int


def plan_of(settings: ImitationSettings) -> ImitationPlan:
    """Checks settings and resolves them.

    Raises:
      UsageError: If options do not go together.
    """
    check_together(settings)
    if settings.ensemble > 1:
        raise UsageError(
            f"--ensemble={settings.ensemble} is not for policies, whose actions have no mean; use 1."
        )
    if settings.learner == "gail" and settings.policy_step == "trpo":
        unset = defaults(settings)
        for name in _OPTIMIZER:
            if (value := getattr(settings, name)) != unset[name]:
                raise UsageError(
                    f"--{name}={value} does not go with --policy_step=trpo, which has none; leave out one "
                    "of the two."
                )
    clone_steps = settings.clone_steps
    if clone_steps is None:
        clone_steps = 2000 if settings.learner == "gail" else settings.steps
    return ImitationPlan(
        common=resolve(settings),
        options=part(ImitationOptions, settings),
        env_options=settings.env_options,
        hidden=hidden_widths(settings.hidden),
        discriminator=hidden_widths(settings.discriminator_hidden),
        clone_steps=0 if settings.learner == "clone" else clone_steps,
    )
