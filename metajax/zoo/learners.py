"""Learners by name, with their options and defaults: the choices of `--learner`."""

import functools
import operator
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from metajax.learners.gradient import family, reparametrised
from metajax.learners.gradient.latent import leo_penalty
from metajax.learners.metric import heads, prototypes, relation_networks
from metajax.learners.metric.base import DISTANCES
from metajax.learners.sequence.fast_weights import metanet
from metajax.learners.sequence.memory import mann_model
from metajax.learners.sequence.neural_process import anp, cnp, gaussian_nll
from metajax.learners.sequence.tables import in_context_tables
from metajax.learners.sequence.transformer import in_context
from metajax.learners.transfer import baselines
from metajax.names import find
from metajax.types import Array, Fast, Learner, LossFn, Meta, Objective, Params
from metajax.zoo import makers
from metajax.zoo.ingredients import Ingredients, of_encoder, of_network, of_own_rule, of_pairs
from metajax.zoo.options import Option, complete, option

CLASSES, VALUES, DECISIONS = ("classes",), ("values",), ("decisions",)
BOTH = CLASSES + VALUES
ALL = BOTH + DECISIONS


class Entry(NamedTuple):
    """A learner by name.

    Attributes:
      make: Function from the ingredients to the learner.
      outer: Estimator of the meta-gradient in its paper: "backprop" or "reptile".
      multi_step: Whether its paper trains on the loss after every inner step.
      penalty: Term that its paper adds to the outer loss, as in `Scoring`; None for most.
      unrolls: Whether it takes an adjoint; others have a derivative of their own.
      own_rule: Whether it has a rule of its own, which takes the step size and no inner optimizer.
      inner: Whether it takes inner steps; others have neither rule nor adjoint.
      incremental: Whether adapting in pieces equals adapting to the whole with the last call's key, if the
        encoder's answer to an example does not depend on its batch.
      encoder_of: Function meta -> parameters of the encoder, for learners whose encoder alone reads inputs;
        None for others.
      ways_agnostic: Whether learners of different ways share their meta-parameters.
      loss: Outer loss of its paper; None for the experiment's.
      objective: Function (trainee, scoring) -> objective of supervised training, as
        `learners.classification_objective`; None for training on episodes.
      predicts: Kinds of targets that it predicts: "classes", "values", or "decisions" of a policy.
      options: Options that only some learners have, declared with default, help and limits.
      defaults: Settings by flag under which the learner's name alone learns the default task well; one
        mapping for each kind of targets. They replace the driver's defaults.
    """

    make: Callable[[Ingredients], Learner]
    outer: str = "backprop"
    multi_step: bool = False
    penalty: Callable[[Meta, Fast], Array] | None = None
    unrolls: bool = True
    own_rule: bool = False
    inner: bool = True
    incremental: bool = False
    encoder_of: Callable[[Meta], Params] | None = None
    ways_agnostic: bool = False
    loss: LossFn | None = None
    objective: Callable[..., Objective] | None = None
    predicts: tuple[str, ...] = BOTH
    options: Mapping[str, Option] = MappingProxyType({})
    defaults: Mapping[str, Mapping[str, Any]] = MappingProxyType({})


_READS: dict[str, Any] = {
    "unrolls": False,
    "inner": False,
    "encoder_of": operator.attrgetter("encoder"),
}
_ATTENDS: dict[str, Any] = _READS | {"incremental": True}
# Learners of classes that share their meta-parameters whatever the ways.
_PRETRAINED: dict[str, Any] = _READS | {"ways_agnostic": True, "predicts": CLASSES}
_COMPARES: dict[str, Any] = _PRETRAINED | {
    "incremental": True,
    "encoder_of": operator.attrgetter("params"),
}
# Where a derivative passes through the inner loop.
_DIFFERENTIATED = {"outer": ("backprop",)}
# Where the linear system of a meta-gradient is solved.
_SOLVED = {"solver": ("cg", "neumann")}
# Options that several learners share.
_MINIBATCH = {
    "minibatch": option(
        int, None, "Support examples of an inner step, in shuffled passes; all by default.", least=1
    )
}
_SCALE = {
    "scale": option(float, 1.0, "Factor of the similarities before the softmax.", above=0),
    "learn_scale": option(bool, False, "Learns the factor across tasks, starting at --scale."),
}


def _finetuned(steps: int, learning_rate: float) -> dict[str, Option]:
    return {
        "finetune_steps": option(int, steps, "Gradient steps on a task's head.", least=0),
        "finetune_rate": option(
            float, learning_rate, "Step size of the steps on a task's head.", above=0
        ),
    }


def _units(default: int, network: str) -> Option:
    return option(int, default, f"Units of {network}.", least=1)


def _heads(of: str) -> Option:
    return option(int, 4, f"Heads of {of}.", least=1)


def _steps(
    inner_steps: int, test_inner_steps: int, inner_lr: float | None = None
) -> dict[str, Any]:
    found = {"inner_steps": inner_steps, "test_inner_steps": test_inner_steps}
    return found if inner_lr is None else {**found, "inner_lr": inner_lr}


# Learners that compare or solve train at more ways than they are tested with, as in their papers; as many
# images per step as other learners see are then four tasks.
_MANY_WAYS = {"classes": {"train_ways": 20, "meta_batch": 4}}
# What is learned of an inner step holds for as many steps as in training, and there the driver takes one.
_ONE_STEP = {"values": {"test_inner_steps": 1}}
# Step size of the recipes of learners that read pairs.
_SLOWER = {"classes": {"outer_lr": 1e-3}, "values": {"outer_lr": 1e-3}}


def _solving(solver: heads.Solver) -> Entry:
    """Makes the entry of a learner that solves for its head."""
    start = option(
        float,
        1.0,
        "Regularization of the head that training starts from; it is learned.",
        above=0,
        was=("regularisation",),
    )
    make = makers.solved_head(solver)
    return Entry(make, **_COMPARES, options={"regularization": start}, defaults=_MANY_WAYS)


def _process(learner: Callable[..., Learner], *, embeds: bool) -> Entry:
    """Makes the entry of a neural process."""
    return Entry(
        makers.neural_process(learner, embeds=embeds),
        unrolls=False,
        inner=False,
        incremental=True,
        loss=gaussian_nll,
        predicts=VALUES,
        options={"heads": _heads("attention")} if embeds else {},
    )


def _supervised(
    learner: Callable[..., Learner],
    options: Mapping[str, Option],
    *,
    cosine: bool | None = None,
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> Entry:
    """Makes the entry of a learner whose encoder is trained to tell all training classes apart.

    Args:
      learner: Function that makes it.
      options: Options of the learner.
      cosine: Whether its head compares by cosines; None for learners whose head has no loss.
      defaults: Defaults by flag, besides running averages.

    Returns:
      The entry.
    """
    kind: dict[str, Any] = _PRETRAINED | {"incremental": cosine is None}
    return Entry(
        makers.on_trained_encoder(learner, cosine=cosine),
        **kind,
        objective=functools.partial(baselines.classification_objective, cosine=bool(cosine)),
        options=options,
        # Batches of single images, hence running averages in test.
        defaults={"classes": {"norm": "running", **defaults}},
    )


LEARNERS: dict[str, Entry] = {
    "maml": Entry(of_network(family.maml), options=_MINIBATCH, predicts=ALL),
    "fomaml": Entry(makers.first_order, options=_MINIBATCH, predicts=ALL),
    # An inner step of the head alone costs next to nothing. On sinusoids the error after 5,000 meta-steps was
    # 0.33 by five larger ones and 0.76 by the driver's.
    "anil": Entry(
        of_network(family.anil),
        predicts=ALL,
        defaults={"classes": _steps(5, 5), "values": _steps(5, 5, 0.05)},
    ),
    # The paper takes one step, in test too.
    "boil": Entry(of_network(family.boil), defaults={"classes": {"test_inner_steps": 1}}),
    # Learned step sizes start small, so that training raises those that help. They are for as many steps as
    # in training: on sinusoids ten steps of step sizes that were learned for one diverge.
    "meta_sgd": Entry(
        of_own_rule(family.meta_sgd),
        own_rule=True,
        predicts=ALL,
        defaults={"classes": {"inner_lr": 0.1, "test_inner_steps": 1}, **_ONE_STEP},
    ),
    "meta_curvature": Entry(
        of_own_rule(family.meta_curvature),
        own_rule=True,
        defaults={"classes": {"test_inner_steps": 1}, **_ONE_STEP},
    ),
    # Its network costs several steps of MAML: fewer tasks at once leave enough meta-steps.
    "learned_optimizer": Entry(
        of_own_rule(family.learned_optimizer),
        own_rule=True,
        defaults={"classes": {"inner_steps": 2, "meta_batch": 8}},
    ),
    # The same gradient as by `reverse`, by an adjoint that is quicker for several steps.
    "maml_plus_plus": Entry(
        makers.maml_plus_plus,
        multi_step=True,
        own_rule=True,
        defaults={"classes": {"inner_steps": 3, "adjoint": "mixed"}, **_ONE_STEP},
    ),
    # As in the paper: ten shots in training, in minibatches of ten, and many steps of Adam without momentum.
    # Its five tasks a step are six here, which divide over two and three cores.
    "reptile": Entry(
        of_network(family.maml),
        outer="reptile",
        options=_MINIBATCH,
        defaults={
            "classes": {
                "inner_optimizer": "adam0",
                "inner_lr": 1e-3,
                "inner_steps": 5,
                "test_inner_steps": 50,
                "minibatch": 10,
                "train_shots": 10,
                "meta_batch": 6,
                "outer_optimizer": "sgd",
                "outer_lr": 1.0,
                "outer_schedule": "linear",
            },
            # Of the driver's single step the error on sinusoids was 1.85 after 5,000 meta-steps, and of these
            # 0.16; without a limit on the gradient it diverged.
            "values": {**_steps(5, 32), "clip": 10.0},
        },
    ),
    # Its gradient is that of a minimum, which the steps have to come near to. On Omniglot validation after
    # 1,760 tasks was 74.6% with these settings; with the paper's regularization of 2 and steps of 0.1 it was
    # 68.4 and 68.7% by damping of 1 and 10, and without damping 64% after twice the tasks.
    "imaml": Entry(
        makers.implicit_maml,
        unrolls=False,
        options={
            "regularization": option(
                float,
                2.0,
                "Strength lambda of the pull to the start.",
                above=0,
                was=("strength",),
            ),
            "learn_regularization": option(
                bool,
                False,
                "Learns the strength across tasks, starting at --regularization.",
                was=("learn_strength",),
                only={"outer": ("backprop", "es", "pes")},
            ),
            "solver": option(
                str,
                "cg",
                "Solver of the meta-gradient's linear system: conjugate gradients, a Neumann series, or the "
                "identity (T1-T2), which is first order.",
                choices=("cg", "neumann", "identity"),
                only=_DIFFERENTIATED,
            ),
            "solver_steps": option(
                int, 5, "Steps of that solver.", least=1, only={**_DIFFERENTIATED, **_SOLVED}
            ),
            "damping": option(
                float,
                0.0,
                "Number added to the diagonals of the linear systems, relative to 1 in that of the "
                "meta-gradient.",
                least=0,
                only=_SOLVED,
            ),
            "hessian_free": option(
                bool,
                False,
                "Takes Newton steps, by conjugate gradients and a line search, instead of those of "
                "--inner_optimizer.",
            ),
            "tolerance": option(
                float,
                None,
                "Relative residual of a linear system above which a warning is printed; never by default. "
                "The program is then compiled anew in every run.",
                above=0,
                only=_DIFFERENTIATED,
            ),
        },
        # On sinusoids larger steps, or a gradient without a limit, end in numbers that are not finite.
        defaults={
            "classes": {**_steps(5, 10, 0.2), "regularization": 0.5, "damping": 2.0},
            "values": {**_steps(16, 10, 0.002), "damping": 2.0, "clip": 1.0},
        },
    ),
    # Five steps on the codes, as in the reference code, whose step size is for features that stay as they
    # are: of 1.0, 0.4 and 0.1 the last had the lowest loss after 30 steps on Tiny ImageNet.
    "leo": Entry(
        makers.latent_embedding,
        penalty=leo_penalty,
        predicts=CLASSES,
        own_rule=True,
        options={
            "latent": option(int, 64, "Numbers in the latent code of a class.", least=1),
            **_finetuned(5, 1e-3),
        },
        defaults={"classes": _steps(5, 5, 0.1)},
    ),
    # A context of few numbers takes larger steps than a network: validation on Omniglot after 4,800 tasks was
    # 53, 73 and 71% by steps of 1, 5 and 20.
    "cavia": Entry(
        of_network(reparametrised.cavia),
        predicts=ALL,
        options={"context_size": option(int, 100, "Numbers in a task's context vector.", least=1)},
        defaults={"classes": _steps(2, 2, 5.0)},
    ),
    "lora": Entry(
        of_network(reparametrised.lora),
        options={"rank": option(int, 4, "Rank of the factors.", least=1)},
        defaults={"classes": {"inner_steps": 3}},
    ),
    "meta_lstm": Entry(
        of_own_rule(family.meta_lstm),
        own_rule=True,
        options={"units": _units(20, "the network that sets the gates")},
        defaults=_ONE_STEP,
    ),
    "warpgrad": Entry(
        of_network(reparametrised.warpgrad), defaults={"classes": {"inner_steps": 3}}
    ),
    "protonet": Entry(
        makers.scaled(prototypes.protonet),
        **_COMPARES,
        options={
            "distance": option(
                str,
                "euclidean",
                "Distance of a query from a class: euclidean (squared) or cosine.",
                choices=DISTANCES,
            ),
            **_SCALE,
        },
        defaults=_MANY_WAYS,
    ),
    # Covariances need a class of several examples, and features of few numbers.
    "mahalanobis_protonet": Entry(
        makers.mahalanobis,
        **_COMPARES,
        options={
            "ridge": option(
                float, 0.1, "Variance that is added to every direction of the features.", above=0
            ),
            "learn_ridge": option(
                bool, True, "Learns that variance across tasks, starting at --ridge."
            ),
            "own_covariance": option(
                float,
                0.1,
                "Largest share of a class's own covariance, as opposed to that of the task.",
                least=0,
                most=1,
            ),
        },
        defaults=_MANY_WAYS,
    ),
    "matching": Entry(
        makers.matching,
        **_COMPARES,
        options={
            **_SCALE,
            "full_context": option(
                bool, False, "Embeds support and queries in view of the whole support set."
            ),
        },
        defaults={"classes": {**_MANY_WAYS["classes"], "scale": 10.0}},
    ),
    "relation": Entry(makers.relation, **_COMPARES, loss=relation_networks.relation_loss),
    "r2d2": _solving(heads.ridge),
    "lrd2": _solving(heads.logistic()),
    "metaoptnet": _solving(heads.svm()),
    "baseline": _supervised(baselines.baseline, _finetuned(100, 0.01), cosine=False),
    # The paper's 0.01 is for features of 1,600 numbers: in 300 validation tasks on simpleshot's encoder 0.1
    # and 1 had 40%, and 0.01, from rows of more than twice the length, 23%.
    "baseline_plus_plus": _supervised(
        baselines.baseline, _finetuned(100, 0.01), cosine=True, defaults={"finetune_rate": 0.1}
    ),
    "simpleshot": _supervised(
        baselines.simpleshot,
        {
            "refine": option(
                int,
                0,
                "Times that class means move to the queries they attract; above 0 is transductive.",
                least=0,
            )
        },
    ),
    "linear_probe": _supervised(
        baselines.linear_probe,
        {
            "regularization": option(
                float, 1.0, "Regularization of the head.", above=0, was=("regularisation",)
            )
        },
    ),
    "recurrent": Entry(
        makers.reading(makers.recurrent_cell),
        **_READS,
        options={
            "cell": option(str, "lstm", "Recurrent cell.", choices=("lstm", "gru")),
            "units": _units(200, "a recurrent cell"),
            "layers": option(int, 1, "Recurrent cells on top of each other.", least=1),
        },
        defaults=_SLOWER,
    ),
    "mann": Entry(
        makers.reading(mann_model),
        **_READS,
        options={
            "units": _units(200, "a recurrent cell"),
            "slots": option(int, 128, "Slots of the memory.", least=1),
            "slot_width": option(int, 40, "Numbers in a slot of the memory.", least=1),
            "heads": _heads("the memory"),
            "scale": _SCALE["scale"],
        },
        defaults=_SLOWER,
    ),
    "snail": Entry(
        makers.temporal_convolutions,
        **_ATTENDS,
        options={"width": option(int, 128, "Channels that a convolution adds.", least=1)},
        defaults=_SLOWER,
    ),
    "metanet": Entry(
        of_encoder(metanet),
        **_ATTENDS,
        predicts=CLASSES,
        options={"units": _units(20, "the networks that make fast weights")},
        defaults=_SLOWER,
    ),
    "in_context": Entry(
        of_pairs(in_context),
        **_ATTENDS,
        options={
            "width": option(int, 128, "Numbers in a token.", least=1),
            "layers": option(int, 4, "Layers of the transformer.", least=1),
            "heads": _heads("attention"),
        },
        defaults=_SLOWER,
    ),
    "in_context_tables": Entry(
        of_encoder(in_context_tables),
        **_ATTENDS | {"predicts": CLASSES, "ways_agnostic": True},
        options={
            "most_ways": option(
                int, 10, "Largest number of classes that the parameters serve.", least=2
            ),
            "width": option(int, 64, "Numbers in a token.", least=1),
            "layers": option(int, 3, "Layers of the transformer.", least=1),
            "heads": _heads("attention"),
        },
        defaults=_SLOWER,
    ),
    "cnp": _process(cnp, embeds=False),
    "anp": _process(anp, embeds=True),
    "rl2": Entry(
        makers.reading_policy,
        unrolls=False,
        inner=False,
        incremental=True,
        predicts=DECISIONS,
        options={
            "reader": option(
                str,
                "gru",
                "Network that reads the history of a trial.",
                choices=("gru", "lstm", "transformer", "snail"),
            ),
            "units": _units(128, "a recurrent cell"),
            "layers": option(int, 1, "Recurrent cells on top of each other.", least=1),
            "recall": option(
                int,
                0,
                "Numbers of a key, and of a value, of a memory from observations to what followed them, for "
                "trials that meet the same observations again; 0 leaves it out.",
                least=0,
            ),
            "transitions": option(
                bool,
                False,
                "Reads the observation that the last decision answered once more, with what it led to; "
                "--recall always does.",
            ),
            "head_units": option(
                int,
                0,
                "Units of a layer that sees the history and the present observation; 0 leaves it out.",
                least=0,
            ),
        },
    ),
}


def make_learner(name: str, ingredients: Ingredients) -> Learner:
    """Makes the learner registered as `name`.

    Args:
      name: A key of `LEARNERS`.
      ingredients: Parts to make it of.

    Returns:
      The learner.

    Raises:
      ValueError: If the name is unknown, the learner cannot predict these targets, or it has no such option.

    Example:
      >>> model, loss = metajax.toys.toy_model(3), metajax.cross_entropy
      >>> parts = metajax.zoo.Ingredients(model, loss, optax.sgd(0.4), 0.4, 1, ways=3)
      >>> learner = make_learner("maml", parts)
    """
    entry = find_learner(name)
    kind = "values" if ingredients.ways is None else "classes"
    kind = "decisions" if ingredients.actions is not None else kind
    if kind not in entry.predicts:
        others = ", ".join(other for other, entry in LEARNERS.items() if kind in entry.predicts)
        raise ValueError(
            f"{name} predicts {entry.predicts[0]}, and these tasks ask for {kind}; use one of {others}."
        )
    options = complete(name, ingredients.options, entry.options)
    return entry.make(ingredients._replace(options=options))


def find_learner(name: str) -> Entry:
    """Finds the entry of a learner.

    Args:
      name: A key of `LEARNERS`.

    Returns:
      The entry.

    Raises:
      ValueError: If the name is unknown; the message lists the nearest.

    Example:
      >>> find_learner("reptile").outer
      'reptile'
    """
    return find("learner", name, LEARNERS)
