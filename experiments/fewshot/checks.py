"""Which options of few-shot classification go together."""

import dataclasses
from typing import Any

from experiments.fewshot.options import FewshotSettings, norm_policy
from experiments.flags.settings import UsageError
from experiments.setup.estimators import multi_step_loss
from experiments.setup.images import check_source
from metajax.zoo.learners import LEARNERS


def check_data(settings: FewshotSettings) -> None:
    """Raises UsageError for data options that do not go together."""
    check_source(settings)
    if settings.train_ways not in (None, settings.ways) and not settings.entry.ways_agnostic:
        raise UsageError(
            f"--train_ways={settings.train_ways} does not go with --learner={settings.learner}, which learns "
            f"a head of --ways={settings.ways} classes; leave it out."
        )
    if settings.supervised:
        if settings.queries != _default(settings, "queries"):
            raise UsageError(
                f"--queries={settings.queries} does not go with --learner={settings.learner}, which is "
                "trained on single images; use --images."
            )
        for name in ("mix_classes", "project", "label_noise"):
            if getattr(settings, name):
                raise UsageError(
                    f"--{name} does not go with --learner={settings.learner}, which is trained on single "
                    "images and not on episodes; leave it out."
                )
        for name in ("train_ways", "train_shots", "min_ways", "min_shots"):
            if getattr(settings, name) is not None:
                raise UsageError(
                    f"--{name}={getattr(settings, name)} does not go with --learner={settings.learner}, "
                    "which is trained on single images and not on episodes; leave it out."
                )
    elif settings.images is not None:
        raise UsageError(
            f"--images={settings.images} does not go with --learner={settings.learner}, which is trained on "
            "episodes; leave it out."
        )
    if settings.protocol == "sequence":
        _check_sequence(settings)
    _check_attack(settings)
    _check_running(settings)
    for name in ("mix_classes", "label_noise"):
        if getattr(settings, name) and (settings.min_ways or settings.min_shots):
            raise UsageError(
                f"--{name} does not go with --min_ways or --min_shots, whose padding would be changed too; "
                "leave out one of the two."
            )
    if settings.test_dataset == "glyphs" and settings.rotations == "all":
        raise UsageError(
            "--rotations=all does not go with --test_dataset=glyphs: many of its letters are each other's "
            "rotations; use --rotations=train."
        )
    if settings.dataset == "glyphs" and settings.rotations != "none":
        raise UsageError(
            f"--rotations={settings.rotations} does not go with --dataset=glyphs: many of its letters are "
            "each other's rotations, and would be two classes of the same images."
        )


def _check_attack(settings: FewshotSettings) -> None:
    """Raises UsageError for options that do not go with adversarial images, or mean nothing without."""
    if settings.attack == "none":
        for name in ("attack_epsilon", "attack_on"):
            if getattr(settings, name) != _default(settings, name):
                raise UsageError(f"--{name}={getattr(settings, name)} needs --attack=fgsm or pgd.")
        return
    for name in ("beside_support", "queries_at_once"):
        if getattr(settings, name):
            raise UsageError(
                f"--{name} does not go with --attack={settings.attack}; leave out one of the two."
            )
    if settings.attack_on == "none" or settings.mode == "evaluate":
        return
    if settings.first_order_steps or multi_step_loss(settings):
        raise UsageError(
            f"--attack={settings.attack} is trained on the last loss alone; use --first_order_steps=0 and "
            "--multi_step_loss=0, or --attack_on=none."
        )
    if settings.supervised or settings.estimator in ("reptile", "pes"):
        raise UsageError(
            f"--attack={settings.attack} is trained on episodes by --outer=backprop or es, and not with "
            f"--learner={settings.learner} --outer={settings.estimator}; use --attack_on=none."
        )


def _check_running(settings: FewshotSettings) -> None:
    """Raises UsageError where running averages would never run, or would be taken for what is learned."""
    if settings.norm != "running":
        return
    if settings.learner == "relation":
        raise UsageError(
            "--norm=running does not go with --learner=relation, whose comparing network has no training of "
            "its own; use another norm."
        )
    if settings.estimator in ("es", "pes"):
        raise UsageError(
            f"--norm=running does not go with --outer={settings.estimator}, which would perturb the "
            "averages; use another norm."
        )
    if not settings.supervised and not settings.init_from:
        supervised = ", ".join(name for name, entry in LEARNERS.items() if entry.objective)
        raise UsageError(
            f"--norm=running does not go with --learner={settings.learner}, whose training moves no "
            f"averages; train one of {supervised} and start from it by --init_from, or use another norm."
        )


def _default(settings: FewshotSettings, name: str) -> Any:
    return next(field.default for field in dataclasses.fields(settings) if field.name == name)


def _check_sequence(settings: FewshotSettings) -> None:
    """Raises UsageError for options that do not go with examples one after another."""
    if settings.shots < 2:
        raise UsageError(
            f"--protocol=sequence presents each class --shots={settings.shots} times; use 2 or more, such "
            "as 10."
        )
    harmless = {
        **{"attack": "none", "beside_support": False, "queries_at_once": 0, "first_order_steps": 0},
        **{"train_shots": None, "min_ways": None, "min_shots": None, "label_noise": 0.0},
        **{name: _default(settings, name) for name in ("queries", "test_queries")},
    }
    for name, value in harmless.items():
        if getattr(settings, name) != value:
            raise UsageError(
                f"--{name}={getattr(settings, name)} does not go with --protocol=sequence; leave it out."
            )
    if settings.entry.penalty:
        raise UsageError(
            f"--protocol=sequence does not go with --learner={settings.learner}, whose loss has a penalty of "
            "each task; use another learner."
        )
    if multi_step_loss(settings) or settings.estimator in ("reptile", "pes"):
        raise UsageError(
            "--protocol=sequence is trained by --outer=backprop or es on the loss of every answer, and not "
            f"with --outer={settings.estimator} or --multi_step_loss={multi_step_loss(settings)}; use 0 for "
            "the latter."
        )


def check_queries(settings: FewshotSettings) -> None:
    """Raises UsageError where queries cannot be answered a few at a time."""
    if settings.refine:
        for name in ("queries_at_once", "beside_support"):
            if getattr(settings, name):
                raise UsageError(
                    f"--{name} does not go with --refine={settings.refine}, which looks at all queries "
                    "together; leave out one of the two."
                )
    if settings.queries_at_once and norm_policy(settings) == "batch":
        raise UsageError(
            f"--queries_at_once={settings.queries_at_once} does not go with --norm=batch, under which an "
            "answer depends on the other queries; use --norm=group, layer or none, or --queries_at_once=0."
        )
