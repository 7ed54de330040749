"""Inner steps by any rule: what its transformation asks for, and what its derivative may do."""

import functools
import re
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

Params = Any


class NoTransformationError(TypeError):
    """A rule with parameters to learn stands where an optax transformation has to."""


class Stepper(NamedTuple):
    """How to take inner steps by a rule.

    Attributes:
      reads_loss: Whether its transformation requires `value`, `grad` or `value_fn`.
      doubtful: Whether its update may have no finite derivative, which `check` finds out.
      check: () -> None, called when the update is differentiated.
    """

    reads_loss: bool
    doubtful: bool
    check: Callable[[], None]

    def step(
        self,
        transform: optax.GradientTransformation,
        grads: Params,
        state: optax.OptState,
        params: Params,
        loss: Callable[[Params], jax.Array],
        *,
        first_order: bool,
    ) -> tuple[Params, optax.OptState]:
        """Takes a step of the rule's bound transformation, and returns parameters and state.

        Args:
          transform: The transformation.
          grads: Gradients, shaped like `params`.
          state: State of the transformation.
          params: Parameters before the step.
          loss: Loss whose gradients these are, as a function of the parameters.
          first_order: Whether the value of the loss counts as a constant, as the gradients do.
        """
        extra = {}
        if self.doubtful:
            grads = _on_derivative(self.check, grads)
        if self.reads_loss:
            value = loss(params)
            value = jax.lax.stop_gradient(value) if first_order else value
            extra = {"value": value, "grad": grads, "value_fn": loss}
        if self.reads_loss and self.doubtful:
            params = _on_derivative(self.check, params)
        updates, state = optax.with_extra_args_support(transform).update(
            grads, state, params, **extra
        )
        return optax.apply_updates(params, updates), state


def examine(rule: Any) -> Stepper:
    """Finds out on a few numbers what a `Rule` needs, and whether it may be hard to differentiate.

    Raises:
      TypeError: if it requires other arguments than inner steps have, or is a `Rule` inside a transformation.
    """

    def update(params, grads, extra):
        transform = optax.with_extra_args_support(rule.bind(rule.init(params)))
        return transform.update(grads, transform.init(params), params, **extra)[0]

    def with_loss(params, grads):
        return update(
            params, grads, {"value": jnp.sum(params["a"]), "grad": grads, "value_fn": _sum}
        )

    refusals = []
    for reads_loss, step in ((False, lambda *args: update(*args, {})), (True, with_loss)):
        try:
            found = str(jax.make_jaxpr(step)(_PARAMS, _GRADS))
        except NoTransformationError:
            raise
        except Exception as error:  # A rule for parameters of one structure has any error here.
            refusals.append(error)
            continue
        return Stepper(
            reads_loss,
            bool(_DOUBTFUL.search(found)),
            functools.cache(functools.partial(_check, step)),
        )
    for refusal in refusals[::-1]:
        if re.search("required keyword-only|must be provided", str(refusal)):
            raise TypeError(
                f"The rule needs what inner steps do not have: {str(refusal).rstrip('.')}. They have value, "
                "grad and value_fn."
            ) from refusal
    return Stepper(reads_loss=True, doubtful=False, check=lambda: None)


# One gradient of zero beside another number, and a leaf of zeros: what unused units have.
_PARAMS = {"a": np.ones(2, np.float32), "b": np.ones(2, np.float32)}
_GRADS = {"a": np.array([0, 1], np.float32), "b": np.zeros(2, np.float32)}
# Primitives whose derivative is infinite somewhere, or of which there is none in reverse.
_DOUBTFUL = re.compile(r"\b(sqrt|rsqrt|cbrt|pow|log|while)\b")


def _sum(params: Params) -> jax.Array:
    return jnp.sum(params["a"] ** 2) + jnp.sum(params["b"] ** 2)


def _check(step: Callable[[Params, Params], Params]) -> None:
    """Refuses an update that has no derivative, and warns of one that is not finite."""

    def total(grads):
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(step(_PARAMS, grads)))

    with jax.ensure_compile_time_eval():
        try:
            slopes = jax.jit(jax.grad(total))(_GRADS)
        except ValueError as error:
            if "while_loop" not in str(error):
                raise
            raise ValueError(
                "The rule searches in a loop of unknown length, through which no meta-gradient flows; use "
                "it in metajax.imaml or under reptile or evolution, or a rule without a line search, such as "
                "optax.lbfgs(0.1, linesearch=None)."
            ) from error
        values = jax.jit(total)(_GRADS)
        if np.isfinite(values) and not all(np.isfinite(s).all() for s in jax.tree.leaves(slopes)):
            warnings.warn(
                "The derivative of the inner rule is infinite where a gradient is zero, so that the "
                "meta-gradient may be NaN at a finite loss; give the rule an eps_root, such as "
                "optax.adam(0.01, eps_root=1e-8).",
                RuntimeWarning,
                stacklevel=2,
            )


def _on_derivative(act: Callable[[], None], tree: Params) -> Params:
    """The same tree, but acts when a program that holds it is differentiated."""

    @jax.custom_jvp
    def identity(tree):
        return tree

    @identity.defjvp
    def derivative(primals, tangents):
        act()
        return primals[0], tangents[0]

    return identity(tree)
