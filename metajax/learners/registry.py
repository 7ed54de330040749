"""The learners by name: what `--learner` offers and the contract suite runs over."""

import difflib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import optax

from metajax.inner.adjoints import ADJOINTS, Adjoint
from metajax.inner.implicit import conjugate_gradient, hessian_free, identity, neumann
from metajax.inner.rules import stop_gradient
from metajax.learners import maml, maml_plus_plus, reparametrised
from metajax.learners.implicit import imaml, learned_strength
from metajax.learners.leo import leo, leo_penalty
from metajax.types import Array, Fast, Learner, LossFn, Meta, Model


class Ingredients(NamedTuple):
    """What a named learner may be made of; each takes what it needs.

    Attributes:
      model: the network; its last layer is named `head`.
      loss: the inner loss.
      rule: the inner optimizer.
      rate: the inner step size, for learners whose rule is their own.
      steps: inner steps.
      adjoint: how learners with inner steps differentiate through them.
      rows: for how many inner steps whatever is learned a step is learned; as many as `steps` if None.
      encoder: the network without its last layer.
      ways: classes, where the task is to tell them apart.
      testing: whether the learner is to be tested, for those that draw at random in training alone.
      options: what only some learners take, by the names of their `Entry`.
    """

    model: Model
    loss: LossFn
    rule: optax.GradientTransformation
    rate: float
    steps: int
    adjoint: Adjoint = ADJOINTS["reverse"]
    rows: int | None = None
    encoder: Model | None = None
    ways: int | None = None
    testing: bool = False
    options: Mapping[str, Any] = MappingProxyType({})

    @property
    def common(self) -> dict[str, Any]:
        """The arguments of most learners with an inner rule."""
        return {"rule": self.rule, "steps": self.steps, "adjoint": self.adjoint, **self.options}


class Entry(NamedTuple):
    """A learner by name.

    Attributes:
      make: from the ingredients.
      outer: the outer estimator of its paper: "backprop", or "reptile".
      multi_step: whether its paper trains on the loss after every step.
      penalty: what its paper adds to the outer loss, as of `query_objective`.
      unrolls: whether it takes an adjoint; others have a derivative of their own.
      own_rule: whether it moves by a rule of its own, which takes the step size and no inner optimizer.
      options: what `Ingredients.options` may hold.
    """

    make: Callable[[Ingredients], Learner]
    outer: str = "backprop"
    multi_step: bool = False
    penalty: Callable[[Meta, Fast], Array] | None = None
    unrolls: bool = True
    own_rule: bool = False
    options: tuple[str, ...] = ()


def _plain(learner: Callable[..., Learner]) -> Callable[[Ingredients], Learner]:
    return lambda i: learner(i.model, i.loss, **i.common)


def _first_order(i: Ingredients) -> Learner:
    return _plain(maml.maml)(i._replace(rule=optax.chain(stop_gradient(), i.rule)))


def _own_rule(learner: Callable[..., Learner]) -> Callable[[Ingredients], Learner]:
    def make(i: Ingredients) -> Learner:
        return learner(i.model, i.loss, rate=i.rate, steps=i.steps, adjoint=i.adjoint, **i.options)

    return make


def _maml_plus_plus(i: Ingredients) -> Learner:
    return _own_rule(maml_plus_plus.maml_plus_plus)(
        i._replace(options={"rows": i.rows, **i.options})
    )


def _imaml(i: Ingredients) -> Learner:
    options = dict(i.options)
    name, damping = options.pop("solver", "cg"), options.pop("damping", 0.0)
    solvers = {
        "cg": lambda: conjugate_gradient(options.pop("solver_steps", 5), damping=damping),
        "neumann": lambda: neumann(options.pop("solver_steps", 5), damping=damping),
        "identity": identity,
    }
    if name not in solvers:
        raise ValueError(f"No solver is named {name!r}; use one of {', '.join(solvers)}.")
    if name == "identity" and {"solver_steps", "damping"} & set(i.options):
        raise ValueError("The solver 'identity' takes no steps and no damping; leave them out.")
    solver, rule = solvers[name](), i.rule
    if options.pop("hessian_free", False):
        rule = hessian_free(damping=damping)
    if options.pop("learn_strength", False):
        options["strength"] = learned_strength(options.get("strength", 2.0))
    return imaml(i.model, i.loss, rule=rule, steps=i.steps, solver=solver, **options)


def _leo(i: Ingredients) -> Learner:
    if i.encoder is None or i.ways is None:
        raise ValueError("leo tells classes apart; give its ingredients an encoder and ways.")
    return leo(
        i.encoder,
        i.loss,
        ways=i.ways,
        rate=i.rate,
        steps=i.steps,
        stochastic=not i.testing,
        adjoint=i.adjoint,
        **i.options,
    )


LEARNERS: dict[str, Entry] = {
    "maml": Entry(_plain(maml.maml), options=("minibatch",)),
    "fomaml": Entry(_first_order, options=("minibatch",)),
    "anil": Entry(_plain(maml.anil)),
    "boil": Entry(_plain(maml.boil)),
    "meta_sgd": Entry(_own_rule(maml.meta_sgd), own_rule=True),
    "meta_curvature": Entry(_own_rule(maml.meta_curvature), own_rule=True),
    "learned_optimizer": Entry(_own_rule(maml.learned_optimizer), own_rule=True),
    "maml_plus_plus": Entry(_maml_plus_plus, multi_step=True, own_rule=True),
    "reptile": Entry(_plain(maml.maml), outer="reptile", options=("minibatch",)),
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
        own_rule=True,
        options=("latent", "finetune_steps", "finetune_rate"),
    ),
    "cavia": Entry(_plain(reparametrised.cavia), options=("context_size",)),
    "lora": Entry(_plain(reparametrised.lora), options=("rank",)),
    "warpgrad": Entry(_plain(reparametrised.warpgrad)),
}


def make_learner(name: str, ingredients: Ingredients) -> Learner:
    """Makes the learner registered as `name`.

    Raises:
      ValueError: for an unknown name, with the nearest, and for options that the learner does not take.
    """
    entry = find_learner(name)
    for option in ingredients.options:
        if option not in entry.options:
            takers = [other for other, entry in LEARNERS.items() if option in entry.options]
            raise ValueError(
                f"{option} is no option of {name}, but of {', '.join(takers) or 'no learner'}."
            )
    return entry.make(ingredients)


def find_learner(name: str) -> Entry:
    """Finds the learner registered as `name`; an unknown name is a ValueError that says the nearest."""
    if name not in LEARNERS:
        near = difflib.get_close_matches(name, LEARNERS, n=3, cutoff=0.4) or sorted(LEARNERS)
        raise ValueError(f"No learner is named {name!r}; the nearest are {', '.join(near)}.")
    return LEARNERS[name]
