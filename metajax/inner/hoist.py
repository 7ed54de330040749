"""Partial evaluation: computes the part of an inner loss that no inner step changes once per task.

If only some parameters adapt, most of the inner loss may not depend on them: the body of ANIL is the same at
every step. A loss is split here into equations that are known before the loop, which run once per task, and
equations that are unknown until the parameters of a step are, which run in every step.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.core import Tracer
from jax.extend import core

Array = jax.Array
Tree = Any


def hoist(
    loss: Callable[[Tree, Tree], Array], params: Tree, operands: Tree
) -> tuple[Tree, Callable[[Tree, Tree], Array]]:
    """Computes the known part of a loss, the part that does not depend on the parameters.

    The loss is traced and its equations are sorted. Equations that depend on `params` are unknown and stay.
    Equations that depend on `operands` alone are known and are computed here. Constants depend on neither and
    are computed where they are read. A function under `jax.jit` is one equation, so a model that is wrapped
    in `jax.jit` as a whole is not split.

    Args:
      loss: Function (params, operands) -> scalar.
      params: Tree of arrays that change between calls of the loss.
      operands: Tree of arrays that do not change.

    Returns:
      A pair `(residuals, loss_of)`: known values, a list of arrays, and a function with `loss_of(params,
      residuals) == loss(params, operands)`, in all derivatives too. Residuals are differentiable functions of
      `operands` and of the values that `loss` closes over. A loss with side effects, such as
      `jax.debug.print`, is not split: the pair is then `(operands, loss)`.

    Example:
      >>> def loss(head, inputs):
      ...     return jnp.sum(jnp.tanh(inputs) * head)
      >>> residuals, loss_of = metajax.inner.hoist.hoist(loss, jnp.ones(3), jnp.zeros(3))
      >>> str(jax.make_jaxpr(loss_of)(jnp.ones(3), residuals)).count("tanh")
      0
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
    # Constants, which may be large (such as a table of ones), are recomputed instead of kept as residuals.
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
    """Checks whether a function closes over values that are being transformed, such as a task's dropout key.

    Functions with custom derivatives may not close over such values; `hoist` turns them into residuals.

    Args:
      function: Function to check.
      *args: Trees of arrays to trace it with.

    Returns:
      True if one of its constants is a tracer.
    """
    return any(isinstance(const, Tracer) for const in jax.make_jaxpr(function)(*args).consts)


def _dependent(eqns: list, sources: list) -> list:
    """Finds the equations that depend on any of the sources, directly or through other equations."""
    reached, found = set(sources), []
    for eqn in eqns:
        if any(_is_var(atom) and atom in reached for atom in eqn.invars):
            reached.update(eqn.outvars)
            found.append(eqn)
    return found


def _needed(eqns: list, outputs: list) -> list:
    """Finds the equations that the outputs are computed from."""
    wanted, found = {atom for atom in outputs if _is_var(atom)}, []
    for eqn in reversed(eqns):
        if not wanted.isdisjoint(eqn.outvars):
            wanted.update(atom for atom in eqn.invars if _is_var(atom))
            found.append(eqn)
    return found[::-1]


def _without(eqns: list, others: list) -> list:
    """Removes equations from a list; they are compared by identity."""
    removed = {id(eqn) for eqn in others}
    return [eqn for eqn in eqns if id(eqn) not in removed]


def _is_var(atom: Any) -> bool:
    """Checks whether an operand of an equation is a variable, not a literal number."""
    return not isinstance(atom, core.Literal)


def _call(jaxpr: core.Jaxpr, *values: Any) -> list[Array]:
    """Evaluates a jaxpr on values of its inputs."""
    return core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr, []))(*values)
