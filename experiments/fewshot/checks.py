"""Combinations of options of few-shot classification that no single declaration can refuse."""

from ..flags.learner import SUPERVISED
from ..flags.settings import UsageError
from ..flags.training import multi_step_loss
from .options import FewshotSettings


def check_fewshot(settings: FewshotSettings) -> None:
    """Raises UsageError for options of episodes, adversary and norm that do not go together."""
    if settings.train_ways not in (None, settings.ways) and not settings.entry.ways_agnostic:
        raise UsageError(
            f"--train_ways={settings.train_ways} does not go with --learner={settings.learner}, which learns "
            f"a head of --ways={settings.ways} classes; leave it out."
        )
    if settings.protocol == "sequence" and settings.shots < 2:
        raise UsageError(
            f"--protocol=sequence presents each class --shots={settings.shots} times; use 2 or more, such "
            "as 10."
        )
    _check_attack(settings)
    _check_running(settings)
    for name in ("mix_classes", "label_noise"):
        if getattr(settings, name) and (settings.min_ways or settings.min_shots):
            raise UsageError(
                f"--{name} does not go with --min_ways or --min_shots, whose padding would be changed too; "
                "leave out one of the two."
            )
    if settings.refine:
        for name in ("queries_at_once", "one_query_at_a_time"):
            if getattr(settings, name):
                raise UsageError(
                    f"--{name} does not go with --refine={settings.refine}, which looks at all queries "
                    "together; leave out one of the two."
                )
    if settings.encodes and settings.augment:
        raise UsageError(
            f"--augment={settings.augment} does not go with a frozen encoder, whose vectors of images are "
            "computed once, before the training; leave out one of the two."
        )
    _check_rotations(settings)


def _check_rotations(settings: FewshotSettings) -> None:
    """Raises UsageError where turned classes would be other classes of the data set."""
    if settings.test_dataset == "glyphs" and settings.rotations == "all":
        raise UsageError(
            "--rotations=all does not go with --test_dataset=glyphs: many of its letters are each other's "
            "rotations; use --rotations=train."
        )
    if settings.dataset in ("glyphs", "symbols") and settings.rotations != "none":
        raise UsageError(
            f"--rotations={settings.rotations} does not go with --dataset={settings.dataset}: many of its "
            "letters are each other's rotations, and would be two classes of the same images."
        )


def _check_attack(settings: FewshotSettings) -> None:
    """Raises UsageError where training on adversarial images cannot be combined."""
    if settings.attack == "none" or settings.attack_on == "none" or settings.after_training:
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
    """Raises UsageError where running averages would never run, or would be optimized."""
    if settings.norm != "running":
        return
    if settings.learner == "relation":
        raise UsageError(
            "--norm=running does not go with --learner=relation, whose comparing network has no separate "
            "training; use another norm."
        )
    if settings.estimator in ("es", "pes"):
        raise UsageError(
            f"--norm=running does not go with --outer={settings.estimator}, which would perturb the "
            "averages; use another norm."
        )
    if not settings.supervised and not settings.init_from:
        raise UsageError(
            f"--norm=running does not go with --learner={settings.learner}, whose training moves no "
            f"averages; train one of {', '.join(SUPERVISED)} and start from it by --init_from, or use "
            "another norm."
        )
