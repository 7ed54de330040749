"""The learners by name: what `--learner` offers and the contract suite runs over."""

import functools
import operator
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import optax

from metajax.inner.adjoints import ADJOINTS, Adjoint
from metajax.inner.implicit import conjugate_gradient, hessian_free, identity_solver, neumann
from metajax.inner.rules.base import stop_gradient
from metajax.inner.scalars import learned
from metajax.learners.gradient import family, per_step_rates, reparametrised
from metajax.learners.gradient.implicit import imaml
from metajax.learners.gradient.latent import leo, leo_penalty
from metajax.learners.metric import comparing, heads
from metajax.learners.metric.context import full_context_embeddings
from metajax.learners.sequence.convolutions import snail
from metajax.learners.sequence.fast_weights import metanet
from metajax.learners.sequence.memory import mann_model
from metajax.learners.sequence.neural_process import anp, cnp, gaussian_nll
from metajax.learners.sequence.recurrent import (
    SequenceModel,
    gru_model,
    lstm_model,
    recurrent_learner,
)
from metajax.learners.sequence.transformer import in_context
from metajax.learners.states import rescaled
from metajax.learners.transfer import baselines
from metajax.names import find
from metajax.types import Array, Fast, Learner, LossFn, Meta, Model, Objective, Params


class Ingredients(NamedTuple):
    """What a named learner may be made of; each takes what it needs.

    Attributes:
      model: the network; its last layer is named `head`.
      loss: the inner loss.
      rule: the inner optimizer.
      learning_rate: the inner step size, for learners whose rule is their own.
      steps: inner steps.
      adjoint: how learners with inner steps differentiate through them.
      rows: for how many inner steps whatever is learned a step is learned; as many as `steps` if None.
      encoder: the network without its last layer.
      decoder: the network from inputs and codes to a mean and a deviation, for neural processes.
      comparer: the network that compares a class with a query, for learners that have one.
      ways: classes, where the task is to tell them apart.
      num_outputs: Y, numbers in a target, for neural processes.
      examples: support examples of the largest task.
      classes: of supervised training.
      testing: whether the learner is to be tested, for those that draw at random in training alone.
      options: what only some learners take, by the names of their `Entry`.
    """

    model: Model
    loss: LossFn
    rule: optax.GradientTransformation
    learning_rate: float
    steps: int
    adjoint: Adjoint = ADJOINTS["reverse"]
    rows: int | None = None
    encoder: Model | None = None
    decoder: Model | None = None
    comparer: Model | None = None
    ways: int | None = None
    num_outputs: int = 1
    examples: int | None = None
    classes: int | None = None
    testing: bool = False
    options: Mapping[str, Any] = MappingProxyType({})

    @property
    def common(self) -> dict[str, Any]:
        """The arguments of most learners with an inner rule."""
        return {"rule": self.rule, "steps": self.steps, "adjoint": self.adjoint, **self.options}

    def need(self, *names: str) -> None:
        """Raises ValueError where one of these is None."""
        for name in names:
            if getattr(self, name) is None:
                raise ValueError(f"The learner's ingredients have no {name}; give them one.")


CLASSES, VALUES = ("classes",), ("values",)
BOTH = CLASSES + VALUES


class Entry(NamedTuple):
    """A learner by name.

    Attributes:
      make: from the ingredients.
      outer: the outer estimator of its paper: "backprop", or "reptile".
      multi_step: whether its paper trains on the loss after every step.
      penalty: Term that its paper adds to the outer loss, as in `Scoring`; None for most.
      unrolls: whether it takes an adjoint; others have a derivative of their own.
      own_rule: whether it moves by a rule of its own, which takes the step size and no inner optimizer.
      inner: whether it takes inner steps; others have neither rule nor adjoint.
      incremental: Whether adapting in pieces equals adapting to the whole with the last call's key, if the
        encoder's answer to an example does not depend on its batch.
      encoder_of: meta -> the parameters of the encoder that alone reads inputs, support and query alike: all
        else reads its features. None for learners whose network is read in another way.
      any_ways: whether learners of different ways share their meta-parameters.
      loss: the outer loss of its paper, where that is not the experiment's.
      objective: Objective of supervised training, `(trainee, scoring) -> objective` as of
        `baseline.classification_objective`; None where it trains on episodes.
      predicts: what it predicts: "classes", "values", or both.
      options: what `Ingredients.options` may hold.
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
    options: tuple[str, ...] = ()


def _plain(learner: Callable[..., Learner]) -> Callable[[Ingredients], Learner]:
    return lambda i: learner(i.model, i.loss, **i.common)


def _first_order(i: Ingredients) -> Learner:
    return _plain(family.maml)(i._replace(rule=optax.chain(stop_gradient(), i.rule)))


def _own_rule(learner: Callable[..., Learner]) -> Callable[[Ingredients], Learner]:
    def make(i: Ingredients) -> Learner:
        return learner(
            i.model,
            i.loss,
            learning_rate=i.learning_rate,
            steps=i.steps,
            adjoint=i.adjoint,
            **i.options,
        )

    return make


def _maml_plus_plus(i: Ingredients) -> Learner:
    return _own_rule(functools.partial(per_step_rates.maml_plus_plus, rows=i.rows))(i)


def _imaml(i: Ingredients) -> Learner:
    options = dict(i.options)
    name, damping = options.pop("solver", "cg"), options.pop("damping", 0.0)
    solvers = {
        "cg": lambda: conjugate_gradient(options.pop("solver_steps", 5), damping=damping),
        "neumann": lambda: neumann(options.pop("solver_steps", 5), damping=damping),
        "identity": identity_solver,
    }
    make_solver = find("solver", name, solvers)
    if name == "identity" and {"solver_steps", "damping"} & set(i.options):
        raise ValueError("The solver 'identity' takes no steps and no damping; leave them out.")
    solver, rule = make_solver(), i.rule
    if options.pop("hessian_free", False):
        rule = hessian_free(damping=damping)
    regularization = options.pop("strength", 2.0)
    if options.pop("learn_strength", False):
        regularization = learned(regularization)
    return imaml(
        i.model,
        i.loss,
        rule=rule,
        steps=i.steps,
        solver=solver,
        regularization=regularization,
        **options,
    )


def _leo(i: Ingredients) -> Learner:
    i.need("encoder")
    learner = functools.partial(leo, ways=i.ways, stochastic=not i.testing)
    return _own_rule(learner)(i._replace(model=i.encoder))


def _of_encoder(learner: Callable[..., Learner], **fixed: Any) -> Callable[[Ingredients], Learner]:
    def make(i: Ingredients) -> Learner:
        i.need("encoder")
        return learner(i.encoder, ways=i.ways, **fixed, **i.options)

    return make


def _scaled(learner: Callable[..., Learner]) -> Callable[[Ingredients], Learner]:
    """Makes learners with a factor of similarities that may be learned."""

    def make(i: Ingredients) -> Learner:
        options = dict(i.options)
        if options.pop("learn_scale", False):
            options["scale"] = learned(options.get("scale", 1.0))
        return _of_encoder(learner)(i._replace(options=options))

    return make


def _matching(i: Ingredients) -> Learner:
    options = dict(i.options)
    if options.pop("full_context", False):
        options["context"] = full_context_embeddings()
    return _scaled(comparing.matching)(i._replace(options=options))


def _relation(i: Ingredients) -> Learner:
    i.need("comparer")
    return _of_encoder(functools.partial(comparing.relation, comparer=i.comparer))(i)


def _solving(solver: heads.Solver) -> Entry:
    def make(i: Ingredients) -> Learner:
        strength = learned(i.options.get("regularisation", 1.0))
        i = i._replace(options={"regularization": strength})
        return _of_encoder(heads.linear_head, solver=solver)(i)

    return Entry(make, **_COMPARES, options=("regularisation",))


def _process(learner: Callable[..., Learner], *, embeds: bool) -> Entry:
    def make(i: Ingredients) -> Learner:
        i.need("encoder", "decoder")
        networks = (i.encoder, i.decoder, i.encoder) if embeds else (i.encoder, i.decoder)
        return learner(*networks, num_outputs=i.num_outputs, **i.options)

    options = ("heads",) if embeds else ()
    return Entry(
        make,
        unrolls=False,
        inner=False,
        incremental=True,
        loss=gaussian_nll,
        predicts=VALUES,
        options=options,
    )


def _of_pairs(learner: Callable[..., Learner]) -> Callable[[Ingredients], Learner]:
    """Makes learners of (example, label) pairs; features of images are rescaled, regression inputs not."""

    def make(i: Ingredients) -> Learner:
        i.need("encoder")
        encoder = i.encoder if i.ways is None else rescaled(i.encoder)
        return _of_encoder(learner)(i._replace(encoder=encoder))

    return make


def _reading(reader: Callable[..., SequenceModel]) -> Callable[[Ingredients], Learner]:
    def make(i: Ingredients) -> Learner:
        return _of_pairs(recurrent_learner)(i._replace(options={"reader": reader(**i.options)}))

    return make


def _recurrent(cell: str = "lstm", **options: int) -> SequenceModel:
    readers = {"lstm": lstm_model, "gru": gru_model}
    return find("cell", cell, readers)(**options)


def _snail(i: Ingredients) -> Learner:
    i.need("examples")
    return _of_pairs(functools.partial(snail, length=i.examples + 1))(i)


def _supervised(
    learner: Callable[..., Learner], *options: str, cosine: bool | None = None
) -> Entry:
    """An entry trained to tell all classes apart; `cosine` is for learners whose head has a loss."""
    names = {
        "finetune_steps": "steps",
        "finetune_rate": "learning_rate",
        "regularisation": "regularization",
    }

    def make(i: Ingredients) -> Learner:
        i.need("classes")
        given = {names.get(name, name): value for name, value in i.options.items()}
        fixed = {} if cosine is None else {"loss": i.loss, "cosine": cosine}
        return _of_encoder(learner, classes=i.classes, **fixed)(i._replace(options=given))

    objective = functools.partial(baselines.classification_objective, cosine=bool(cosine))
    kind = _PRETRAINED | {"incremental": cosine is None}
    return Entry(make, **kind, objective=objective, options=options)


_READS: dict[str, Any] = {
    "unrolls": False,
    "inner": False,
    "encoder_of": operator.attrgetter("encoder"),
}
_ATTENDS: dict[str, Any] = _READS | {"incremental": True}
# Learners of classes that share their meta-parameters whatever the ways.
_PRETRAINED: dict[str, Any] = _READS | {"ways_agnostic": True, "predicts": CLASSES}
_COMPARES = _PRETRAINED | {"incremental": True, "encoder_of": operator.attrgetter("params")}
_FINETUNED = ("finetune_steps", "finetune_rate")

LEARNERS: dict[str, Entry] = {
    "maml": Entry(_plain(family.maml), options=("minibatch",)),
    "fomaml": Entry(_first_order, options=("minibatch",)),
    "anil": Entry(_plain(family.anil)),
    "boil": Entry(_plain(family.boil)),
    "meta_sgd": Entry(_own_rule(family.meta_sgd), own_rule=True),
    "meta_curvature": Entry(_own_rule(family.meta_curvature), own_rule=True),
    "learned_optimizer": Entry(_own_rule(family.learned_optimizer), own_rule=True),
    "maml_plus_plus": Entry(_maml_plus_plus, multi_step=True, own_rule=True),
    "reptile": Entry(_plain(family.maml), outer="reptile", options=("minibatch",)),
    "imaml": Entry(
        _imaml,
        unrolls=False,
        options=(
            *("strength", "learn_strength", "solver", "solver_steps", "damping"),
            *("hessian_free", "tolerance"),
        ),
    ),
    "leo": Entry(
        _leo,
        penalty=leo_penalty,
        predicts=CLASSES,
        own_rule=True,
        options=("latent", *_FINETUNED),
    ),
    "cavia": Entry(_plain(reparametrised.cavia), options=("context_size",)),
    "lora": Entry(_plain(reparametrised.lora), options=("rank",)),
    "meta_lstm": Entry(_own_rule(family.meta_lstm), own_rule=True, options=("units",)),
    "warpgrad": Entry(_plain(reparametrised.warpgrad)),
    "protonet": Entry(
        _scaled(comparing.protonet),
        **_COMPARES,
        options=("distance", "scale", "learn_scale"),
    ),
    "matching": Entry(_matching, **_COMPARES, options=("scale", "learn_scale", "full_context")),
    "relation": Entry(_relation, **_COMPARES, loss=comparing.relation_loss),
    "r2d2": _solving(heads.ridge),
    "lrd2": _solving(heads.logistic()),
    "metaoptnet": _solving(heads.svm()),
    "baseline": _supervised(baselines.baseline, *_FINETUNED, cosine=False),
    "baseline_plus_plus": _supervised(baselines.baseline, *_FINETUNED, cosine=True),
    "simpleshot": _supervised(baselines.simpleshot, "refine"),
    "linear_probe": _supervised(baselines.linear_probe, "regularisation"),
    "recurrent": Entry(_reading(_recurrent), **_READS, options=("cell", "units", "layers")),
    "mann": Entry(
        _reading(mann_model), **_READS, options=("units", "slots", "slot_width", "heads", "scale")
    ),
    "snail": Entry(_snail, **_ATTENDS, options=("width",)),
    "metanet": Entry(_of_encoder(metanet), **_ATTENDS, predicts=CLASSES, options=("units",)),
    "in_context": Entry(_of_pairs(in_context), **_ATTENDS, options=("width", "layers", "heads")),
    "cnp": _process(cnp, embeds=False),
    "anp": _process(anp, embeds=True),
}


def make_learner(name: str, ingredients: Ingredients) -> Learner:
    """Makes the learner registered as `name`.

    Raises:
      ValueError: for an unknown name, with the nearest, and for options that the learner does not take.
    """
    entry = find_learner(name)
    kind = "values" if ingredients.ways is None else "classes"
    if kind not in entry.predicts:
        others = ", ".join(other for other, entry in LEARNERS.items() if kind in entry.predicts)
        raise ValueError(
            f"{name} predicts {entry.predicts[0]}, and these tasks ask for {kind}; use one of {others}."
        )
    for option in ingredients.options:
        if option not in entry.options:
            takers = [other for other, entry in LEARNERS.items() if option in entry.options]
            raise ValueError(
                f"{option} is no option of {name}, but of {', '.join(takers) or 'no learner'}."
            )
    return entry.make(ingredients)


def find_learner(name: str) -> Entry:
    """Finds the learner registered as `name`; an unknown name is a ValueError that says the nearest."""
    return find("learner", name, LEARNERS)
