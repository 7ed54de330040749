"""Partial evaluation: moving out of the inner loop what no inner step changes.

Where only some parameters adapt, most of the inner loss may not depend on them: the body of ANIL is the same
at every step. A loss is split here into what is known before the loop, computed once a task, and what is
unknown until the parameters of a step are, computed in every step.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core

Array = jax.Array
Tree = Any


def hoist(
    loss: Callable[[Tree, Tree], Array], params: Tree, operands: Tree
) -> tuple[Tree, Callable[[Tree, Tree], Array]]:
    """Computes once whatever in a loss does not depend on the parameters.

    The loss is traced and its equations are sorted. Those that depend on `params` are unknown and stay. Those
    that depend on `operands` alone are known and computed here. Constants, which depend on neither, go where
    they are needed. A function under its own `jax.jit` is one equation, so a model wrapped in one as a whole
    is not split.

    Args:
      loss: (params, operands) -> scalar.
      params: what will change between calls of the loss.
      operands: what will not.

    Returns:
      `(residuals, loss_of)` with `loss_of(params, residuals)` equal to `loss(params, operands)`, and so are
      all derivatives: `residuals` are differentiable functions of `operands`, and of whatever `loss` closes
      over. A loss with side effects, such as `jax.debug.print`, comes back as it is, beside `operands`.
    """
    closed, treedef = jax.make_jaxpr(loss)(params, operands), jax.tree.structure(params)
    jaxpr = closed.jaxpr
    if jaxpr.effects:
        return operands, loss
    unknown_inputs = jaxpr.invars[: treedef.num_leaves]
    known_inputs = [*jaxpr.constvars, *jaxpr.invars[treedef.num_leaves :]]
    unknown = _dependent(jaxpr.eqns, unknown_inputs)
    known_or_constant = _without(jaxpr.eqns, unknown)
    known = _dependent(known_or_constant, known_inputs)

    known_vars = {*known_inputs, *(var for eqn in known for var in eqn.outvars)}
    unknown = _needed(_without(jaxpr.eqns, known), jaxpr.outvars)
    read = [*(atom for eqn in unknown for atom in eqn.invars), *jaxpr.outvars]
    residual_vars = list(dict.fromkeys(v for v in read if _is_var(v) and v in known_vars))
    known = _needed(known_or_constant, residual_vars)

    before = jaxpr.replace(constvars=[], invars=known_inputs, outvars=residual_vars, eqns=known)
    after = jaxpr.replace(constvars=[], invars=[*unknown_inputs, *residual_vars], eqns=unknown)
    residuals = _call(before, *closed.consts, *jax.tree.leaves(operands))

    def loss_of(params: Tree, residuals: list[Array]) -> Array:
        return _call(after, *jax.tree.leaves(params), *residuals)[0]

    return residuals, loss_of


def reads_outside(function: Callable, *args: Tree) -> bool:
    """Whether a function closes over values that are being transformed, such as a task's key of noise.

    Custom derivatives may not; what `hoist` makes of the function does not.
    """
    return any(
        isinstance(const, jax.core.Tracer) for const in jax.make_jaxpr(function)(*args).consts
    )


def _dependent(eqns: list, sources: list) -> list:
    """Equations that read any of the sources, or the results of one that does."""
    reached, found = set(sources), []
    for eqn in eqns:
        if any(_is_var(atom) and atom in reached for atom in eqn.invars):
            reached.update(eqn.outvars)
            found.append(eqn)
    return found


def _needed(eqns: list, outputs: list) -> list:
    """Equations that the outputs are computed from."""
    wanted, found = {atom for atom in outputs if _is_var(atom)}, []
    for eqn in reversed(eqns):
        if not wanted.isdisjoint(eqn.outvars):
            wanted.update(atom for atom in eqn.invars if _is_var(atom))
            found.append(eqn)
    return found[::-1]


def _without(eqns: list, others: list) -> list:
    left_out = {id(eqn) for eqn in others}
    return [eqn for eqn in eqns if id(eqn) not in left_out]


def _is_var(atom: Any) -> bool:
    return not isinstance(atom, core.Literal)


def _call(jaxpr: core.Jaxpr, *values: Any) -> list[Array]:
    return core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr, []))(*values)
