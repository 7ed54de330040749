"""Settings of each learner at an equal budget of training."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from metajax.zoo.learners import LEARNERS

COMMON_FLAGS = (
    "--ways=5 --shots=1 --queries=5 --test_queries=15 --inner_steps=1 --test_inner_steps=3 --inner_lr=0.4 "
    "--meta_batch=16 --outer_lr=2e-3 --outer_schedule=cosine --valid_episodes=200 --eval_episodes=600"
).split()

# Flags of learners that take inner steps.
INNER_LOOP = ("inner_steps", "test_inner_steps", "inner_lr")

# The fractions of a random split cut its 200 classes into 128, 32 and 40. An inner step of 0.4 is too large
# here: validation of MAML after 8,160 tasks was 28%, and 32% with 0.1 and with 0.05.
_TINY_IMAGENET = (
    "--dataset=tiny_imagenet32 --split=random --model=conv4 --filters=32 --inner_lr=0.1"
)

DATASETS = {
    "omniglot": "--dataset=omniglot --split=random --rotations=all --model=conv4_stride --filters=64",
    "tiny_imagenet32": _TINY_IMAGENET,
    "tiny_imagenet32_5shot": f"{_TINY_IMAGENET} --shots=5",
}
TITLES = {
    "omniglot": "Omniglot",
    "tiny_imagenet32": "Tiny ImageNet 32x32",
    "tiny_imagenet32_5shot": "the same, 5 shots, half the time",
}
# Of the minutes of training; all of them if not here.
SHARES = {"tiny_imagenet32_5shot": 0.5}

# What would have to find its features and how to read them at once finds neither on Tiny ImageNet: in_context
# stood at chance after 4,800 tasks there, and on a frozen encoder learned from the 1,600th on. Half of the
# minutes then go to an encoder, which trains as ENCODER does, and half to what reads.
ENCODER = "simpleshot"
_ENCODED = "--init_from={encoder} --freeze=true --norm=running"
_READERS = {"recurrent": _ENCODED, "mann": _ENCODED, "in_context": _ENCODED}

# Of a learner on one data set, beyond those below.
DATASET_FLAGS = {
    "tiny_imagenet32": _READERS,
    # 100 examples of 129 numbers, near where ridge regression overfits most: validation after 118 steps was
    # 39.7 (under the cosine), 44.6 and 48.0% by strengths of 1, 10 and 100.
    "tiny_imagenet32_5shot": {**_READERS, "r2d2": "--regularization=100"},
}

# The settings of each learner besides the common flags are the defaults of its entry in the zoo.
LEARNER_FLAGS = {
    learner: " ".join(
        f"--{name}={value}" for name, value in entry.defaults.get("classes", {}).items()
    )
    for learner, entry in LEARNERS.items()
}

# Learners of classes.
TABLED = tuple(name for name, entry in LEARNERS.items() if "classes" in entry.predicts)


class Run(NamedTuple):
    """One learner on one data set.

    Attributes:
      dataset: A key of DATASETS.
      learner: Name of the learner.
      steps: Meta-steps of training; None before calibration.
      tasks_per_second: Calibrated speed of training.
      result: Fields of the driver's result.json that the table shows; None while there is none.
      error: Reason why it has no steps or no result.
      lends: Whether it is only trained for its encoder, which another run starts from.
    """

    dataset: str
    learner: str
    steps: int | None = None
    tasks_per_second: float | None = None
    result: Mapping[str, Any] | None = None
    error: str | None = None
    lends: bool = False

    @property
    def name(self) -> str:
        """Name of the run."""
        return f"{self.dataset}/{self.learner}"

    @property
    def flags(self) -> list[str]:
        """Flags of the driver except steps, seed and folders; later ones win.

        `{encoder}` stands for the work directory of `encoder`.
        """
        here = DATASET_FLAGS.get(self.dataset, {}).get(self.learner, "")
        flags = [f"--learner={self.learner}", *COMMON_FLAGS, *DATASETS[self.dataset].split()]
        flags += f"{LEARNER_FLAGS[self.learner]} {here}".split()
        if LEARNERS[self.learner].inner:
            return flags
        return [flag for flag in flags if flag[2:].partition("=")[0] not in INNER_LOOP]

    @property
    def encoder(self) -> "Run | None":
        """Run whose encoder this one starts from, if there is one."""
        if not any("{encoder}" in flag for flag in self.flags):
            return None
        return Run(self.dataset, ENCODER, lends=True)

    @property
    def all_flags(self) -> list[str]:
        """Flags that the result depends on: of the run and of its encoder."""
        return self.flags + (self.encoder.flags if self.encoder else [])

    def minutes(self, whole: float) -> float:
        """Returns the minutes of its training, of a whole budget."""
        return whole * SHARES.get(self.dataset, 1) / (2 if self.lends or self.encoder else 1)
