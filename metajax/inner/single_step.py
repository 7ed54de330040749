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

_TWO_LEAVES = jax.tree.structure({"a": 0, "b": 0})


class Demands(NamedTuple):
    """What a rule asks of those who take steps by it.

    Attributes:
      reads_loss: Whether its transformation requires `value`, `grad` or `value_fn`.
      doubtful: Whether its update may have no finite derivative, which `check` finds out.
      searches: Whether it has a loop of unknown length.
      check: () -> None, called when the update is differentiated.
    """

    reads_loss: bool
    doubtful: bool
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
    """Takes a step by a `Rule`, and returns parameters and state.

    Args:
      rule: The rule.
      rule_params: What the rule learns.
      grads: Gradients, shaped like `params`.
      state: State of its transformation.
      params: Parameters before the step.
      loss: Loss whose gradients these are, as a function of the parameters.
      first_order: Whether the loss counts as a constant, as the gradients do.
    """
    demands = examine(rule, jax.tree.structure(params))
    extra, seen = {}, params
    if demands.doubtful:
        grads = _on_derivative(demands.check, grads)
    if demands.reads_loss:
        value_fn = _constant(loss) if first_order else loss
        extra = {"value": value_fn(params), "grad": grads, "value_fn": value_fn}
        if demands.doubtful and not first_order:
            seen = _on_derivative(demands.check, params)
        elif demands.searches and first_order:
            seen = jax.lax.stop_gradient(params)
    updates, state = rule.update(rule_params, grads, state, seen, **extra)
    return optax.apply_updates(params, updates), state


@functools.lru_cache(maxsize=32)
def examine(rule: Any, structure: jax.tree_util.PyTreeDef = _TWO_LEAVES) -> Demands:
    """Finds out on a few numbers what a `Rule` needs, and whether it may be hard to differentiate.

    Args:
      rule: The rule.
      structure: Tree structure of the parameters, on whose names a rule may depend.

    Raises:
      TypeError: if it requires other arguments than inner steps have.
    """
    params, grads = _example(structure)

    def update(params, grads, extra):
        return rule.update(rule.init(params), grads, rule.start(params), params, **extra)[0]

    def with_loss(params, grads):
        return update(params, grads, {"value": _sum(params), "grad": grads, "value_fn": _sum})

    refusals = []
    for reads_loss, step in ((False, lambda *args: update(*args, {})), (True, with_loss)):
        try:
            found = str(jax.make_jaxpr(step)(params, grads))
        except Exception as error:  # A rule for parameters of another structure has any error here.
            refusals.append(error)
            continue
        primitives = set(_DOUBTFUL.findall(found))
        check = functools.cache(functools.partial(_check, step, params, grads))
        return Demands(reads_loss, bool(primitives), "while" in primitives, check)
    for refusal in refusals[::-1]:
        if re.search("missing .* required|must be provided", str(refusal)):
            raise TypeError(
                f"The rule needs what inner steps do not have: {str(refusal).rstrip('.')}. They have value, "
                "grad and value_fn."
            ) from refusal
    return Demands(reads_loss=True, doubtful=False, searches=False, check=lambda: None)


def _example(structure: Any) -> tuple[Params, Params]:
    """Parameters and gradients: one of zero beside another number, else zeros, as unused units have."""
    leaves = range(structure.num_leaves)
    params = [np.ones(2, np.float32) for _ in leaves]
    grads = [np.array([0, float(leaf == 0)], np.float32) for leaf in leaves]
    return structure.unflatten(params), structure.unflatten(grads)


# Primitives whose derivative is infinite somewhere, or of which there is none in reverse.
_DOUBTFUL = re.compile(r"\b(sqrt|rsqrt|cbrt|pow|log|while)\b")


def _sum(params: Params) -> jax.Array:
    return sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(params))


def _constant(loss: Callable[[Params], jax.Array]) -> Callable[[Params], jax.Array]:
    return lambda params: jax.lax.stop_gradient(loss(jax.lax.stop_gradient(params)))


def _check(step: Callable[[Params, Params], Params], params: Params, grads: Params) -> None:
    """Refuses an update that has no derivative, and warns of one that is not finite."""

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
