"""The options of which learner, and how it is trained and tested; each learner takes what it needs."""

import dataclasses
from collections.abc import Callable
from typing import Any

import optax

from experiments.flags.settings import UsageError, option
from metajax.inner.adjoints import ADJOINTS, Adjoint, check_adjoint, make_adjoint
from metajax.learners.metric.comparing import DISTANCES
from metajax.types import Learner, LossFn, Model
from metajax.zoo.learners import LEARNERS, Entry, Ingredients, make_learner

OUTER = ("backprop", "reptile", "es", "pes")
SIGMA, PAIRS, UNROLLS = 0.01, 4, 5


@dataclasses.dataclass(frozen=True)
class LearnerSettings:
    """Which learner, its inner loop, and the estimator of its meta-gradient."""

    learner: str = option("maml", "The meta-learner.", section="Learner", choices=tuple(LEARNERS))
    context_size: int | None = option(
        None, "cavia: numbers in the context; 100 if not given.", section="Learner", least=1
    )
    rank: int | None = option(
        None, "lora: rank of the factors; 4 if not given.", section="Learner", least=1
    )
    strength: float | None = option(
        None,
        "imaml: strength of the pull to the start, lambda; 2 if not given.",
        section="Learner",
        above=0,
    )
    learn_strength: bool | None = option(
        None, "imaml: learns the strength across tasks, from --strength on.", section="Learner"
    )
    solver: str | None = option(
        None,
        "imaml: of the linear system of the meta-gradient. cg, conjugate gradients, if not given; neumann, a "
        "series; identity, none (T1-T2), which is first order.",
        section="Learner",
        choices=("cg", "neumann", "identity"),
    )
    solver_steps: int | None = option(
        None, "imaml: steps of that solver; 5 if not given.", section="Learner", least=1
    )
    damping: float | None = option(
        None,
        "imaml: added to the diagonal of the systems that are solved, relative to 1 in that of the "
        "meta-gradient; 0 if not given.",
        section="Learner",
        least=0,
    )
    hessian_free: bool | None = option(
        None,
        "imaml: inner steps are Newton's, with conjugate gradients and a line search, instead of those of "
        "--inner_optimizer.",
        section="Learner",
    )
    tolerance: float | None = option(
        None,
        "imaml: warns where a linear system is left with a larger relative residual; never if not given. The "
        "program is then compiled anew in every run.",
        section="Learner",
        above=0,
    )
    latent: int | None = option(
        None,
        "leo: numbers in the latent code of a class; 64 if not given.",
        section="Learner",
        least=1,
    )
    finetune_steps: int | None = option(
        None,
        "leo: steps of the decoded head itself, after those of the codes; 5 if not given. baseline, "
        "baseline_plus_plus: of a task's head; 100.",
        section="Learner",
        least=0,
    )
    finetune_rate: float | None = option(
        None,
        "leo: step size of those that training starts from; 0.001 if not given. baseline, "
        "baseline_plus_plus: theirs; 0.01.",
        section="Learner",
        above=0,
    )
    distance: str | None = option(
        None,
        "protonet: of a query from a class, euclidean (squared) if not given, or cosine.",
        section="Learner",
        choices=DISTANCES,
    )
    scale: float | None = option(
        None,
        "protonet, matching, mann: what similarities are multiplied by before the softmax; 1 if not given.",
        section="Learner",
        above=0,
    )
    learn_scale: bool | None = option(
        None, "protonet, matching: learns it across tasks, from --scale on.", section="Learner"
    )
    full_context: bool | None = option(
        None,
        "matching: embeds support and queries in view of the whole support set.",
        section="Learner",
    )
    regularisation: float | None = option(
        None,
        "r2d2, lrd2, metaoptnet: of the head, where training starts from; linear_probe: of the head; 1 if "
        "not given.",
        section="Learner",
        above=0,
    )
    refine: int | None = option(
        None,
        "simpleshot: how often class means move to what queries they attract, which is transductive; 0 if "
        "not given.",
        section="Learner",
        least=0,
    )
    cell: str | None = option(
        None,
        "recurrent: lstm if not given, or gru.",
        section="Learner",
        choices=("lstm", "gru"),
    )
    units: int | None = option(
        None,
        "recurrent, mann: of a cell; 200 if not given. meta_lstm, metanet: of the network that makes steps "
        "or weights; 20.",
        section="Learner",
        least=1,
    )
    layers: int | None = option(
        None,
        "recurrent: cells on top of each other, 1 if not given; in_context: of the transformer, 4.",
        section="Learner",
        least=1,
    )
    slots: int | None = option(
        None, "mann: of the memory; 128 if not given.", section="Learner", least=1
    )
    slot_width: int | None = option(
        None, "mann: numbers in a slot; 40 if not given.", section="Learner", least=1
    )
    heads: int | None = option(
        None,
        "mann: of the memory; in_context, anp: of attention; 4 if not given.",
        section="Learner",
        least=1,
    )
    width: int | None = option(
        None,
        "in_context: numbers in a token; snail: what a convolution adds; 128 if not given.",
        section="Learner",
        least=1,
    )
    inner_steps: int = option(
        1, "Inner steps a task takes in training.", section="Inner loop", least=0
    )
    test_inner_steps: int | None = option(
        None,
        "Inner steps in validation and test; as in training if not given.",
        section="Inner loop",
        least=0,
    )
    inner_lr: float = option(
        0.4,
        "Inner step size, for a loss that is a mean over examples (papers that sum over the N ways quote "
        "one N times smaller). Where step sizes are learned, what training starts from.",
        section="Inner loop",
        above=0,
    )
    inner_optimizer: str = option(
        "sgd",
        "Inner rule. momentum is 0.9; adam has eps_root 1e-8 where it is differentiated; adam0 is "
        "adam without momentum (b1 = 0), as in Reptile; sign goes along the sign of the gradient, which is "
        "first order.",
        section="Inner loop",
        choices=("sgd", "momentum", "adam", "adam0", "sign"),
    )
    minibatch: int | None = option(
        None,
        "Support examples that an inner step sees, in shuffled passes; all if not given. For "
        f"{', '.join(name for name, entry in LEARNERS.items() if 'minibatch' in entry.options)}.",
        section="Inner loop",
        least=1,
    )
    adjoint: str = option(
        "reverse",
        "How to differentiate through the inner steps. reverse is exact for every loss and keeps the most in "
        "memory; remat computes again what it needs; mixed takes forward over reverse mode and keeps a state "
        "and a gradient a step; recursive keeps one in about sqrt(steps) of its states, offload has them in "
        "the host's memory. Two give another gradient: truncated differentiates the last 5 steps only, "
        "first_order takes inner gradients for constants.",
        section="Inner loop",
        choices=tuple(ADJOINTS),
    )
    outer: str | None = option(
        None,
        "The estimator of the meta-gradient: backprop through the inner loop; reptile, from the start to "
        "where tasks end; es, antithetic evolution strategies; pes, persistent ones over --pes_unrolls "
        "calls of --inner_steps each. If not given, that of the learner's paper.",
        section="Training",
        choices=OUTER,
    )
    es_sigma: float | None = option(
        None,
        "es, pes: standard deviation of the perturbations of the meta-parameters; "
        f"{SIGMA} if not given.",
        section="Training",
        above=0,
    )
    es_pairs: int | None = option(
        None,
        f"es: antithetic pairs of perturbations a task; {PAIRS} if not given.",
        section="Training",
        least=1,
    )
    pes_unrolls: int | None = option(
        None,
        f"pes: truncations in the life of a task; {UNROLLS} if not given.",
        section="Training",
        least=1,
    )
    multi_step_loss: int | None = option(
        None,
        "Meta-steps over which the training loss moves from the mean of the losses after each inner step to "
        "the last alone; 0 is the last from the start. If not given, a tenth of --steps for maml_plus_plus, "
        "0 for others.",
        section="Training",
        least=0,
    )
    first_order_steps: int = option(
        0,
        "Meta-steps at the beginning that are first order, whatever --adjoint says.",
        section="Training",
        least=0,
    )

    @property
    def steps_at_test(self) -> int:
        """Inner steps in validation and test."""
        return self.inner_steps if self.test_inner_steps is None else self.test_inner_steps

    @property
    def entry(self) -> Entry:
        """The learner's entry in the registry."""
        return LEARNERS[self.learner]

    @property
    def penalty(self) -> Callable[[Any, Any], Any] | None:
        """What training adds to the outer loss, (meta, fast) -> scalar; None where there is nothing."""
        return self.entry.penalty

    @property
    def supervised(self) -> bool:
        """Whether training is to tell all training classes apart, instead of on episodes."""
        return self.entry.objective is not None

    @property
    def estimator(self) -> str:
        """The outer estimator in force."""
        return self.outer or self.entry.outer


# The options that only some learners take; None where not given.
OWN_OPTIONS = tuple(dict.fromkeys(name for entry in LEARNERS.values() for name in entry.options))


def own_options(settings: LearnerSettings) -> dict[str, Any]:
    """The given options that only some learners take."""
    given = {name: getattr(settings, name) for name in OWN_OPTIONS}
    return {name: value for name, value in given.items() if value is not None}


def learner_maker(
    settings: LearnerSettings,
    loss: LossFn,
    *,
    model: Model,
    encoder: Model,
    test_ways: int | None = None,
    **parts: Any,
) -> Callable[..., Learner]:
    """Makes `(inner steps, adjoint, testing=False) -> learner` as the flags say, on the same meta-parameters.

    Args:
      settings: the flags.
      loss: the inner loss.
      model: the network.
      encoder: the network without its last layer.
      test_ways: N of a task in validation and test; `parts` have that of training.
      **parts: further fields of `Ingredients`.

    Where a learner cannot be made of these, what it returns raises UsageError.
    """
    rule, options = inner_rule(settings), own_options(settings)

    def make(steps: int, adjoint: Adjoint, testing: bool = False) -> Learner:
        ingredients = Ingredients(
            model,
            loss,
            rule,
            settings.inner_lr,
            steps,
            adjoint,
            rows=settings.inner_steps,
            encoder=encoder,
            testing=testing,
            options=options,
            **{**parts, **({"ways": test_ways} if testing else {})},
        )
        try:
            return make_learner(settings.learner, ingredients)
        except ValueError as error:
            raise UsageError(f"--learner={settings.learner} does not work here: {error}") from error

    return make


def inner_rule(settings: LearnerSettings) -> optax.GradientTransformation:
    """Makes the inner optimizer that the flags name."""
    # It makes the derivative of a square root finite at zero, and tiny gradients take smaller steps.
    eps_root = 1e-8 if settings.estimator == "backprop" else 0.0
    rules = {
        "sgd": optax.sgd,
        "momentum": lambda rate: optax.sgd(rate, momentum=0.9),
        "adam": lambda rate: optax.adam(rate, eps_root=eps_root),
        "adam0": lambda rate: optax.adam(rate, b1=0.0, eps_root=eps_root),
        "sign": optax.sign_sgd,
    }
    return rules[settings.inner_optimizer](settings.inner_lr)


def inner_adjoint(settings: LearnerSettings) -> Adjoint:
    """Finds the adjoint that the flags name; UsageError where this machine's device cannot do it."""
    adjoint = make_adjoint(settings.adjoint)
    try:
        check_adjoint(adjoint)
    except ValueError as error:
        raise UsageError(f"--adjoint={settings.adjoint} does not work here: {error}") from error
    return adjoint


def inner_loop_in_words(settings: LearnerSettings) -> str:
    """How a task adapts."""
    if settings.supervised:
        return "none in training; in test a task fits a head to its support set"
    if not settings.entry.inner:
        return "none: a task reads its support set once"
    return (
        f"{settings.inner_steps} x {_rule_in_words(settings)} in training, "
        f"{settings.steps_at_test} x at test; {_derivative_in_words(settings)}"
    )


def _rule_in_words(settings: LearnerSettings) -> str:
    if settings.hessian_free:
        return "Newton's steps"
    name = "the learner's rule, from" if settings.entry.own_rule else settings.inner_optimizer
    return f"{name} {settings.inner_lr:g}"


def _derivative_in_words(settings: LearnerSettings) -> str:
    if settings.estimator != "backprop":
        return "not differentiated"
    return f"adjoint {settings.adjoint}" if settings.entry.unrolls else "implicit derivative"
