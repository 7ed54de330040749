"""Scores of episodes of rows: class means without training, and rows of no class."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metajax import metrics
from metajax.episodes.choose import choose
from metajax.episodes.group_sampler import GroupDraw, GroupSampler
from metajax.episodes.rows import Rows
from metajax.evaluate import make_evaluate
from metajax.learners.metric.prototypes import protonet
from metajax.losses import accuracy
from metajax.objectives.query import adapt_to_task, query_outputs
from metajax.objectives.scoring import Scoring
from metajax.types import Array, Batch, Episode, Key, Learner, Model, Objective, Tree

from ..setup.experiment import evaluation_key

KNOWN_SHARE = 0.95  # of the validation's queries, which the threshold lets pass


class Paired(NamedTuple):
    """A task twice: with the inputs of the network, and with rows that compare without training.

    Attributes:
      own: Episode for the learner.
      plain: Episode of the same rows for class means.
    """

    own: Episode
    plain: Episode


@dataclasses.dataclass(frozen=True)
class PairedSampler:
    """Draws tasks of validation and test; call it as `sampler(store, key) -> Paired`.

    Attributes:
      own: Sampler whose view makes the inputs of the network.
      plain: The same sampler with a view of rows of numbers.
    """

    own: GroupSampler
    plain: GroupSampler

    def identify(self, store: Rows, key: Key) -> GroupDraw:
        """Chooses groups and rows, as `GroupSampler.identify`."""
        return self.own.identify(store, key)

    def __call__(self, store: Rows, key: Key) -> Paired:
        """Draws one task."""
        return Paired(self.own(store, key), self.plain(store, key))


def class_means(ways: int) -> Learner:
    """Makes the learner without parameters: class means of rows of numbers, compared by their cosine."""
    plain = Model(lambda key, inputs: {}, lambda params, inputs: inputs)
    return protonet(plain, ways=ways, distance="cosine")


def with_untrained(objective: Objective, ways: int) -> Objective:
    """Adds the accuracy of class means without training, and the difference to it, to the metrics of a task.

    Args:
      objective: Objective of the learner's episode.
      ways: Number of classes N.

    Returns:
      Objective of a `Paired` task.
    """
    untrained = class_means(ways)

    def measure(meta: Any, key: Key, task: Paired) -> tuple[Array, Any]:
        loss, values = objective(meta, key, task.own)
        outputs = query_outputs(untrained, _nothing(untrained, task), key, task.plain)
        compared = accuracy(outputs, task.plain.query)
        differences = {
            "untrained_accuracy": compared,
            "accuracy_over_untrained": values["accuracy"] - compared,
        }
        return loss, {**values, **differences}

    return measure


def _nothing(untrained: Learner, task: Paired) -> Any:
    """Makes the meta-parameters of class means, which have no numbers."""
    return untrained.init(jax.random.key(0), task.plain.support.inputs)


def of_own(objective: Objective) -> Objective:
    """Measures the learner's episode of a `Paired` task."""
    return lambda meta, key, task: objective(meta, key, task.own)


def unknown_fields(
    meta: Any,
    learner: Learner,
    scoring: Scoring,
    samplers: dict[str, PairedSampler],
    stores: dict[str, Rows],
    unknown: Rows,
    *,
    views: tuple[Callable[[Tree], Tree], Callable[[Tree], Array]],
    seed: int,
    episodes: dict[str, int],
    tasks_at_once: int,
) -> dict[str, float]:
    """Measures how well the largest probability tells queries from rows of no class.

    The accuracy is measured on the same test episodes; each has as many rows of no class as it has queries.

    Args:
      meta: Meta-parameters.
      learner: Learner of the test.
      scoring: Scoring of the test, for its chunk size.
      samplers: Samplers of "valid" and "test".
      stores: Stores of "valid" and "test".
      unknown: Store of the rows of no class.
      views: Functions from features [B, ...] to inputs of the network, and to rows of numbers.
      seed: Seed of validation and test.
      episodes: Number of episodes of "valid" and "test".
      tasks_at_once: Episodes vectorized together.

    Returns:
      Fields of result.json: `unknown_auroc` over episodes with its interval, the same of the largest cosine
      to class means without training, the largest probability that KNOWN_SHARE of the validation's queries
      exceed, and the shares of test queries above it and of rows of no class below it.
    """
    sampler = samplers["test"]
    queries = sampler.own.ways * sampler.own.queries
    number = min(queries, int(unknown.counts.sum()))
    own_view, plain_view = views
    untrained = class_means(sampler.own.ways)

    def draw(data: Any, key: Key) -> tuple[Paired, Tree]:
        store, others = data
        rows_key = jax.random.fold_in(key, 2**31)  # the sampler splits the same key
        rows = choose(rows_key, others.counts.sum(), number)
        return sampler(store, key), others.take(rows)

    def measure(meta: Any, key: Key, task: tuple[Paired, Tree]) -> tuple[None, dict[str, Array]]:
        pair, others = task
        known, strange = _confidences(learner, scoring, meta, key, pair.own, own_view(others))
        nothing = _nothing(untrained, pair)
        compared = _confidences(
            untrained, scoring, nothing, key, pair.plain, plain_view(others), of=jnp.max
        )
        return None, {
            "known": known,
            "unknown": strange,
            "unknown_auroc": _area(known, strange),
            "untrained_unknown_auroc": _area(*compared),
        }

    def only_known(meta: Any, key: Key, task: Paired) -> tuple[None, Array]:
        return None, _confidences(learner, scoring, meta, key, task.own, None)[0]

    def run(objective: Objective, sample: Any, split: str, data: Any) -> Any:
        evaluate = jax.jit(make_evaluate(objective, sample, tasks_at_once=tasks_at_once))
        key = evaluation_key(seed, split)
        return jax.tree.map(np.asarray, evaluate(meta, data, key, jnp.arange(episodes[split])))

    threshold = np.quantile(
        run(only_known, samplers["valid"], "valid", stores["valid"]), 1 - KNOWN_SHARE
    )
    found = run(measure, draw, "test", (stores["test"], unknown))
    fields: dict[str, float] = {}
    for name in ("unknown_auroc", "untrained_unknown_auroc"):
        summary = metrics.mean_where_defined(found[name])
        fields |= {name: summary.value, f"{name}_ci95": summary.ci95}
    return {
        **fields,
        "unknown_threshold": float(np.exp(threshold)),
        "known_accepted": float(np.mean(found["known"] >= threshold)),
        "unknown_rejected": float(np.mean(found["unknown"] < threshold)),
    }


def _largest_probability(outputs: Array, axis: int) -> Array:
    """Computes the logarithm of the largest probability."""
    return jnp.max(jax.nn.log_softmax(outputs, axis=axis), axis=axis)


def _confidences(
    learner: Learner,
    scoring: Scoring,
    meta: Any,
    key: Key,
    task: Episode,
    others: Tree,
    of: Callable[..., Array] = _largest_probability,
) -> tuple[Array, Array | None]:
    """Adapts to a task, and computes the confidence of its queries and of other rows."""
    fast = adapt_to_task(learner, meta, key, task)

    def confidence(inputs: Tree) -> Array:
        return of(scoring.predict(learner, meta, fast, inputs), axis=1)

    return confidence(task.query.inputs), None if others is None else confidence(others)


def _area(known: Array, unknown: Array) -> Array:
    """Computes the share of pairs of a query and another row whose query is the more confident one."""
    labels = jnp.concatenate([jnp.ones(len(known), jnp.int32), jnp.zeros(len(unknown), jnp.int32)])
    return metrics.auroc()(jnp.concatenate([known, unknown]), Batch(None, labels))
