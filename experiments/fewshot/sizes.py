"""Checks that the classes suffice for the episodes, and flags that would fit if they do not."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from metajax.data import sources
from metajax.episodes.batches import BatchSampler
from metajax.episodes.store import EpisodeSampler
from metajax.episodes.views import NUM_ROTATIONS
from metajax.errors import DataError

from ..runtime.workdir import free_in_test
from .options import IMAGES, FewshotSettings

Samplers = Mapping[str, EpisodeSampler | BatchSampler]  # by split
Counts = Mapping[str, np.ndarray]  # images of each class [classes], by split


class Room(NamedTuple):
    """Largest episodes of a split.

    Attributes:
      ways: Most classes; each rotation of a class counts as a class.
      images: Most images of each class, shots and queries together.
    """

    ways: int
    images: int


def room(counts: np.ndarray, *, rotations: bool = False) -> Room:
    """Sizes episodes by the images of each class [classes]."""
    turns = NUM_ROTATIONS if rotations else 1
    return Room(len(counts) * turns, int(min(counts, default=0)))


def check_sizes(settings: FewshotSettings, samplers: Samplers, images: sources.Splits) -> None:
    """Raises DataError where episodes do not fit, with every reason and the flags that would fit."""
    counts = {name: getattr(images, name).counts for name in samplers}
    found = [*_too_few_classes(samplers, counts), *_too_few_images(samplers, counts)]
    if not found:
        return
    remedies = [_as_flags(flags) for flags in _remedies(settings, samplers, counts, images.sizes)]
    remedy = f"use {', or '.join(remedies)}" if remedies else _demand(settings)
    raise DataError(f"{'; '.join(found)}: {remedy}.")


def fitting_flags(settings: FewshotSettings, counts: Counts) -> dict[str, int] | None:
    """Finds the flags to change so that episodes fit, as close to those asked for as can be.

    Args:
      settings: Settings of the run.
      counts: Images of each class [classes], of train, valid and test.

    Returns:
      New values by flag, {} if all fit as they are; None if no values do.
    """
    turned = {split: _rotations(settings, split) for split in counts}
    rooms = {split: room(counts[split], rotations=turned[split]) for split in counts}
    test = Room(*map(min, zip(rooms["valid"], rooms["test"], strict=True)))
    train = None if settings.supervised else rooms["train"]
    flags = {**_ways(settings, test, train), **_images(settings, test, train)}
    before = {name: getattr(settings, name) for name in flags}
    if settings.supervised:
        before["images"] = settings.images or IMAGES
        flags["images"] = min(before["images"], int(sum(counts["train"])))
    if any(value < _least(settings, name) for name, value in flags.items()):
        return None
    changed = {name: value for name, value in flags.items() if value != before[name]}
    return changed if all(_may_change(settings, name) for name in changed) else None


def preferred_sizes(settings: FewshotSettings, images: sources.Splits) -> FewshotSettings:
    """Fills in the sizes of training tasks that the learner prefers, where the training classes allow them.

    Args:
      settings: Settings of the run; sizes that are given stay.
      images: Images by split.

    Returns:
      Settings with `train_ways` and `train_shots` of the learner's entry, or as they were.
    """
    preferred = settings.entry.defaults.get("classes", {})
    if settings.protocol == "sequence" or settings.after_training:  # which has the training's
        return settings
    largest = room(images.train.counts, rotations=_rotations(settings, "train"))
    limits = {"train_ways": largest.ways, "train_shots": largest.images - settings.queries}
    least = {"train_ways": settings.ways, "train_shots": settings.shots}
    found = {
        name: max(preferred[name], least[name])
        for name, limit in limits.items()
        if getattr(settings, name) is None and preferred.get(name, limit + 1) <= limit
    }
    return dataclasses.replace(settings, **found)


def _may_change(settings: FewshotSettings, name: str) -> bool:
    """Returns whether a flag may change: a trained run keeps the values it was trained with."""
    if not settings.after_training:
        return True
    if name == "min_images" and not settings.test_dataset:
        return False  # other training images would be left
    return name in free_in_test(settings, {})


def _too_few_classes(samplers: Samplers, counts: Counts) -> Iterator[str]:
    """Names the splits with fewer classes than ways, in a line for each number of ways."""
    short: dict[int, list[str]] = {}
    for split, sampler in samplers.items():
        if isinstance(sampler, EpisodeSampler):
            most = room(counts[split], rotations=sampler.rotations).ways
            if sampler.ways > most:
                short.setdefault(sampler.ways, []).append(f"{split} ({most})")
    for ways, splits in short.items():
        yield f"{ways} ways are more than the classes of {_joined(splits)}"


def _too_few_images(samplers: Samplers, counts: Counts) -> Iterator[str]:
    """Names the splits whose classes have too few images, in a line for each number of shots and queries."""
    short: dict[tuple[int, int], list[str]] = {}
    for split, sampler in samplers.items():
        if isinstance(sampler, BatchSampler):
            if sampler.images > (present := int(sum(counts[split]))):
                yield f"a batch of {sampler.images} images is more than the {present} of {split}"
        elif any(counts[split] < sampler.shots + sampler.queries):
            short.setdefault((sampler.shots, sampler.queries), []).append(split)
    for (shots, queries), splits in short.items():
        sizes = np.concatenate([counts[split] for split in splits])
        few = np.count_nonzero(sizes < shots + queries)
        yield (
            f"{shots} shots and {queries} queries need {shots + queries} images per class, but {few} of the"
            f" {len(sizes)} classes of {_joined(splits)} have fewer, the smallest {min(sizes)}"
        )


def _remedies(
    settings: FewshotSettings,
    samplers: Samplers,
    counts: Counts,
    sizes: Callable[[int], Counts] | None,
) -> Iterator[dict[str, int]]:
    """Yields combinations of flags that each fit: first the one that keeps the episodes."""
    sizes = sizes if _may_change(settings, "min_images") else None
    needed = max(s.shots + s.queries for s in samplers.values() if isinstance(s, EpisodeSampler))
    present = np.unique(np.concatenate(list(counts.values()))) if sizes else ()
    if sizes and needed > settings.min_images and _fitting_without(settings, sizes, needed) == {}:
        yield {"min_images": needed}
    # Kept with larger classes alone, if flags for all classes lower them.
    kept = {"shots", "train_shots"}
    if flags := fitting_flags(settings, counts):
        yield flags
        if not kept & flags.keys():
            return
    for least in (int(count) for count in present if count > settings.min_images):
        larger = _fitting_without(settings, sizes, least)
        if larger and not (flags and kept & larger.keys()):
            yield {"min_images": least, **larger}
            return


def _fitting_without(
    settings: FewshotSettings, sizes: Callable[[int], Counts], least: int
) -> dict[str, int] | None:
    """Finds `fitting_flags` without the classes of fewer images."""
    with contextlib.suppress(DataError):  # no class is left
        return fitting_flags(settings, sizes(least))
    return None


def _demand(settings: FewshotSettings) -> str:
    """Describes the data that would be needed where no flags help."""
    least = 3 if settings.protocol == "sequence" else 2
    if settings.after_training:
        fixed = [name for name in ("ways", "shots") if not _may_change(settings, name)]
        turns = NUM_ROTATIONS if settings.rotations == "all" else 1
        ways = settings.ways if "ways" in fixed else 2
        images = settings.shots + 1 if "shots" in fixed else least
        keeps = " and ".join(f"--{name}" for name in fixed)
        reason = f"a trained run keeps its {keeps}, so " if fixed else ""
        return (
            f"{reason}a test needs {-(-ways // turns)} classes or more, of {images} images or more"
        )
    return (
        f"training, validation and test each need {settings.min_classes} classes or more, of {least} images"
        " or more; add images, or divide the classes in another way (--split, --split_file)"
    )


def _rotations(settings: FewshotSettings, split: str) -> bool:
    return settings.rotations == "all" or (split == "train" and settings.rotations == "train")


def _least(settings: FewshotSettings, name: str) -> int:
    """Returns the smallest value of a flag that makes sense."""
    sequence = name == "shots" and settings.protocol == "sequence"
    return 2 if sequence or name in ("ways", "train_ways") else 1


def _ways(settings: FewshotSettings, test: Room, train: Room | None) -> dict[str, int]:
    """Returns the most classes that fit, up to the given ones, by flag."""
    # A learner whose head has a number of classes has the same in training and test.
    together = settings.train_ways is None or not settings.entry.ways_agnostic
    most = min(test.ways, train.ways) if train is not None and together else test.ways
    flags = {"ways": min(settings.ways, most)}
    if settings.train_ways is not None:
        most = flags["ways"] if together else train.ways
        flags["train_ways"] = min(settings.train_ways, most)
    if settings.min_ways is not None:
        flags["min_ways"] = min(settings.min_ways, flags.get("train_ways", flags["ways"]))
    return flags


def _images(settings: FewshotSettings, test: Room, train: Room | None) -> dict[str, int]:
    """Returns the most shots and queries that fit, up to the given ones, by flag."""
    together = train is not None and settings.train_shots is None
    most = min(test.images, train.images) if together else test.images
    sequence = settings.protocol == "sequence"  # one query, whatever the flags
    flags = {"shots": min(settings.shots, most - 1) if sequence else _shots(settings.shots, most)}
    if not sequence:
        flags["test_queries"] = min(settings.test_queries, test.images - flags["shots"])
    if train is None:
        return flags
    shots = flags["shots"]
    if settings.train_shots is not None:
        shots = flags["train_shots"] = _shots(settings.train_shots, train.images)
    if settings.min_shots is not None:
        flags["min_shots"] = min(settings.min_shots, shots)
    if not sequence:
        flags["queries"] = min(settings.queries, train.images - shots)
    return flags


def _shots(asked: int, images: int) -> int:
    """Returns the given shots, or half of the images where the given ones leave no query."""
    return asked if asked < images else images // 2


def _as_flags(flags: Mapping[str, int]) -> str:
    return " ".join(f"--{name}={value}" for name, value in flags.items())


def _joined(words: list[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last
