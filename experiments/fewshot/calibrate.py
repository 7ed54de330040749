"""Calibration of a trained learner as its bundle answers: a temperature, and a threshold for "unknown"."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from metajax import deploy
from metajax.data.streamed import StreamedImages
from metajax.deploy.calibration import softmax
from metajax.episodes.group_sampler import GroupSampler
from metajax.errors import DataError
from metajax.train import draw_tasks, map_by_task
from metajax.types import Array, Episode, Key, Learner

from ..setup import streams
from ..setup.experiment import evaluation_key
from .options import FewshotPlan

# Per class and episode: more episodes tell more than more queries. With norms of the batch each query takes a
# batch of its own with the support set.
QUERIES, QUERIES_OF_BATCH_NORM = 5, 1
_AT_ONCE = 8  # episodes that are drawn together


class Calibration(NamedTuple):
    """What validation and test episodes tell of the answers of a bundle.

    Attributes:
      temperature: Divisor of the logits, fitted on validation episodes.
      threshold: Probability below which an answer is "unknown"; None answers always.
      facts: Numbers for result.json, by name.
      reliability: Bins of test queries by their confidence, `before` and `after` the temperature, as
        `metajax.deploy.reliability` returns them.
    """

    temperature: float = 1.0
    threshold: float | None = None
    facts: Mapping[str, float] = MappingProxyType({})
    reliability: Mapping[str, Mapping[str, list[float]]] = MappingProxyType({})


class Tasks(NamedTuple):
    """Tasks of validation and test.

    Attributes:
      samplers: Sampler of plain episodes by split.
      stores: Data by split.
      streamed: Images on disk by split, for splits that are not in memory.
    """

    samplers: Mapping[str, GroupSampler]
    stores: Mapping[str, Any]
    streamed: Mapping[str, StreamedImages] = MappingProxyType({})


class _Answers(NamedTuple):
    """Answers to the queries of all episodes.

    Attributes:
      logits: Logits [M, N], all finite.
      labels: Classes [M]; N and above are classes that were not learned.
    """

    logits: np.ndarray
    labels: np.ndarray


def check_unknown(plan: FewshotPlan, tasks: Tasks) -> None:
    """Raises DataError if there are not as many classes as learned and unknown ones together.

    Args:
      plan: The run.
      tasks: Tasks of validation and test.

    Raises:
      DataError: If a split has too few classes.
    """
    if not plan.episodes.unknown_ways:
        return
    for split in ("valid", "test"):
        try:
            _wider(plan, tasks.samplers[split]).check(tasks.stores[split], name=f"the {split} data")
        except DataError as error:
            raise DataError(
                f"--unknown_ways={plan.episodes.unknown_ways} and --ways={plan.episodes.ways}: {error}"
            ) from error


def calibrate(
    plan: FewshotPlan, tasks: Tasks, learner: Learner, meta: Any, *, threshold: bool
) -> Calibration:
    """Fits the temperature on validation episodes, and measures it on test episodes.

    With `--unknown_ways`, each episode has so many classes more, of which the learner sees queries alone. The
    threshold is the probability that 95% of the validation's queries of learned classes reach.

    Args:
      plan: The run.
      tasks: Tasks of validation and test.
      learner: Learner as the bundle uses it, which answers each query alone.
      meta: Meta-parameters.
      threshold: Whether to choose a threshold even without `--unknown_ways`.

    Returns:
      The calibration.
    """
    episodes, common = plan.episodes, plan.common
    answer = _answering(learner, episodes.ways * episodes.shots)
    most = {"valid": common.training.valid_episodes, "test": common.test.eval_episodes}
    number = {split: min(episodes.calibration_episodes, each) for split, each in most.items()}
    found = {split: _answers(plan, tasks, split, answer, meta, number[split]) for split in number}
    known = {split: _of_learned(each, episodes.ways) for split, each in found.items()}
    temperature = deploy.fit_temperature(*known["valid"])
    facts: dict[str, float] = {f"{split}_episodes": each for split, each in number.items()}
    facts["temperature"], bins = temperature, {}
    for name, divisor in (("before", 1.0), ("after", temperature)):
        scores = deploy.calibration_scores(*known["test"], temperature=divisor)
        facts |= {f"{score}_{name}": value for score, value in scores.items()}
        bins[name] = deploy.reliability(*known["test"], temperature=divisor)
    if not (threshold or episodes.unknown_ways):
        return Calibration(temperature, None, facts, bins)
    sure = {split: softmax(each.logits, temperature).max(1) for split, each in found.items()}
    learned = {split: each.labels < episodes.ways for split, each in found.items()}
    limit = float(deploy.known_threshold(sure["valid"][learned["valid"]]))
    facts["known_accepted"] = float(np.mean(sure["test"][learned["test"]] >= limit))
    if episodes.unknown_ways:
        inside, outside = (sure["test"][mask] for mask in (learned["test"], ~learned["test"]))
        facts |= {
            "unknown_rejected": float(np.mean(outside < limit)),
            "unknown_auroc": deploy.separation(inside, outside),
            "unknown_fpr95": float(np.mean(outside >= deploy.known_threshold(inside))),
        }
    return Calibration(temperature, limit, {**facts, "unknown_threshold": limit}, bins)


def _wider(plan: FewshotPlan, sampler: GroupSampler) -> GroupSampler:
    """Makes the sampler of episodes with unknown classes, which are the last ones."""
    episodes = plan.episodes
    most = QUERIES_OF_BATCH_NORM if plan.network.norm_policy == "batch" else QUERIES
    queries = min(episodes.test_queries, most)
    return dataclasses.replace(sampler, ways=episodes.ways + episodes.unknown_ways, queries=queries)


def _answering(learner: Learner, examples: int) -> Callable[[Any, Key, Episode], Array]:
    """Compiles the function (meta, keys [T], episodes [T]) -> logits [T, Q, N].

    Args:
      learner: Learner.
      examples: Number of support examples of the classes that are learned, which come first.
    """

    def one(meta: Any, key: Key, episode: Episode) -> Array:
        support = jax.tree.map(lambda leaf: leaf[:examples], episode.support)
        fast = learner.adapt(meta, learner.start(meta, key, support), key, support)
        return learner.predict(meta, fast, episode.query.inputs)

    @jax.jit
    def answer(meta: Any, keys: Key, episodes: Episode) -> Array:
        return jax.lax.map(lambda drawn: one(meta, *drawn), (keys, episodes))

    return answer


def _answers(
    plan: FewshotPlan,
    tasks: Tasks,
    split: str,
    answer: Callable[[Any, Key, Episode], Array],
    meta: Any,
    number: int,
) -> _Answers:
    """Answers the queries of the first episodes of a split."""
    key = evaluation_key(plan.common.test.eval_seed, split)
    sampler, images = _wider(plan, tasks.samplers[split]), tasks.streamed.get(split)
    data = streams.first_data(sampler, tasks.stores[split], images, key, number)
    sample, by_task = streams.drawing(sampler, images)
    draw = jax.jit(functools.partial(draw_tasks, sample, by_task=by_task))
    logits, labels = [], []
    for begin in range(0, number, _AT_ONCE):
        # The last episodes repeat one, for one shape.
        numbers = np.minimum(np.arange(begin, begin + _AT_ONCE), number - 1)
        mine = map_by_task(lambda leaf, places=numbers: leaf[places], by_task, data)
        keys, episodes = draw(mine, key, 0, numbers)
        kept = min(_AT_ONCE, number - begin)
        logits += list(np.asarray(answer(meta, keys, episodes))[:kept])
        labels += list(np.asarray(episodes.query.targets)[:kept])
    answers = _Answers(np.concatenate(logits), np.concatenate(labels))
    finite = np.isfinite(answers.logits).all(1)
    return _Answers(answers.logits[finite], answers.labels[finite])


def _of_learned(answers: _Answers, ways: int) -> tuple[np.ndarray, np.ndarray]:
    """Selects the queries whose classes were learned."""
    learned = answers.labels < ways
    return answers.logits[learned], answers.labels[learned]
