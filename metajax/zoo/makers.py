"""Learners whose options need more than passing on: solvers, learned scalars, further networks."""

import functools
from collections.abc import Callable

import optax

from metajax import rl
from metajax.inner.linear_solvers import conjugate_gradient, identity_solver, neumann
from metajax.inner.rules.base import stop_gradient
from metajax.inner.rules.newton import hessian_free
from metajax.inner.scalars import learned
from metajax.learners.gradient import family, per_step_rates
from metajax.learners.gradient.implicit import imaml
from metajax.learners.gradient.latent import leo
from metajax.learners.metric import heads, matching_networks, relation_networks
from metajax.learners.metric.context import full_context_embeddings
from metajax.learners.metric.mahalanobis import mahalanobis_protonet
from metajax.learners.sequence.convolutions import snail
from metajax.learners.sequence.readers import snail_model, transformer_model
from metajax.learners.sequence.recurrent import (
    SequenceModel,
    gru_model,
    lstm_model,
    recurrent_learner,
)
from metajax.names import find
from metajax.rl.distributions import action_size
from metajax.types import Learner
from metajax.zoo.ingredients import (
    Ingredients,
    Make,
    of_encoder,
    of_network,
    of_own_rule,
    of_pairs,
)


def first_order(i: Ingredients) -> Learner:
    """Makes MAML without second derivatives."""
    return of_network(family.maml)(i._replace(rule=optax.chain(stop_gradient(), i.rule)))


def maml_plus_plus(i: Ingredients) -> Learner:
    """Makes MAML++, whose step sizes are learned for as many steps as in training."""
    learner = functools.partial(per_step_rates.maml_plus_plus, rows=i.rows)
    return of_own_rule(learner)(i)


def implicit_maml(i: Ingredients) -> Learner:
    """Makes implicit MAML with the solver, the damping and the regularization of its options."""
    options = dict(i.options)
    damping = options.pop("damping")
    name, steps = options.pop("solver"), options.pop("solver_steps")
    solvers = {
        "cg": lambda: conjugate_gradient(steps, damping=damping),
        "neumann": lambda: neumann(steps, damping=damping),
        "identity": identity_solver,
    }
    rule = hessian_free(damping=damping) if options.pop("hessian_free") else i.rule
    if options.pop("learn_regularization"):
        options["regularization"] = learned(options["regularization"])
    return imaml(i.model, i.loss, rule=rule, steps=i.steps, solver=solvers[name](), **options)


def latent_embedding(i: Ingredients) -> Learner:
    """Makes LEO, which draws codes at random in training alone."""
    learner = functools.partial(leo, ways=i.need("ways"), stochastic=not i.testing)
    return of_own_rule(learner)(i._replace(model=i.need("encoder")))


def scaled(learner: Callable[..., Learner]) -> Make:
    """Makes learners whose factor of similarities may be learned."""

    def make(i: Ingredients) -> Learner:
        options = dict(i.options)
        if options.pop("learn_scale"):
            options["scale"] = learned(options["scale"])
        return of_encoder(learner)(i._replace(options=options))

    return make


def mahalanobis(i: Ingredients) -> Learner:
    """Makes prototypical networks with a Mahalanobis distance, whose variances may be learned."""
    options = dict(i.options)
    ridge, own = options.pop("ridge"), options.pop("own_covariance")
    if options.pop("learn_ridge"):
        ridge = learned(ridge)
    learner = of_encoder(mahalanobis_protonet, ridge=ridge, own=own)
    return learner(i._replace(options=options))


def matching(i: Ingredients) -> Learner:
    """Makes matching networks, with full context embeddings if asked."""
    options = dict(i.options)
    if options.pop("full_context"):
        options["context"] = full_context_embeddings()
    return scaled(matching_networks.matching)(i._replace(options=options))


def relation(i: Ingredients) -> Learner:
    """Makes relation networks."""
    return of_encoder(relation_networks.relation, comparer=i.need("comparer"))(i)


def solved_head(solver: heads.Solver) -> Make:
    """Makes learners of a linear head by a solver; the regularization is learned."""

    def make(i: Ingredients) -> Learner:
        options = {"regularization": learned(i.options["regularization"])}
        return of_encoder(heads.linear_head, solver=solver)(i._replace(options=options))

    return make


def neural_process(learner: Callable[..., Learner], *, embeds: bool) -> Make:
    """Makes neural processes; those that attend embed their inputs too."""

    def make(i: Ingredients) -> Learner:
        encoder, decoder = i.need("encoder"), i.need("decoder")
        networks = (encoder, decoder, encoder) if embeds else (encoder, decoder)
        return learner(*networks, num_outputs=i.num_outputs, **i.options)

    return make


def reading(model: Callable[..., SequenceModel]) -> Make:
    """Makes recurrent learners of a sequence model."""

    def make(i: Ingredients) -> Learner:
        options = {"sequence_model": model(**i.options)}
        return of_pairs(recurrent_learner)(i._replace(options=options))

    return make


def reading_policy(i: Ingredients) -> Learner:
    """Makes a policy that reads its own history with a recurrent cell, a transformer or SNAIL."""
    options, actions = dict(i.options), i.need("actions")
    names = ("reader", "units", "layers", "recall")
    reader, units, layers, recall = (options.pop(name) for name in names)
    readers = {
        "gru": lambda: gru_model(units, layers),
        "lstm": lambda: lstm_model(units, layers),
        "transformer": lambda: transformer_model(i.need("examples"), width=units, layers=layers),
        "snail": lambda: snail_model(i.need("examples"), width=units),
    }
    model = find("reader", reader, readers)()
    if recall:
        decision = action_size(actions) + 2
        model = rl.with_recall(model, decision=decision, keys=recall, values=recall)
        options["transitions"] = True
    return rl.reading_policy(model, actions, **options)


def recurrent_cell(cell: str, **options: int) -> SequenceModel:
    """Makes the sequence model of a recurrent cell by name."""
    cells = {"lstm": lstm_model, "gru": gru_model}
    return find("cell", cell, cells)(**options)


def temporal_convolutions(i: Ingredients) -> Learner:
    """Makes SNAIL for the longest sequence: all support examples and a query."""
    return of_pairs(snail, length=i.need("examples") + 1)(i)


def on_trained_encoder(learner: Callable[..., Learner], *, cosine: bool | None) -> Make:
    """Makes baselines, whose encoder is trained to tell all training classes apart."""
    names = {"finetune_steps": "steps", "finetune_rate": "learning_rate"}

    def make(i: Ingredients) -> Learner:
        given = {names.get(name, name): value for name, value in i.options.items()}
        fixed = {} if cosine is None else {"loss": i.loss, "cosine": cosine}
        base = of_encoder(learner, classes=i.need("classes"), **fixed)
        return base(i._replace(options=given))

    return make
