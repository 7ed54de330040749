"""The settings of each learner where all have the same budget of training."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from experiments.flags.learner_checks import INNER
from metajax.zoo.learners import LEARNERS

COMMON_FLAGS = (
    "--ways=5 --shots=1 --queries=5 --test_queries=15 --inner_steps=1 --test_inner_steps=3 --inner_lr=0.4 "
    "--meta_batch=16 --outer_lr=2e-3 --outer_schedule=cosine --valid_episodes=200 --eval_episodes=600"
).split()

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
    "tiny_imagenet32_5shot": {**_READERS, "r2d2": "--regularisation=100"},
}

# Beyond the common flags; a learner that is not here takes those as they are. Steps in test are those in
# training where step sizes are learned for just these.
LEARNER_FLAGS = {
    # An inner step of the head alone costs next to nothing.
    "anil": "--inner_steps=5 --test_inner_steps=5",
    # The paper takes one step, in test too.
    "boil": "--test_inner_steps=1",
    # Where the learned step sizes start: small, so that training raises those that help.
    "meta_sgd": "--inner_lr=0.1 --test_inner_steps=1",
    "meta_curvature": "--test_inner_steps=1",
    # Its network costs several steps of MAML: two of them, and fewer tasks at once, leave enough meta-steps.
    "learned_optimizer": "--inner_steps=2 --meta_batch=8",
    # The same gradient by an adjoint that is quicker for several steps.
    "maml_plus_plus": "--inner_steps=3 --adjoint=mixed",
    # As the paper: ten shots in training, in minibatches of ten, and many steps of Adam without momentum.
    # Its five tasks a step are six here, which divide over two and three cores.
    "reptile": "--inner_optimizer=adam0 --inner_lr=1e-3 --inner_steps=5 --test_inner_steps=50 --minibatch=10 "
    "--train_shots=10 --meta_batch=6 --outer_optimizer=sgd --outer_lr=1.0 --outer_schedule=linear",
    # Five steps on the codes, as the reference code, whose step size is for features that stay as they are:
    # of 1.0, 0.4 and 0.1 the last had the lowest loss after 30 steps on Tiny ImageNet.
    "leo": "--inner_steps=5 --test_inner_steps=5 --inner_lr=0.1",
    # A context of few numbers takes larger steps than a network: validation after 4,800 tasks was 53, 73 and
    # 71% by steps of 1, 5 and 20.
    "cavia": "--inner_steps=2 --test_inner_steps=2 --inner_lr=5.0",
    "lora": "--inner_steps=3 --rank=4",
    "warpgrad": "--inner_steps=3",
    # What compares or solves is trained at more ways than it is tested with, as in the papers; as many images
    # a step as the others see are then four tasks.
    "protonet": "--train_ways=20 --meta_batch=4",
    "matching": "--train_ways=20 --meta_batch=4 --scale=10",
    "r2d2": "--train_ways=20 --meta_batch=4",
    "lrd2": "--train_ways=20 --meta_batch=4",
    "metaoptnet": "--train_ways=20 --meta_batch=4",
    # What reads takes the step size of its recipes.
    "recurrent": "--outer_lr=1e-3",
    "mann": "--outer_lr=1e-3",
    "snail": "--outer_lr=1e-3",
    "metanet": "--outer_lr=1e-3",
    "in_context": "--outer_lr=1e-3",
    # Batches of single images, and averages over them in test.
    "baseline": "--norm=running",
    # The paper's 0.01 is for features of 1,600 numbers: in 300 validation tasks on simpleshot's encoder 0.1
    # and 1 had 40%, and 0.01, from rows of more than twice the length, 23%.
    "baseline_plus_plus": "--norm=running --finetune_rate=0.1",
    "simpleshot": "--norm=running",
    "linear_probe": "--norm=running",
    # Its gradient is that of a minimum, which the steps have to come near to. After 1,760 tasks validation
    # was 74.6% so; with the paper's strength of 2 and steps of 0.1 it was 68.4 and 68.7% by damping of 1 and
    # 10, and without damping 64% after twice the tasks.
    "imaml": "--inner_lr=0.2 --inner_steps=5 --test_inner_steps=10 --strength=0.5 --damping=2",
}


# Those that tell classes apart.
TABLED = tuple(name for name, entry in LEARNERS.items() if "classes" in entry.predicts)


class Run(NamedTuple):
    """One learner on one data set.

    Attributes:
      dataset: a key of DATASETS.
      learner: its name.
      steps: of training; None before it is calibrated.
      tasks_per_second: of training, as calibrated.
      result: what of the driver's result.json the table shows; None while there is none.
      error: why it has no steps or no result.
      lends: whether it is only trained for its encoder, which another run starts from.
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
        """What it is called."""
        return f"{self.dataset}/{self.learner}"

    @property
    def flags(self) -> list[str]:
        """The driver's, but for steps, seed and where things lie; later ones win.

        `{encoder}` in one stands for the work directory of `encoder`.
        """
        here = DATASET_FLAGS.get(self.dataset, {}).get(self.learner, "")
        own = f"{DATASETS[self.dataset]} {LEARNER_FLAGS.get(self.learner, '')} {here}".split()
        flags = [f"--learner={self.learner}", *COMMON_FLAGS, *own]
        if LEARNERS[self.learner].inner:
            return flags
        return [flag for flag in flags if flag[2:].partition("=")[0] not in INNER]

    @property
    def encoder(self) -> "Run | None":
        """The run whose encoder this one starts from, if there is one."""
        if not any("{encoder}" in flag for flag in self.flags):
            return None
        return Run(self.dataset, ENCODER, lends=True)

    @property
    def all_flags(self) -> list[str]:
        """Its own and those of its encoder: what its result depends on."""
        return self.flags + (self.encoder.flags if self.encoder else [])

    def minutes(self, whole: float) -> float:
        """Those that it trains for, where whole budgets are so long."""
        return whole * SHARES.get(self.dataset, 1) / (2 if self.lends or self.encoder else 1)
