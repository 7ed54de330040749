"""Options of environments, which every driver that acts in one has."""

import dataclasses
from typing import Any

from experiments.flags.settings import choice_options, option
from metajax.zoo.environments import ENVIRONMENTS, Environment
from metajax.zoo.options import complete

EnvOptions = choice_options("EnvOptions", ENVIRONMENTS, flag="env", section="Environment")


@dataclasses.dataclass(frozen=True)
class EnvironmentOptions(EnvOptions):
    """The environment and its own options."""

    env: str = option(
        "navigation" if "navigation" in ENVIRONMENTS else "bandit",
        "Environment.",
        section="Environment",
        choices=tuple(ENVIRONMENTS),
        basic=True,
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
