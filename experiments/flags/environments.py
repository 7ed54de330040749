"""Options of the environment, the policy and its improvement, which every driver that acts in one has."""

import dataclasses
from typing import Any

from metajax.zoo.environments import ENVIRONMENTS, Environment
from metajax.zoo.options import complete

from .settings import choice_options, option

EnvOptions = choice_options("EnvOptions", ENVIRONMENTS, flag="env", section="Environment")


@dataclasses.dataclass(frozen=True)
class ActingOptions(EnvOptions):
    """The environment, its own options, the network that acts in it, and how it improves."""

    env: str = option(
        "navigation",
        "Environment.",
        section="Environment",
        choices=tuple(ENVIRONMENTS),
        basic=True,
    )
    hidden: str = option(
        "64,64",
        "Widths of the policy's hidden layers.",
        section="Learner",
        never={"learner": ("rl2",)},
    )
    initial_std: float = option(
        1.0,
        "Standard deviation at the start of actions that are vectors.",
        section="Learner",
        above=0,
    )
    discount: float = option(
        0.99, "Discount of rewards per step.", section="Training", least=0, most=1
    )
    trace: float = option(
        1.0,
        "Lambda of generalized advantage estimation: 1 is the return less the baseline.",
        section="Training",
        least=0,
        most=1,
    )
    updates: int = option(
        5, "Passes of the optimizer over the experience of a step.", section="Training", least=1
    )
    minibatches: int = option(
        1, "Parts into which that experience is divided in each pass.", section="Training", least=1
    )
    clip_ratio: float = option(
        0.3, "Largest change of a probability ratio that counts.", section="Training", above=0
    )
    max_kl: float = option(
        0.01,
        "trpo: Largest divergence of the policy in a step, in nats.",
        section="Training",
        above=0,
    )

    @property
    def environment(self) -> Environment:
        """The environment's entry in the zoo."""
        return ENVIRONMENTS[self.env]

    @property
    def env_options(self) -> dict[str, Any]:
        """The environment's own options: as given, else as its entry declares."""
        given = {name: getattr(self, name) for name in self.environment.options}
        return complete(self.env, given, self.environment.options)
