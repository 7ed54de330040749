"""Learns to classify images, texts or rows of a table of classes it has never seen, from a few examples each.

Trains a meta-learner on N-way K-shot episodes, picks the checkpoint by validation, and tests on episodes of
unseen classes. With no flags: second-order MAML, 5-way 1-shot, on glyphs, letters of the world's scripts that
are drawn on this machine; the test scripts are never seen in training.

  python -m experiments.fewshot
  python -m experiments.fewshot --dataset=omniglot --data_dir=~/tensorflow_datasets
  python -m experiments.fewshot --dataset=omniglot --test_dataset=glyphs --data_dir=~/tensorflow_datasets
  python -m experiments.fewshot --dataset=folder --data_dir=pictures --shots=5
  python -m experiments.fewshot --dataset=table --data_dir=tickets.csv --text=message --label=topic
  python -m experiments.fewshot --dataset=banking77 --data_dir=intents --learner=protonet --test_queries=5
  python -m experiments.fewshot --flagfile=experiments/recipes/omniglot_5way_1shot_maml.flags
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from metajax.data import sources
from metajax.data.streamed import StreamedImages
from metajax.episodes import augment, store
from metajax.episodes.batches import BatchSampler
from metajax.episodes.rows import Rows
from metajax.learners.wrappers.ensembles import mean_probabilities
from metajax.losses import accuracy, cross_entropy
from metajax.metrics import calibration_error
from metajax.objectives.query import query_outputs
from metajax.objectives.scoring import Scoring
from metajax.train import draw_tasks
from metajax.types import Learner
from metajax.zoo.options import nearest

from .. import conduct
from ..flags.settings import UsageError
from ..flags.training import check_together
from ..reports import image_notes, pictures
from ..runtime.launch import launch
from ..runtime.observers import Observer
from ..runtime.progress import Score
from ..setup import images as setup_images
from ..setup import streams
from ..setup.experiment import Experiment, evaluation_key
from ..setup.images import on_disk, read_images
from ..setup.learners import inner_adjoint
from . import networks, rows
from .bundles import bundle_maker, image_form
from .calibrate import Tasks
from .checks import check_fewshot
from .episodes import (
    in_words,
    is_transductive,
    learner_sizes,
    task_changes,
    training_sizes,
)
from .objectives import make_attack, objectives_of
from .options import IMAGES, FewshotPlan, FewshotSettings, resolve_fewshot
from .sizes import check_sizes, preferred_sizes

PICTURED_TASKS = 4


def start(settings: FewshotSettings, *, observers: Sequence[Observer] = ()) -> int:
    """Runs the experiment, with observers of its training; returns the exit status."""
    return conduct.conduct(build, settings, observers=observers)


def build(settings: FewshotSettings) -> Experiment:
    """Checks the settings and reads the images, or the table.

    Raises:
      DataError: If images or rows are missing or broken, or too few.
      UsageError: If options do not go together.
    """
    if settings.of_rows:
        return rows.build(settings)
    networks.check_reads_images(settings.model)
    check_together(settings)
    check_fewshot(settings)
    plan = resolve_fewshot(settings)
    make_samplers(plan)  # before images are read, which may take minutes
    images = read_images(settings)
    settings = preferred_sizes(settings, images)
    plan = plan._replace(episodes=resolve_fewshot(settings).episodes)
    samplers = make_samplers(plan)
    check_sizes(settings, samplers, images)
    settled = {name: getattr(settings, name) for name in ("train_ways", "train_shots")}
    return make_experiment(plan, samplers, images)._replace(settled=settled)


def make_samplers(plan: FewshotPlan) -> dict[str, Any]:
    """Makes the samplers of the episodes of each split.

    Raises:
      UsageError: If sizes do not fit together.
    """
    episodes = plan.episodes
    train_ways, train_shots = training_sizes(episodes)
    names = [name.strip() for name in episodes.augment.split(",") if name.strip()]
    for name in names:
        if name not in augment.AUGMENTATIONS:
            raise UsageError(
                f"--augment={name} is unknown; {nearest(name, list(augment.AUGMENTATIONS))}"
            )
    test = store.EpisodeSampler(
        ways=episodes.ways,
        shots=episodes.shots,
        queries=1 if episodes.protocol == "sequence" else episodes.test_queries,
        rotations=episodes.rotations == "all",
    )
    if plan.supervised:
        train = BatchSampler(
            images=episodes.images or IMAGES,
            rotations=episodes.rotations != "none",
            augment=augment.compose(names),
        )
        return {"train": train, "valid": test, "test": test}
    train = store.EpisodeSampler(
        ways=train_ways,
        shots=train_shots,
        queries=1 if episodes.protocol == "sequence" else episodes.queries,
        rotations=episodes.rotations != "none",
        min_ways=episodes.min_ways,
        min_shots=episodes.min_shots,
        augment=augment.compose(names),
        changes=task_changes(plan),
    )
    return {"train": train, "valid": test, "test": test}


def make_experiment(
    plan: FewshotPlan, samplers: dict[str, Any], images: sources.Splits
) -> Experiment:
    """Puts data, model and learner together; raises before anything is compiled.

    Args:
      plan: The run.
      samplers: Sampler by split.
      images: Images by split.

    Returns:
      The experiment.
    """
    episodes, inner, data_options = plan.episodes, plan.common.inner, plan.data
    splits = {"train": images.train, "valid": images.valid, "test": images.test}
    for split, sampler in samplers.items():
        store.check_turns(splits[split], sampler.rotations)
    shape = images.train.shape
    inputs = np.zeros((episodes.ways * episodes.shots, *shape), np.float32)
    networks.check(plan, inputs)
    streamed = on_disk(splits)
    described = image_notes.describe(images)
    statistics = store.pixel_statistics(images.train)
    data = {name: store.class_store(split, statistics=statistics) for name, split in splits.items()}
    parts = learner_sizes(plan, samplers["train"], data["train"])
    learner = networks.learner_maker_with_noise(plan, **parts)
    loss = inner.entry.loss
    scoring = Scoring(loss or cross_entropy, {"accuracy": accuracy})
    scored, trained = objectives_of(plan, scoring, make_attack(plan.adversary, statistics))
    if episodes.protocol == "sequence" and (found := networks.reader_of_features(plan, **parts)):
        reader, encode = found
        sequence, trained = trained, lambda _: sequence(reader, encode=encode)
    if plan.supervised:
        classify = networks.classification(plan, scoring.metrics)
        trained = lambda learner: classify  # noqa: E731  (whatever makes a task's head)
    # Outputs for a loss of the learner's own are no logits.
    calibration = {} if loss else {"calibration_error": calibration_error()}
    test_learner = learner(inner.test_steps, inner_adjoint(inner.adjoint), testing=True)
    return Experiment(
        name=f"{data_options.dataset}-{inner.learner}-{episodes.ways}way-{episodes.shots}shot",
        make_learner=learner,
        inputs=inputs,
        scoring=dataclasses.replace(scoring, metrics={**scoring.metrics, **calibration}),
        score=Score("accuracy", higher_is_better=True),
        samplers=samplers,
        data=data,
        fingerprint=".".join(split.fingerprint() for split in splits.values()),
        transductive=is_transductive(plan),
        combine=mean_probabilities,
        announcement=_announcement(plan, images, described.rows, parts.get("classes")),
        facts={
            "dataset": data_options.dataset,
            **setup_images.tested_elsewhere(data_options),
            "split": images.description,
            **described.facts,
            "learner": inner.learner,
            "ways": episodes.ways,
            "shots": episodes.shots,
            "queries": samplers["test"].queries,
        },
        pictures=functools.partial(
            _pictures, plan, test_learner, samplers["test"], data["test"], streamed.get("test")
        ),
        penalty=plan.penalty,
        trained=trained,
        scored=scored,
        streamed=streamed,
        workers=data_options.read_workers,
        record=setup_images.record(plan.common.command, images),
        bundle=bundle_maker(
            plan, image_form(images, statistics), parts, Tasks(samplers, data, streamed)
        ),
    )


def _announcement(
    plan: FewshotPlan,
    images: sources.Splits,
    described: list[tuple[str, str]],
    classes: int | None,
) -> list[tuple[str, str]]:
    """Describes the run, a row for each subject."""
    height, width, channels = images.train.shape
    return [
        ("data", images.description),
        (
            "images",
            f"{height} x {width} x {channels}; {plan.episodes.rotations} rotated{_held(plan, images)}",
        ),
        *described,
        ("episodes", in_words(plan, classes, "images")),
        ("learner", plan.common.inner.learner),
        ("model", _model_in_words(plan)),
        *_adversary(plan),
    ]


def _held(plan: FewshotPlan, images: sources.Splits) -> str:
    """Describes where images are kept that are not in memory."""
    if not isinstance(images.train, StreamedImages):
        return ""
    training = plan.common.command.mode == "train"
    ahead = f", read ahead by {plan.data.read_workers} processes" if training else ""
    return f"; on disk{ahead}"


def _model_in_words(plan: FewshotPlan) -> str:
    """Describes the network."""
    dropped = f", DropBlock of {plan.drop_rate:g}" if plan.drop_rate else ""
    return f"{plan.network.model}, {plan.network.norm_policy} norm{dropped}"


def _adversary(plan: FewshotPlan) -> list[tuple[str, str]]:
    """Describes adversarial images, if any."""
    adversary = plan.adversary
    if adversary.attack == "none":
        return []
    trained = {"both": "support and query sets", "none": "nothing"}
    on = trained.get(adversary.attack_on, f"{adversary.attack_on} sets")
    return [
        (
            "adversary",
            f"{adversary.attack}, pixels by up to {adversary.attack_epsilon:.3g}; on {on} in training, on "
            "queries in test",
        )
    ]


def _pictures(
    plan: FewshotPlan,
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

    key = evaluation_key(plan.common.test.eval_seed, "test")
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
        title=f"{setup_images.tested_images(plan.data)}: unseen classes, {plan.episodes.ways}-way "
        f"{plan.episodes.shots}-shot",
    )
    return {}


def main() -> None:
    """Runs the driver on the command line's flags."""
    launch(FewshotSettings, __doc__, start, prepare=conduct.prepare_process)
