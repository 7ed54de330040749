"""One inner step by any optax transformation: the arguments that it requires, and its derivative.

Line searches need the loss, roots and powers have infinite derivatives at zero, and loops of unknown length
have no reverse mode. A rule is examined once, on a few numbers, before its first step.
"""

import functools
import re
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

Params = Any

_TWO_LEAVES = jax.tree.structure({"a": 0, "b": 0})


class Requirements(NamedTuple):
    """Arguments that the update of a rule requires, and limits of its derivative.

    Attributes:
      reads_loss: Whether the update requires `value`, `grad` or `value_fn`.
      unsafe: Whether the update may have no finite derivative; `check` finds out.
      searches: Whether the update has a loop of unknown length.
      check: Function () -> None to call when the update is differentiated.
    """

    reads_loss: bool
    unsafe: bool
    searches: bool
    check: Callable[[], None]


def take_step(
    rule: Any,
    rule_params: Any,
    grads: Params,
    state: optax.OptState,
    params: Params,
    loss: Callable[[Params], jax.Array],
    *,
    first_order: bool,
) -> tuple[Params, optax.OptState]:
    """Takes one inner step by a `Rule`.

    Args:
      rule: Rule, as `rules.base.as_rule` makes it.
      rule_params: Learned parameters of the rule.
      grads: Inner gradients, a tree like `params`.
      state: State of the rule's transformation.
      params: Parameters before the step, a tree of arrays.
      loss: Inner loss, params -> scalar, whose gradients are `grads`.
      first_order: Whether the loss, like the gradients, is a constant in the derivative.

    Returns:
      Parameters and state after the step.
    """
    requires = examine(rule, jax.tree.structure(params))
    extra, seen = {}, params
    if requires.unsafe:
        grads = _call_when_differentiated(requires.check, grads)
    if requires.reads_loss:
        value_fn = _constant(loss) if first_order else loss
        extra = {"value": value_fn(params), "grad": grads, "value_fn": value_fn}
        if requires.unsafe and not first_order:
            seen = _call_when_differentiated(requires.check, params)
        elif requires.searches and first_order:
            # A first-order step of a search reads constants alone, so its loop needs no derivative.
            seen = jax.lax.stop_gradient(params)
    updates, state = rule.update(rule_params, grads, state, seen, **extra)
    return optax.apply_updates(params, updates), state


@functools.lru_cache(maxsize=32)
def examine(rule: Any, structure: Any = _TWO_LEAVES) -> Requirements:
    """Traces a rule on a few numbers for the arguments that it requires and for unsafe derivatives.

    Args:
      rule: Rule to examine.
      structure: Tree structure of the parameters, a `PyTreeDef`; a rule may depend on their names.

    Returns:
      The requirements of the rule. A rule that fails for another reason, such as one for parameters of
      another structure, counts as one that reads the loss and is safe.

    Raises:
      TypeError: If the rule requires arguments that inner steps do not have.
    """
    params, grads = _example(structure)

    def update(params, grads, extra):
        return rule.update(rule.init(params), grads, rule.start(params), params, **extra)[0]

    def without_loss(params, grads):
        return update(params, grads, {})

    def with_loss(params, grads):
        return update(params, grads, {"value": _sum(params), "grad": grads, "value_fn": _sum})

    errors = []
    for reads_loss, step in ((False, without_loss), (True, with_loss)):
        try:
            found = str(jax.make_jaxpr(step)(params, grads))
        except Exception as error:  # A rule for parameters of another structure has any error here.
            errors.append(error)
            continue
        primitives = set(_UNSAFE.findall(found))
        check = functools.cache(functools.partial(_check, step, params, grads))
        return Requirements(reads_loss, bool(primitives), "while" in primitives, check)
    for error in errors[::-1]:
        if re.search("missing .* required|must be provided", str(error)):
            raise TypeError(
                "The rule needs arguments that inner steps do not have: "
                f"{str(error).rstrip('.')}. Use a rule that needs only value, grad and value_fn."
            ) from error
    return Requirements(reads_loss=True, unsafe=False, searches=False, check=lambda: None)


def _example(structure: Any) -> tuple[Params, Params]:
    """Makes parameters of ones, and gradients of zero except one number: dead units have zero gradients."""
    leaves = range(structure.num_leaves)
    params = [np.ones(2, np.float32) for _ in leaves]
    grads = [np.array([0, float(leaf == 0)], np.float32) for leaf in leaves]
    return structure.unflatten(params), structure.unflatten(grads)


# Primitives whose derivative is infinite somewhere, and `while`, which has none in reverse mode.
_UNSAFE = re.compile(r"\b(sqrt|rsqrt|cbrt|pow|log|while)\b")


def _sum(params: Params) -> jax.Array:
    """Sums squares, the loss of the example."""
    return cast(jax.Array, sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(params)))


def _constant(loss: Callable[[Params], jax.Array]) -> Callable[[Params], jax.Array]:
    """Stops the gradient of a loss, and of its argument, which spares the backward pass of the loss."""
    return lambda params: jax.lax.stop_gradient(loss(jax.lax.stop_gradient(params)))


def _check(step: Callable[[Params, Params], Params], params: Params, grads: Params) -> None:
    """Refuses an update without a derivative, and warns of one whose derivative is not finite."""

    def total(grads):
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(step(params, grads)))

    with jax.ensure_compile_time_eval():
        try:
            slopes = jax.jit(jax.grad(total))(grads)
        except ValueError as error:
            if "while_loop" not in str(error):
                raise
            raise ValueError(
                "The rule searches in a loop of unknown length, through which no meta-gradient flows; use "
                "it in metajax.imaml, first order, or under reptile or evolution, or a rule without a line "
                "search, such as optax.lbfgs(0.1, linesearch=None)."
            ) from error
        values = jax.jit(total)(grads)
        if np.isfinite(values) and not all(np.isfinite(s).all() for s in jax.tree.leaves(slopes)):
            warnings.warn(
                "The derivative of the inner rule is infinite where a gradient is zero, so that the "
                "meta-gradient may be NaN at a finite loss; give the rule an eps_root, such as "
                "optax.adam(0.01, eps_root=1e-8).",
                RuntimeWarning,
                stacklevel=2,
            )


def _call_when_differentiated(act: Callable[[], None], tree: Params) -> Params:
    """Returns a tree unchanged, and calls a function if a program that holds it is differentiated."""

    @jax.custom_jvp
    def identity(tree):
        return tree

    @identity.defjvp
    def derivative(primals, tangents):
        act()
        return primals[0], tangents[0]

    return identity(tree)
