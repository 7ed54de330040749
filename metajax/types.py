"""The vocabulary of metajax: batches, episodes, models, learners, objectives and meta-gradients.

Learning keeps two pytrees: `meta`, the meta-parameters, which are learned across tasks, and `fast`, the fast
state, which is learned within one task. Every function here is pure and is written for *one* task; `jax.vmap`
maps it over many.

Letters in all docstrings: `T` tasks, `N` ways, `K` shots, `Q` queries per class, `B` examples, `D` features,
`H W C` image height, width and channels, `L` tokens, `S` steps.
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
Metrics = Mapping[str, Tree]  # mostly scalars
MetaT = TypeVar("MetaT")
FastT = TypeVar("FastT")


class Batch(NamedTuple):
    """Examples of one task: pytrees whose leaves share the leading axis [B].

    Attributes:
      inputs: Tree of arrays [B, ...] that the model reads.
      targets: Tree of arrays [B, ...] that the loss reads: integer class labels [B], float regression targets
        [B, D], or others.
      weights: Float weights [B], or None if every example counts once. Zero marks padding, with any label, so
        that tasks of different ways and shots share one static shape.

    Example:
      >>> batch = metajax.Batch(jnp.ones((6, 2)), jnp.array([0, 0, 1, 1, 2, 2]))
      >>> batch.inputs.shape, batch.weights is None
      ((6, 2), True)
    """

    inputs: Tree
    targets: Tree
    weights: Array | None = None


class Episode(NamedTuple):
    """One task: a support set and a query set with the same classes.

    Attributes:
      support: Examples to adapt to.
      query: Examples to score the adapted learner on.

    Example:
      >>> from metajax.toys import toy_episode
      >>> episode = toy_episode(jax.random.key(0), ways=3, shots=2, queries=4)
      >>> type(episode).__name__, episode.support.inputs.shape, episode.query.inputs.shape
      ('Episode', (6, 2), (12, 2))
    """

    support: Batch
    query: Batch


class Parts(NamedTuple):
    """Predicates of the leaves of a model with a special role, by path; defaults fit `metajax.models`.

    Attributes:
      head: Predicate of the last layer's leaves; by default leaves with a path component `head`.
      norms: Predicate of the leaves of normalization layers; by default leaves below a component whose name
        contains `norm`.
      averages: Predicate of running averages, which no inner step moves; by default leaves with a path
        component `running`.

    Example:
      >>> parts = metajax.types.Parts(head=metajax.trees.under("classifier"))
      >>> parts.head("classifier/bias"), parts.norms("norm0/scale")
      (True, True)
    """

    head: trees.PathPredicate = trees.under("head")
    norms: trees.PathPredicate = trees.in_norms
    averages: trees.PathPredicate = trees.under("running")


DEFAULT_PARTS = Parts()


class Model(NamedTuple):
    """A network as a pair of pure functions; any framework's module becomes one through an adapter.

    Attributes:
      init: Function `(key, inputs) -> params` of a tree of example inputs [B, ...].
      apply: Function `(params, inputs) -> outputs`, an array [B, ...] or a tree of arrays.
      parts: Predicates of the head, the norms and the running averages among the params.

    Example:
      >>> linear = metajax.Model(
      ...     init=lambda key, inputs: {"w": jax.random.normal(key, (inputs.shape[-1], 3))},
      ...     apply=lambda params, inputs: inputs @ params["w"],
      ... )
      >>> params = linear.init(jax.random.key(0), jnp.ones((5, 2)))
      >>> linear.apply(params, jnp.ones((5, 2))).shape
      (5, 3)
    """

    init: Callable[[Key, Tree], Params]
    apply: Callable[[Params, Tree], Tree]
    parts: Parts = DEFAULT_PARTS


class LossFn(Protocol):
    """Scores the outputs of one task."""

    def __call__(self, outputs: Tree, batch: Batch) -> Array:
        """Maps outputs [B, ...] and the batch to a scalar, the weighted mean over its examples."""
        ...


class Evidence(Protocol):
    """Provides examples to adapt to or to score: a support set, a rollout or a stream."""

    def __call__(self, meta: Meta, fast: Fast, key: Key, task: Task) -> Batch:
        """Returns examples [B, ...] of a task; the key is consumed."""
        ...


class InitFn(Protocol):
    """Makes the meta-parameters."""

    def __call__(self, key: Key, inputs: Tree) -> Meta:
        """Makes the meta-parameters from a key (consumed) and example inputs [B, ...]."""
        ...


class StartFn(Protocol):
    """Starts a task."""

    def __call__(self, meta: Meta, key: Key, like: Batch | None = None) -> Fast:
        """Makes the fast state of a new task; `adapt` keeps its structure, shapes and types.

        Args:
          meta: Meta-parameters.
          key: Random key, for learners with a random start; consumed.
          like: Examples [B, ...], or their `jax.ShapeDtypeStruct`s, of which only shapes and types are read:
            learners that store examples reserve room for B of them. Other learners need none.

        Returns:
          Fast state.
        """
        ...


class AdaptFn(Protocol):
    """Adapts to examples of a task."""

    def __call__(self, meta: Meta, fast: Fast, key: Key, batch: Batch) -> Fast:
        """Returns the fast state after examples [B, ...]; the key is consumed."""
        ...


class PredictFn(Protocol):
    """Predicts outputs within a task."""

    def __call__(self, meta: Meta, fast: Fast, inputs: Tree) -> Tree:
        """Predicts class logits [B, N] or regression values [B, D] for inputs [B, ...]."""
        ...


def nothing_adapted(fast: Fast) -> None:
    """Returns None: the field `adapted` of learners without adapted parameters."""
    del fast


class Learner(NamedTuple, Generic[MetaT, FastT]):
    """A learning algorithm for one task, as pure functions.

    Training improves `meta`; a task changes `fast`. Calling `adapt` again continues from the fast state.

    Attributes:
      init: Function `(key, inputs) -> meta`.
      start: Function `(meta, key, like) -> fast`.
      adapt: Function `(meta, fast, key, batch) -> fast`.
      predict: Function `(meta, fast, inputs) -> outputs`.
      adapted: Function from the fast state to the parameters that `adapt` moved, a tree of arrays; None for
        learners without any.

    Example:
      >>> mean = metajax.Learner(  # predicts the mean of the targets, starting from `meta`
      ...     init=lambda key, inputs: jnp.zeros(()),
      ...     start=lambda meta, key, like=None: meta,
      ...     adapt=lambda meta, fast, key, batch: batch.targets.mean(),
      ...     predict=lambda meta, fast, inputs: jnp.full((len(inputs), 1), fast),
      ... )
      >>> fast = mean.adapt(None, None, None, metajax.Batch(jnp.ones((2, 1)), jnp.array([[1.0], [3.0]])))
      >>> mean.predict(None, fast, jnp.ones((1, 1))).tolist()
      [[2.0]]
    """

    init: InitFn
    start: StartFn
    adapt: AdaptFn
    predict: PredictFn
    adapted: Callable[[FastT], Params | None] = nothing_adapted


class Objective(Protocol):
    """Scores one task: a function `(meta, key, task) -> (loss, metrics)`.

    Example:
      >>> from metajax.toys import toy_episode, toy_model
      >>> learner = metajax.protonet(toy_model(None), ways=3)
      >>> objective: metajax.Objective = metajax.query_objective(learner, metajax.cross_entropy)
      >>> task = toy_episode(jax.random.key(0))
      >>> meta = learner.init(jax.random.key(1), task.support.inputs)
      >>> loss, metrics = objective(meta, jax.random.key(2), task)
      >>> loss.shape, list(metrics)
      ((), ['loss'])
    """

    def __call__(self, meta: Meta, key: Key, task: Task) -> tuple[Array, Metrics]:
        """Returns the scalar outer loss of a task and its metrics; the key is consumed."""
        ...


class MetaGrad(Protocol):
    """Estimates the gradient of the outer loss over many tasks."""

    def __call__(
        self, meta: Meta, keys: Key, tasks: Task, step: Array | None = None
    ) -> tuple[Meta, Metrics]:
        """Computes the mean meta-gradient and the mean metrics of tasks.

        Args:
          meta: Meta-parameters.
          keys: Random keys [T], one per task; consumed.
          tasks: Tree of arrays [T, ...] that only the objective reads: `Episode`s, or another input of its
            evidence functions.
          step: Number of outer steps so far, a scalar that only `metagrads.switch_at` and
            `metagrads.scheduled` read.

        Returns:
          Gradients shaped like `meta`, and metrics.
        """
        ...


class StatefulMetaGrad(NamedTuple):
    """A meta-gradient with a memory of each task that lasts from one outer step to the next.

    Attributes:
      init: Function `(meta, keys [T], tasks [T, ...]) -> memory`, every leaf [T, ...].
      update: Function `(meta, memory, keys [T], tasks [T, ...]) -> (grads, memory, metrics)`. The offered
        tasks are new in every step; the estimator may take them or continue with the tasks in its memory.

    Example:
      >>> momentum = metajax.types.StatefulMetaGrad(
      ...     init=lambda meta, keys, tasks: jnp.zeros_like(tasks),
      ...     update=lambda meta, memory, keys, tasks: ((memory + tasks).mean(), memory + tasks, {}),
      ... )
      >>> momentum.update(None, jnp.ones(2), None, jnp.array([1.0, 3.0]))[0].item()
      3.0
    """

    init: Callable[[Meta, Key, Task], Any]
    update: Callable[[Meta, Any, Key, Task], tuple[Meta, Any, Metrics]]
