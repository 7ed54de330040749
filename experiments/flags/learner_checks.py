"""Which options of learner and estimator go together."""

import dataclasses

from experiments.flags.learner import LearnerSettings, own_options
from experiments.flags.settings import UsageError
from metajax.zoo.learners import LEARNERS

# What counts for some estimators only: the values that ask for nothing, and those estimators.
OF_ESTIMATORS = {
    "multi_step_loss": ((None, 0), ("backprop", "es")),
    "first_order_steps": ((0,), ("backprop",)),
    "adjoint": (("reverse",), ("backprop",)),
    "solver": ((None,), ("backprop",)),
    "solver_steps": ((None,), ("backprop",)),
    "tolerance": ((None,), ("backprop",)),
    "learn_strength": ((None, False), ("backprop", "es", "pes")),
    "es_sigma": ((None,), ("es", "pes")),
    "es_pairs": ((None,), ("es",)),
    "pes_unrolls": ((None,), ("pes",)),
}

# What only learners with inner steps have.
INNER = ("inner_steps", "test_inner_steps", "inner_lr", "inner_optimizer", "minibatch")


def check_learner(settings: LearnerSettings) -> None:
    """Raises UsageError for options that do not go with the learner or the estimator."""
    for name, value in own_options(settings).items():
        if name not in settings.entry.options:
            takers = ", ".join(k for k, entry in LEARNERS.items() if name in entry.options)
            raise UsageError(
                f"--{name}={value} does not go with --learner={settings.learner}; it is for {takers}."
            )
    if not settings.entry.inner:
        _check_no_inner_loop(settings)
    if settings.inner_optimizer != "sgd" and (settings.entry.own_rule or settings.hessian_free):
        rule = "--hessian_free" if settings.hessian_free else f"--learner={settings.learner}"
        raise _refusal(settings, "inner_optimizer", f"{rule}, which has a rule of its own")
    if not settings.entry.unrolls:
        for name in ("adjoint", "first_order_steps", "multi_step_loss"):
            if getattr(settings, name) not in ("reverse", 0, None):
                reason = f"--learner={settings.learner}, which has a derivative of its own"
                raise _refusal(settings, name, reason)
    if settings.multi_step_loss:
        _check_multi_step(settings)
    for name, (unset, estimators) in OF_ESTIMATORS.items():
        if getattr(settings, name) not in unset and settings.estimator not in estimators:
            raise _refusal(settings, name, f"--outer={settings.estimator}")


def _check_no_inner_loop(settings: LearnerSettings) -> None:
    reason = f"--learner={settings.learner}, which takes no inner steps"
    for field in dataclasses.fields(settings):
        if field.name in INNER and getattr(settings, field.name) != field.default:
            raise _refusal(settings, field.name, reason)
    if settings.estimator in ("reptile", "pes"):
        raise _refusal(settings, "outer", reason)
    if settings.supervised and settings.estimator != "backprop":
        # Evolution sees no gradient, which is all that moves running averages.
        raise _refusal(settings, "outer", f"--learner={settings.learner}")


def _check_multi_step(settings: LearnerSettings) -> None:
    if settings.inner_steps < 2:
        raise _refusal(settings, "multi_step_loss", f"--inner_steps={settings.inner_steps}")
    if settings.entry.penalty:
        raise _refusal(settings, "multi_step_loss", f"--learner={settings.learner}")
    if settings.minibatch:
        # Each inner step would be a call of its own, and begin a pass of its own.
        raise _refusal(settings, "multi_step_loss", f"--minibatch={settings.minibatch}")
    if settings.adjoint == "truncated":
        raise _refusal(settings, "multi_step_loss", "--adjoint=truncated")


def _refusal(settings: LearnerSettings, name: str, other: str) -> UsageError:
    return UsageError(
        f"--{name}={getattr(settings, name)} does not go with {other}; leave out one of the two."
    )
