"""Learns to classify images of classes it has never seen, from a few examples each.

Trains a meta-learner on N-way K-shot episodes, picks the checkpoint by validation, and tests on episodes of
unseen classes. With no flags: second-order MAML, 5-way 1-shot, on glyphs, letters of the world's scripts that
are drawn on this machine; the test scripts are never seen in training.

  python -m experiments.fewshot
  python -m experiments.fewshot --dataset=omniglot --data_dir=~/tensorflow_datasets
  python -m experiments.fewshot --dataset=omniglot --test_dataset=glyphs --data_dir=~/tensorflow_datasets
  python -m experiments.fewshot --dataset=folder --data_dir=pictures --shots=5
  python -m experiments.fewshot --flagfile=experiments/recipes/omniglot_5way_1shot_maml.flags
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import conduct
from experiments.fewshot import networks
from experiments.fewshot.checks import check_data, check_queries
from experiments.fewshot.objectives import make_attack, objectives_of
from experiments.fewshot.options import IMAGES, FewshotSettings, norm_policy
from experiments.fewshot.sizes import check_sizes
from experiments.flags.learner import inner_adjoint
from experiments.flags.settings import UsageError, nearest
from experiments.flags.training import check_together
from experiments.reports import image_notes, pictures
from experiments.runtime.launch import launch
from experiments.runtime.progress import Score
from experiments.setup import images as data_options
from experiments.setup import streams
from experiments.setup.experiment import Experiment, evaluation_key
from experiments.setup.images import load_images, on_disk, tested_elsewhere, tested_images
from metajax.data import sources
from metajax.data.streamed import StreamedImages
from metajax.episodes import augment, changes, store
from metajax.episodes.batches import BatchSampler
from metajax.episodes.rows import Rows
from metajax.learners.wrappers.ensembles import mean_probabilities
from metajax.losses import accuracy, cross_entropy
from metajax.metrics import calibration_error
from metajax.objectives.query import query_outputs
from metajax.objectives.scoring import Scoring
from metajax.train import draw_tasks
from metajax.types import Learner

PICTURED_TASKS = 4


def start(settings: FewshotSettings) -> int:
    """Runs the experiment; returns the exit status."""
    return conduct.conduct(build, settings)


def build(settings: FewshotSettings) -> Experiment:
    """Checks the settings and reads the images."""
    check_together(settings)
    check_data(settings)
    check_queries(settings)
    return make_experiment(settings, make_samplers(settings), load_images(settings))


def make_samplers(settings: FewshotSettings) -> dict[str, Any]:
    """Makes what draws the episodes of each split; UsageError for sizes that do not fit together."""
    train_shots = settings.train_shots or settings.shots
    train_ways = settings.train_ways or settings.ways
    for least, most, high in (
        ("min_ways", "train_ways" if settings.train_ways else "ways", train_ways),
        ("min_shots", "train_shots" if settings.train_shots else "shots", train_shots),
    ):
        low = getattr(settings, least)
        if low is not None and low > high:
            raise UsageError(f"--{least}={low} is more than --{most}={high}.")
    names = [name.strip() for name in settings.augment.split(",") if name.strip()]
    for name in names:
        if name not in augment.AUGMENTATIONS:
            raise UsageError(
                f"--augment={name} is unknown; {nearest(name, list(augment.AUGMENTATIONS))}"
            )
    test = store.EpisodeSampler(
        ways=settings.ways,
        shots=settings.shots,
        queries=1 if settings.protocol == "sequence" else settings.test_queries,
        rotations=settings.rotations == "all",
    )
    if settings.supervised:
        train = BatchSampler(
            images=settings.images or IMAGES,
            rotations=settings.rotations != "none",
            augment=augment.compose(names),
        )
        return {"train": train, "valid": test, "test": test}
    train = store.EpisodeSampler(
        ways=train_ways,
        shots=train_shots,
        queries=1 if settings.protocol == "sequence" else settings.queries,
        rotations=settings.rotations != "none",
        min_ways=settings.min_ways,
        min_shots=settings.min_shots,
        augment=augment.compose(names),
        changes=_changes(settings),
    )
    return {"train": train, "valid": test, "test": test}


def _changes(settings: FewshotSettings) -> tuple[changes.TaskFn, ...]:
    chosen = [changes.mix_classes] if settings.mix_classes else []
    chosen += [changes.project] if settings.project else []
    if settings.label_noise:
        chosen.append(functools.partial(changes.label_noise, rate=settings.label_noise))
    return tuple(chosen)


def make_experiment(
    settings: FewshotSettings, samplers: dict[str, Any], images: sources.Splits
) -> Experiment:
    """Puts data, model and learner together; raises before anything is compiled."""
    splits = {"train": images.train, "valid": images.valid, "test": images.test}
    check_sizes(settings, samplers, images)
    for split, sampler in samplers.items():
        store.check_turns(splits[split], sampler.rotations)
    shape = images.train.shape
    inputs = np.zeros((settings.ways * settings.shots, *shape), np.float32)
    networks.check(settings, inputs)
    streamed = on_disk(splits)
    described = image_notes.describe(images)
    statistics = store.pixel_statistics(images.train)
    data = {name: store.class_store(split, statistics=statistics) for name, split in splits.items()}
    parts = {"test_ways": settings.ways}
    train, tested = samplers["train"], settings.ways * settings.shots
    if settings.supervised:
        parts |= {"ways": settings.ways, "examples": tested}
        parts |= {"classes": train.num_classes(data["train"])}
    else:
        parts |= {"ways": train.ways, "examples": max(train.ways * train.shots, tested)}
    learner = networks.learner_maker_with_noise(settings, **parts)
    scoring = Scoring(settings.entry.loss or cross_entropy, {"accuracy": accuracy})
    scored, trained = objectives_of(settings, scoring, make_attack(settings, statistics))
    if settings.protocol == "sequence" and (
        found := networks.reader_of_features(settings, **parts)
    ):
        reader, encode = found
        sequence, trained = trained, lambda _: sequence(reader, encode=encode)
    if settings.supervised:
        classify = networks.classification(settings, scoring.metrics)
        trained = lambda learner: classify  # noqa: E731  (whatever makes a task's head)
    # Answers to a loss of its own are no logits.
    calibration = {} if settings.entry.loss else {"calibration_error": calibration_error()}
    test_learner = learner(settings.steps_at_test, inner_adjoint(settings), testing=True)
    return Experiment(
        name=f"{settings.dataset}-{settings.learner}-{settings.ways}way-{settings.shots}shot",
        make_learner=learner,
        inputs=inputs,
        scoring=dataclasses.replace(scoring, metrics={**scoring.metrics, **calibration}),
        score=Score("accuracy", higher_is_better=True),
        samplers=samplers,
        data=data,
        fingerprint=".".join(split.fingerprint() for split in splits.values()),
        transductive=bool(settings.refine)
        or (
            norm_policy(settings) == "batch"
            and settings.protocol == "episodes"
            and not settings.beside_support
        ),
        combine=mean_probabilities,
        plan=_plan(settings, images, described.rows, parts.get("classes")),
        facts={
            "dataset": settings.dataset,
            **tested_elsewhere(settings),
            "split": images.description,
            **described.facts,
            "learner": settings.learner,
            "ways": settings.ways,
            "shots": settings.shots,
            "queries": samplers["test"].queries,
        },
        pictures=functools.partial(
            _pictures, settings, test_learner, samplers["test"], data["test"], streamed.get("test")
        ),
        trained=trained,
        scored=scored,
        streamed=streamed,
        workers=settings.read_workers,
        record=data_options.record(settings, images),
    )


def _plan(
    settings: FewshotSettings,
    images: sources.Splits,
    described: list[tuple[str, str]],
    classes: int | None,
) -> list[tuple[str, str]]:
    height, width, channels = images.train.shape
    training = f"{settings.queries} queries a class"
    if classes:
        training = (
            f"trained on batches of {settings.images or IMAGES} images of all {classes:,} classes"
        )
    episodes = f"{settings.ways}-way {settings.shots}-shot, {training}"
    if settings.protocol == "sequence":
        episodes = (
            f"{settings.ways} classes, each {settings.shots} times, one example after another"
        )
    return [
        ("data", images.description),
        (
            "images",
            f"{height} x {width} x {channels}; {settings.rotations} rotated{_held(settings, images)}",
        ),
        *described,
        ("episodes", episodes),
        ("learner", settings.learner),
        ("model", _model_in_words(settings)),
        *_adversary(settings),
    ]


def _held(settings: FewshotSettings, images: sources.Splits) -> str:
    if not isinstance(images.train, StreamedImages):
        return ""
    ahead = f", read ahead by {settings.read_workers} processes" if settings.mode == "train" else ""
    return f"; on disk{ahead}"


def _model_in_words(settings: FewshotSettings) -> str:
    dropped = f", DropBlock of {settings.drop_rate:g}" if settings.drop_rate else ""
    return f"{settings.model}, {norm_policy(settings)} norm{dropped}"


def _adversary(settings: FewshotSettings) -> list[tuple[str, str]]:
    if settings.attack == "none":
        return []
    trained = {"both": "support and query sets", "none": "nothing"}
    on = trained.get(settings.attack_on, f"{settings.attack_on} sets")
    return [
        (
            "adversary",
            f"{settings.attack}, pixels by up to {settings.attack_epsilon:.3g}; on {on} in training, on "
            "queries in test",
        )
    ]


def _pictures(
    settings: FewshotSettings,
    learner: Learner,
    sampler: store.EpisodeSampler,
    data: Rows,
    images: StreamedImages | None,
    meta: Any,
    workdir: Path,
) -> dict[str, Any]:
    """Draws the first test tasks with the model's answers."""

    def answer(key, episode):
        return query_outputs(learner, meta, key, episode).argmax(-1)

    key = evaluation_key(settings, "test")
    first = streams.first_data(sampler, data, images, key, PICTURED_TASKS)
    sample, by_task = streams.drawing(sampler, images)
    keys, episodes = draw_tasks(sample, first, key, 0, np.arange(PICTURED_TASKS), by_task=by_task)
    answers = jax.jit(lambda *drawn: jax.lax.map(lambda task: answer(*task), drawn))(keys, episodes)
    mean, scale = data.constants
    pixels = [
        np.clip(np.asarray(batch.inputs * scale + mean), 0, 1)
        for batch in (episodes.support, episodes.query)
    ]
    pictures.episodes_picture(
        workdir / "episodes.png",
        support_images=pixels[0],
        support_labels=np.asarray(episodes.support.targets),
        query_images=pixels[1],
        query_labels=np.asarray(episodes.query.targets),
        predictions=np.asarray(answers),
        title=f"{tested_images(settings)}: unseen classes, {settings.ways}-way "
        f"{settings.shots}-shot",
    )
    return {}


def main() -> None:
    """Runs the driver on the command line's flags."""
    launch(FewshotSettings, __doc__, start, prepare=conduct.prepare_process)
