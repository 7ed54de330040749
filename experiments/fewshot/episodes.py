"""What episodes of images and of rows of tables have in common: their sizes, changes and description."""

import functools

from metajax.episodes import changes
from metajax.episodes.batches import BatchSampler
from metajax.episodes.group_sampler import GroupSampler
from metajax.episodes.rows import Rows

from ..flags.settings import UsageError
from .options import IMAGES, EpisodeOptions, FewshotPlan


def training_sizes(episodes: EpisodeOptions) -> tuple[int, int]:
    """Finds the largest ways and shots of a training episode.

    Raises:
      UsageError: If the smallest ones are more.
    """
    ways = episodes.train_ways or episodes.ways
    shots = episodes.train_shots or episodes.shots
    for least, most, high in (
        ("min_ways", "train_ways" if episodes.train_ways else "ways", ways),
        ("min_shots", "train_shots" if episodes.train_shots else "shots", shots),
    ):
        low = getattr(episodes, least)
        if low is not None and low > high:
            raise UsageError(f"--{least}={low} is more than --{most}={high}.")
    return ways, shots


def task_changes(plan: FewshotPlan) -> tuple[changes.TaskFn, ...]:
    """Returns the changes of training tasks."""
    episodes = plan.episodes
    chosen = [changes.mix_classes] if episodes.mix_classes else []
    chosen += [changes.project] if episodes.project else []
    if episodes.label_noise:
        chosen.append(functools.partial(changes.label_noise, rate=episodes.label_noise))
    return tuple(chosen)


def learner_sizes(
    plan: FewshotPlan, train: BatchSampler | GroupSampler, data: Rows
) -> dict[str, int]:
    """Returns the sizes that learners are made for.

    Args:
      plan: The run.
      train: Sampler of the training.
      data: Store of the training.

    Returns:
      Fields of `Ingredients`: ways in training and test, examples, and for supervised training its classes.
    """
    episodes = plan.episodes
    tested = episodes.ways * episodes.shots
    sizes = {"test_ways": episodes.ways}
    if isinstance(train, BatchSampler):
        classes = train.num_classes(data)
        return {**sizes, "ways": episodes.ways, "examples": tested, "classes": classes}
    return {**sizes, "ways": train.ways, "examples": max(train.ways * train.shots, tested)}


def is_transductive(plan: FewshotPlan) -> bool:
    """Returns whether an answer of the test depends on other queries."""
    if plan.common.inner.own.get("refine"):
        return True
    episodes = plan.episodes
    together = episodes.protocol == "episodes" and not episodes.one_query_at_a_time
    return plan.network.norm_policy == "batch" and together


def in_words(plan: FewshotPlan, classes: int | None, examples: str) -> str:
    """Describes the episodes.

    Args:
      plan: The run.
      classes: Number of training classes, where training is to tell all of them apart; else None.
      examples: Name of the examples, such as "images".

    Returns:
      A phrase.
    """
    episodes = plan.episodes
    if episodes.protocol == "sequence":
        return f"{episodes.ways} classes, each {episodes.shots} times, one example after another"
    training = f"{episodes.queries} queries per class"
    if classes:
        batch = f"batches of {episodes.images or IMAGES} {examples}"
        training = f"trained on {batch} of all {classes:,} classes"
    elif (episodes.train_ways or episodes.train_shots) and not plan.supervised:
        ways, shots = episodes.train_ways or episodes.ways, episodes.train_shots or episodes.shots
        training += f"; {ways}-way {shots}-shot in training"
    return f"{episodes.ways}-way {episodes.shots}-shot, {training}"
