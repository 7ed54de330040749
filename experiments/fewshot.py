"""Learns to classify images of classes it has never seen, from a few examples each.

Trains a meta-learner on N-way K-shot episodes, picks the checkpoint by validation, and tests on episodes of
unseen classes. With no flags: second-order MAML, 5-way 1-shot, on glyphs, letters of the world's scripts that
are drawn on this machine; the test scripts are never seen in training.

  python -m experiments.fewshot
  python -m experiments.fewshot --dataset=omniglot --data_dir=~/tensorflow_datasets
  python -m experiments.fewshot --dataset=folder --data_dir=pictures --shots=5
  python -m experiments.fewshot --flagfile=experiments/recipes/omniglot_5way_1shot_maml.flags
"""

import functools
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import loop, pictures, run
from experiments.experiment import Experiment, evaluation_key
from experiments.fewshot_options import FewshotSettings, check_data, check_queries, norm_policy
from experiments.learner_options import inner_adjoint, learner_maker
from experiments.options import check_together
from experiments.settings import UsageError, launch, nearest
from metajax.episodes import augment, sources, store
from metajax.learners.ensemble import mean_probabilities
from metajax.losses import accuracy, cross_entropy
from metajax.models import in_precision
from metajax.models import registry as models
from metajax.objectives import query_outputs
from metajax.train import draw_tasks
from metajax.types import Learner

PICTURED_TASKS = 4


def start(settings: FewshotSettings) -> int:
    """Runs the experiment; returns the exit status."""
    check_together(settings)
    check_data(settings)
    check_queries(settings)
    samplers = make_samplers(settings)
    experiment = make_experiment(settings, samplers, load_images(settings))
    name = f"{settings.dataset}-{settings.learner}-{settings.ways}way-{settings.shots}shot"
    name = re.sub(r"[^\w.-]+", "_", name)
    return run.conduct(experiment, settings, name)


def make_samplers(settings: FewshotSettings) -> dict[str, store.EpisodeSampler]:
    """Makes what draws the episodes of each split; UsageError for sizes that do not fit together."""
    train_shots = settings.train_shots or settings.shots
    for least, most, high in (
        ("min_ways", "ways", settings.ways),
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
        queries=settings.test_queries,
        rotations=settings.rotations == "all",
    )
    train = store.EpisodeSampler(
        ways=settings.ways,
        shots=train_shots,
        queries=settings.queries,
        rotations=settings.rotations != "none",
        min_ways=settings.min_ways,
        min_shots=settings.min_shots,
        augment=augment.compose(names),
    )
    return {"train": train, "valid": test, "test": test}


def load_images(settings: FewshotSettings) -> sources.Splits:
    """Loads and splits the images; DataError where they are missing or broken."""
    return sources.load(
        settings.dataset,
        data_dir=str(Path(settings.data_dir).expanduser()) if settings.data_dir else None,
        split=settings.split or None,
        split_file=settings.split_file or None,
        split_seed=settings.split_seed,
        image_size=settings.image_size or None,
    )


def make_experiment(
    settings: FewshotSettings, samplers: dict[str, store.EpisodeSampler], images: sources.Splits
) -> Experiment:
    """Puts data, model and learner together; raises before anything is compiled."""
    splits = {"train": images.train, "valid": images.valid, "test": images.test}
    for split, sampler in samplers.items():
        store.check_episodes(
            splits[split],
            ways=sampler.ways,
            shots=sampler.shots,
            queries=sampler.queries,
            rotations=sampler.rotations,
            name=split,
        )
    shape = images.train.images.shape[1:]
    inputs = np.zeros((settings.ways * settings.shots, *shape), np.float32)
    try:
        model, encoder = (
            models.build(
                settings.model,
                outputs=outputs,
                filters=settings.filters,
                norm=settings.norm,
                kernels=settings.kernels,
            )
            for outputs in (settings.ways, None)
        )
        jax.eval_shape(model.init, jax.random.key(0), inputs)
    except ValueError as error:
        raise UsageError(f"--model={settings.model} does not fit: {error}") from error
    model, encoder = (in_precision(net, jnp.dtype(settings.precision)) for net in (model, encoder))

    learner = learner_maker(
        settings, cross_entropy, model=model, encoder=encoder, ways=settings.ways
    )

    test_learner = learner(settings.steps_at_test, inner_adjoint(settings), testing=True)
    statistics = store.pixel_statistics(images.train)
    data = {name: store.class_store(split, statistics=statistics) for name, split in splits.items()}
    return Experiment(
        make_learner=learner,
        inputs=inputs,
        loss=cross_entropy,
        metrics={"accuracy": accuracy},
        score=loop.Score("accuracy", higher_is_better=True),
        samplers=samplers,
        data=data,
        fingerprint=".".join(split.fingerprint() for split in splits.values()),
        transductive=norm_policy(settings) == "batch" and not settings.beside_support,
        beside_support=settings.beside_support,
        combine=mean_probabilities,
        plan=_plan(settings, images),
        facts={
            "dataset": settings.dataset,
            "split": images.description,
            "learner": settings.learner,
            "ways": settings.ways,
            "shots": settings.shots,
            "queries": samplers["test"].queries,
        },
        pictures=functools.partial(
            _pictures, settings, test_learner, samplers["test"], data["test"]
        ),
    )


def _plan(settings: FewshotSettings, images: sources.Splits) -> list[tuple[str, str]]:
    height, width, channels = images.train.images.shape[1:]
    return [
        ("data", images.description),
        ("images", f"{height} x {width} x {channels}; {settings.rotations} rotated"),
        (
            "episodes",
            f"{settings.ways}-way {settings.shots}-shot, {settings.queries} queries a class",
        ),
        ("learner", settings.learner),
        ("model", f"{settings.model}, {norm_policy(settings)} norm"),
    ]


def _pictures(
    settings: FewshotSettings,
    learner: Learner,
    sampler: store.EpisodeSampler,
    data: store.ClassStore,
    meta: Any,
    workdir: Path,
) -> dict[str, Any]:
    """Draws the first test tasks with the model's answers."""

    def answer(key, episode):
        outputs = query_outputs(learner, meta, key, episode, beside_support=settings.beside_support)
        return outputs.argmax(-1)

    key = evaluation_key(settings, "test")
    keys, episodes = draw_tasks(sampler, data, key, 0, PICTURED_TASKS)
    answers = jax.jit(lambda *tasks: jax.lax.map(lambda task: answer(*task), tasks))(keys, episodes)
    pixels = [
        np.clip(np.asarray(batch.inputs * data.scale + data.mean), 0, 1)
        for batch in (episodes.support, episodes.query)
    ]
    pictures.episodes_picture(
        workdir / "episodes.png",
        support_images=pixels[0],
        support_labels=np.asarray(episodes.support.targets),
        query_images=pixels[1],
        query_labels=np.asarray(episodes.query.targets),
        predictions=np.asarray(answers),
        title=f"{settings.dataset}: unseen classes, {settings.ways}-way {settings.shots}-shot",
    )
    return {}


def main() -> None:
    """Runs the driver on the command line's flags."""
    launch(FewshotSettings, __doc__, start, prepare=run.prepare_process)


if __name__ == "__main__":
    main()
