"""Options of the learner and of its inner loop."""

import dataclasses
from typing import Any, NamedTuple

from metajax.inner.adjoints import ADJOINTS
from metajax.zoo.learners import LEARNERS, Entry
from metajax.zoo.options import complete
from metajax.zoo.rules import RULES

from .settings import choice_options, option

INNER = tuple(name for name, entry in LEARNERS.items() if entry.inner)
OWN_RULE = tuple(name for name, entry in LEARNERS.items() if entry.own_rule)
UNROLLS = tuple(name for name, entry in LEARNERS.items() if entry.unrolls)
SUPERVISED = tuple(name for name, entry in LEARNERS.items() if entry.objective)
PENALIZED = tuple(name for name, entry in LEARNERS.items() if entry.penalty)

OwnOptions = choice_options("OwnOptions", LEARNERS, flag="learner", section="Learner")


@dataclasses.dataclass(frozen=True)
class LearnerOptions(OwnOptions):
    """The learner, its own options, and its inner loop."""

    learner: str = option(
        "maml", "Meta-learner.", section="Learner", choices=tuple(LEARNERS), basic=True
    )
    inner_steps: int = option(
        1,
        "Inner steps of a task in training.",
        section="Inner loop",
        least=0,
        only={"learner": INNER},
        basic=True,
    )
    test_inner_steps: int | None = option(
        None,
        "Inner steps in validation and test; as in training if not given.",
        section="Inner loop",
        least=0,
        scope="test",
        only={"learner": INNER},
    )
    inner_lr: float = option(
        0.4,
        "Inner step size, for a loss that is a mean over examples (papers that sum over the N ways quote "
        "one N times smaller). Where step sizes are learned, their initial value.",
        section="Inner loop",
        above=0,
        only={"learner": INNER},
        basic=True,
    )
    inner_optimizer: str = option(
        "sgd",
        "Inner rule. momentum is 0.9; adam has eps_root 1e-8 where it is differentiated; adam0 is "
        "adam without momentum (b1 = 0), as in Reptile; sign steps along the sign of the gradient, which is "
        "first order.",
        section="Inner loop",
        choices=tuple(RULES),
        only={"learner": tuple(name for name in INNER if name not in OWN_RULE)},
        never={"hessian_free": (True,)},
    )
    adjoint: str = option(
        "reverse",
        "How to differentiate through the inner steps. reverse is exact for every loss and keeps the most in "
        "memory; remat recomputes; mixed takes forward over reverse mode and keeps a state and a gradient "
        "per step; recursive keeps about sqrt(steps) states; offload keeps them in the host's memory. Two "
        "give another gradient: truncated differentiates the last 5 steps only, first_order treats inner "
        "gradients as constants.",
        section="Inner loop",
        choices=tuple(ADJOINTS),
        only={"learner": UNROLLS, "outer": ("backprop",)},
        protocol=False,
    )

    @property
    def entry(self) -> Entry:
        """The learner's entry in the zoo."""
        return LEARNERS[self.learner]

    @property
    def steps_at_test(self) -> int:
        """Inner steps in validation and test."""
        return self.inner_steps if self.test_inner_steps is None else self.test_inner_steps

    @property
    def supervised(self) -> bool:
        """Whether training is to tell all training classes apart, instead of on episodes."""
        return self.entry.objective is not None

    @property
    def own_options(self) -> dict[str, Any]:
        """The learner's own options: as given, else as its entry declares."""
        given = {name: getattr(self, name) for name in self.entry.options}
        return complete(self.learner, given, self.entry.options)


class InnerLoop(NamedTuple):
    """How a task adapts, resolved from the options.

    Attributes:
      learner: Name of the learner.
      own: Values of its own options.
      learning_rate: Inner step size.
      optimizer: Name of the inner rule.
      steps: Inner steps in training.
      test_steps: Inner steps in validation and test.
      adjoint: Name of the adjoint.
      estimator: Name of the estimator of the meta-gradient.
      entry: The learner's entry in the zoo, or a driver's own.
    """

    learner: str
    own: dict[str, Any]
    learning_rate: float
    optimizer: str
    steps: int
    test_steps: int
    adjoint: str
    estimator: str
    entry: Entry
