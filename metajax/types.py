"""The vocabulary of metajax: what a batch, an episode, a model and a learner are.

Only two pytrees exist while learning: `meta`, what is learned across tasks, and `fast`, what is learned
within one. Every function here is pure and is written for *one* task; `jax.vmap` lifts it to many.

Letters in all docstrings: `T` tasks, `N` ways, `K` shots, `Q` queries a class, `B` examples, `D` features,
`H W C` image height, width and channels.
"""

from collections.abc import Callable, Mapping
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import jax

from metajax import trees

Array = jax.Array
Key = jax.Array
Tree = Any
Params = Any
Meta = Any
Fast = Any
Task = Any
Metrics = Mapping[str, Tree]  # mostly of scalars
MetaT = TypeVar("MetaT")
FastT = TypeVar("FastT")


class Batch(NamedTuple):
    """Examples of one task: pytrees whose leaves share the leading axis [B].

    Attributes:
      inputs: Tree of arrays [B, ...] that the model reads.
      targets: Tree of arrays [B, ...]: int class labels [B], float regression targets [B, D], or whatever
        else the loss reads.
      weights: Float weights [B], or None when every example counts once. Zero marks padding, of any label,
        which lets tasks of different ways and shots share one static shape.
    """

    inputs: Tree
    targets: Tree
    weights: Array | None = None


class Episode(NamedTuple):
    """One task: a support set to adapt on, and a query set of the same classes to be judged on."""

    support: Batch
    query: Batch


class Parts(NamedTuple):
    """Which leaves of a model's parameters are what, by path; the defaults are the names of the models here.

    Attributes:
      head: Predicate of the last layer's leaves: those with a path component `head`.
      norms: Predicate of the leaves of norm layers: those below a component whose name contains `norm`.
      averages: Predicate of running averages, which no inner step moves: a path component `running`.
    """

    head: trees.PathPredicate = trees.under("head")
    norms: trees.PathPredicate = trees.in_norms
    averages: trees.PathPredicate = trees.under("running")


DEFAULT_PARTS = Parts()


class Model(NamedTuple):
    """A network as a pair of pure functions; any framework's module becomes one through an adapter.

    Attributes:
      init: (key, inputs) -> params; inputs are a tree of arrays [B, ...].
      apply: (params, inputs) -> outputs, an array [B, ...] or a tree of them.
      parts: Predicates that tell the head, the norms and the running averages among the params.
    """

    init: Callable[[Key, Tree], Params]
    apply: Callable[[Params, Tree], Tree]
    parts: Parts = DEFAULT_PARTS


class LossFn(Protocol):
    """Scores the outputs of one task."""

    def __call__(self, outputs: Tree, batch: Batch) -> Array:
        """Maps outputs [B, ...] and the batch to a scalar, the weighted mean over its examples."""


class Evidence(Protocol):
    """Provides the examples that a task adapts to or is scored on; a rollout or a stream is one too."""

    def __call__(self, meta: Meta, fast: Fast, key: Key, task: Task) -> Batch:
        """Returns examples [B, ...] of a task; the key is consumed."""


class InitFn(Protocol):
    """Makes what is learned across tasks."""

    def __call__(self, key: Key, inputs: Tree) -> Meta:
        """Makes the meta-parameters from a key (consumed) and example inputs [B, ...]."""


class StartFn(Protocol):
    """Makes what a task starts from."""

    def __call__(self, meta: Meta, key: Key, like: Batch | None = None) -> Fast:
        """Makes the fast state of a new task, of the shape that it keeps.

        Args:
          meta: Meta-parameters.
          key: Random key, for learners whose start is random.
          like: Examples [C, ...], or their `jax.ShapeDtypeStruct`s, of which only shapes and types are read:
            learners that keep examples have room for C of them. Others need none.
        """


class AdaptFn(Protocol):
    """Learns within a task."""

    def __call__(self, meta: Meta, fast: Fast, key: Key, batch: Batch) -> Fast:
        """Folds a batch of evidence into the fast state."""


class PredictFn(Protocol):
    """Answers within a task."""

    def __call__(self, meta: Meta, fast: Fast, inputs: Tree) -> Tree:
        """Answers for inputs [B, ...]; class logits [B, N] or regression values [B, D]."""


def nothing_adapted(fast: Fast) -> None:
    """Returns None: the `adapted` of learners without parameters that move."""
    del fast


class Learner(NamedTuple, Generic[MetaT, FastT]):
    """A way to learn a task, as pure functions.

    `meta` is what training improves; `fast` is what one task leaves behind. Calling `adapt` again continues
    from where the fast state was.

    Attributes:
      init: (key, inputs) -> meta.
      start: (meta, key, like) -> fast.
      adapt: (meta, fast, key, batch) -> fast.
      predict: (meta, fast, inputs) -> outputs.
      adapted: fast -> the parameters that moved, a tree of arrays; None for learners without any.
    """

    init: InitFn
    start: StartFn
    adapt: AdaptFn
    predict: PredictFn
    adapted: Callable[[FastT], Params | None] = nothing_adapted


class Objective(Protocol):
    """Scores one task."""

    def __call__(self, meta: Meta, key: Key, task: Task) -> tuple[Array, Metrics]:
        """Returns the task's scalar outer loss and its metrics."""


class MetaGrad(Protocol):
    """Scores many tasks and says how to improve."""

    def __call__(
        self, meta: Meta, keys: Key, tasks: Task, step: Array | None = None
    ) -> tuple[Meta, Metrics]:
        """Maps keys [T] and tasks [T, ...] to the mean meta-gradient and the mean metrics.

        Args:
          meta: Meta-parameters.
          keys: Random keys [T], one for each task; consumed.
          tasks: Tree of arrays [T, ...], which only the objective reads: an `Episode`, or whatever its
            evidence functions take for a task.
          step: Number of outer steps taken so far, a scalar, which only `metagrad.switch_at` and
            `metagrad.scheduled` read.
        """


class StatefulMetaGrad(NamedTuple):
    """A meta-gradient that remembers something of each task from one outer step to the next.

    Attributes:
      init: (meta, keys [T], tasks [T, ...]) -> memory, every leaf [T, ...].
      update: (meta, memory, keys [T], tasks [T, ...]) -> (grads, memory, metrics). The tasks offered are new
        in every step; it is the estimator's to take them or to stay with those it remembers.
    """

    init: Callable[[Meta, Key, Task], Any]
    update: Callable[[Meta, Any, Key, Task], tuple[Meta, Any, Metrics]]
