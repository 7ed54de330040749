"""Options of the environment and the policy, which every driver that acts in one has."""

import dataclasses
from typing import Any

from experiments.flags.settings import choice_options, option
from metajax.zoo.environments import ENVIRONMENTS, Environment
from metajax.zoo.options import complete

EnvOptions = choice_options("EnvOptions", ENVIRONMENTS, flag="env", section="Environment")


@dataclasses.dataclass(frozen=True)
class ActingOptions(EnvOptions):
    """The environment, its own options, and the network that acts in it."""

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

    @property
    def environment(self) -> Environment:
        """The environment's entry in the zoo."""
        return ENVIRONMENTS[self.env]

    @property
    def env_options(self) -> dict[str, Any]:
        """The environment's own options: as given, else as its entry declares."""
        given = {name: getattr(self, name) for name in self.environment.options}
        return complete(self.env, given, self.environment.options)
