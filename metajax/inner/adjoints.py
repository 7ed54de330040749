"""Adjoints: how to differentiate through inner steps, in which time and which memory.

An adjoint changes no number that adaptation arrives at; only `truncated` and `first_order` change a
derivative. The backward pass meets two costs: a derivative of each inner gradient, and what must be kept
to take it.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
from jax.ad_checkpoint import checkpoint_name

from metajax import trees
from metajax.inner.mixed import InnerLoss, mixed_gradient, scalar
from metajax.names import find

Array = jax.Array
Tree = Any

GRADIENT, STATE = "inner_gradient", "inner_state"
GRADIENTS = ("reverse", "mixed", "stopped")
STORES = ("all", "steps", "segments", "host")
HOST = "pinned_host"


class Adjoint(NamedTuple):
    """A way to differentiate through inner steps.

    Attributes:
      gradient: how an inner gradient is differentiated. `"reverse"`, over reverse, is exact for every loss.
        `"mixed"`, forward over reverse, keeps nothing but the step's parameters, and leans on the symmetry of
        second derivatives: `mixed_mode_error` tells whether a loss has it. `"stopped"` takes inner gradients
        for constants: first order, but for what the rule itself learns.
      store: what is kept for the backward pass. `"all"`, every intermediate result; `"steps"`, the state
        before each step, and with mixed gradients the inner gradient; `"segments"`, the state before one in
        about sqrt(steps) steps, the rest being computed again from there; `"host"`, the state before each
        step and the inner gradient, in the memory of the host.
      last: how many last steps are differentiated; None for all. Through the others the derivative with
        respect to the initial parameters is taken for the identity, and all other derivatives for zero, so
        that 0 is first-order MAML.

    References:
      mixed: Kemaev et al., 2025 (https://arxiv.org/abs/2505.00793), section 3.
      segments: Chen et al., 2016 (https://arxiv.org/abs/1604.06174), section 4.
      last: Shaban et al., 2019 (https://arxiv.org/abs/1810.10667), section 3.
    """

    gradient: Literal["reverse", "mixed", "stopped"]
    store: Literal["all", "steps", "segments", "host"]
    last: int | None = None


ADJOINTS: dict[str, Adjoint] = {
    "reverse": Adjoint("reverse", "all"),
    "remat": Adjoint("reverse", "steps"),
    "mixed": Adjoint("mixed", "steps"),
    "recursive": Adjoint("mixed", "segments"),
    "truncated": Adjoint("mixed", "steps", last=5),
    "offload": Adjoint("mixed", "host"),
    "first_order": Adjoint("stopped", "all"),
}


def make_adjoint(name: str) -> Adjoint:
    """Finds the adjoint registered as `name`; an unknown name is a ValueError that says the nearest."""
    return find("adjoint", name, ADJOINTS)


def unroll(
    loss: InnerLoss,
    update: Callable[[Tree, Tree, Tree, Tree], tuple[Tree, Tree]],
    params: Tree,
    state: Tree,
    operands: Tree,
    *,
    steps: int,
    adjoint: Adjoint | str = "reverse",
    read: Callable[[Tree, Tree], Tree] = lambda operands, state: operands,
) -> tuple[Tree, Tree]:
    """Takes `steps` steps of gradient descent, or of any other rule, and is differentiable through them.

    The derivative is that of a plain Python loop over `jax.grad(loss)` and `update`; `adjoint` chooses its
    cost. Two or more steps are one `jax.lax.scan`, whose compile time does not grow with them. Here a step
    size is learned through 20 steps, of which no more than the parameters is kept:

        def loss(weights, data):
            inputs, targets = data
            return jnp.mean((inputs @ weights - targets) ** 2)

        def update(operands, grads, weights, state):
            log_rate, data = operands
            return weights - jnp.exp(log_rate) * grads, state

        def outer(log_rate, start, train, test):
            options = {"steps": 20, "adjoint": "remat", "read": lambda operands, state: operands[1]}
            weights, _ = metajax.unroll(loss, update, start, (), (log_rate, train), **options)
            return loss(weights, test)

        slope = jax.grad(outer)(jnp.log(0.1), start, train, test)

    No function may close over values that are being differentiated: those belong in `operands`.

    What the adjoints of `metajax.ADJOINTS` cost, for S steps:

    | adjoint | derivative | memory | arithmetic |
    |---|---|---|---|
    | reverse | exact | all intermediate results of S steps | least |
    | remat | exact | S states, results of one step | each step once again |
    | mixed | exact if second derivatives are symmetric | S states and gradients | about as remat |
    | recursive | likewise | about 2 sqrt(S) states and gradients | a forward pass more |
    | offload | likewise | as mixed, in the memory of the host | as mixed, and the transfer |
    | truncated | of the last 5 steps | as mixed, of 5 steps | as mixed, of 5 steps |
    | first_order | inner gradients are constants | least | no second derivatives |

    Args:
      loss: Inner loss, (params, what `read` returns) -> scalar.
      update: One step, (operands, grads, params, state) -> (params, state) of the same structure, shapes and
        dtypes.
      params: Tree of floating-point arrays, with respect to which the inner gradient is taken.
      state: Tree of arrays, whatever else changes from step to step: momenta, a counter, a key; () for none.
      operands: Tree of arrays, whatever is read and does not change: step sizes, data, fixed parameters.
      steps: Number of steps, 0 or more.
      adjoint: Way to differentiate, an `Adjoint` or the name of one in `ADJOINTS`.
      read: (operands, state) -> the second argument of the loss in this step, if that is not `operands`: the
        minibatch or the parameters of this step.

    Returns:
      Parameters and state after the last step.

    Raises:
      ValueError: if `steps` is negative, the adjoint is unknown, the loss is no scalar, a leaf of `params` is
        not floating-point, or `update` returns params or a state of other structure, shapes or dtypes.

    References:
      reverse: Maclaurin et al., 2015 (https://arxiv.org/abs/1502.03492), algorithm 2.
      first_order: Finn et al., 2017 (https://arxiv.org/abs/1703.03400), section 5.2.
      the others: see `Adjoint`.
    """
    adjoint = make_adjoint(adjoint) if isinstance(adjoint, str) else adjoint
    check_adjoint(adjoint)
    if steps < 0:
        raise ValueError(f"steps is {steps}; use 0 or more.")
    if not jax.tree.leaves(trees.require_floats(params)):
        raise ValueError("There are no parameters to move; give params with at least one array.")
    gradient = {
        "reverse": jax.grad,
        "mixed": mixed_gradient,
        "stopped": lambda loss: lambda *args: _stop(jax.grad(loss)(*args)),
    }[adjoint.gradient](scalar(loss))
    offload = adjoint.store == "host"

    def step(operands, moving):
        if offload:
            moving = jax.tree.map(lambda leaf: checkpoint_name(leaf, STATE), moving)
        params, state = moving
        grads = gradient(params, read(operands, state))
        grads = jax.tree.map(lambda leaf: checkpoint_name(leaf, GRADIENT), grads)
        return _require_like(update(operands, grads, params, state), moving)

    moving = (params, state)
    exact = steps if adjoint.last is None else min(adjoint.last, steps)
    if exact < steps:
        now, state = _repeat(step, *_stop((operands, moving)), steps=steps - exact)
        moving = (_restart(now, params), _stop(state))
    return _scan_of(adjoint)(step, operands, moving, steps=exact)


def check_adjoint(adjoint: Adjoint) -> None:
    """Raises an error if the adjoint is invalid or its store needs a memory space the device lacks."""
    if not isinstance(adjoint, Adjoint):
        raise TypeError(f"adjoint is {adjoint!r}; use an Adjoint or the name of one of ADJOINTS.")
    if adjoint.gradient not in GRADIENTS:
        raise ValueError(f"gradient is {adjoint.gradient!r}; use one of {', '.join(GRADIENTS)}.")
    if adjoint.store not in STORES:
        raise ValueError(f"store is {adjoint.store!r}; use one of {', '.join(STORES)}.")
    if adjoint.last is not None and adjoint.last < 0:
        raise ValueError(f"last is {adjoint.last}; use 0 or more, or None for all steps.")
    if adjoint.store != "host":
        return
    device = jax.devices()[0]
    kinds = [memory.kind for memory in device.addressable_memories()]
    if HOST not in kinds:
        raise ValueError(
            f"store 'host' needs memory of kind {HOST!r}, and {device} has {', '.join(kinds)}; "
            "use the adjoint 'recursive', which keeps little on the device."
        )


def _require_like(found: Any, moving: tuple[Tree, Tree]) -> tuple[Tree, Tree]:
    """Returns what `update` found, if it is shaped like the params and the state that it got."""
    if not (isinstance(found, tuple) and len(found) == 2):
        raise ValueError(f"update returns {type(found).__name__}; return a pair (params, state).")
    for name, new, old in zip(("params", "state"), found, moving, strict=True):
        if difference := trees.difference(new, old):
            raise ValueError(
                f"update returns other {name} than it got: {difference}; return them alike."
            )
    return found


def _scan_of(adjoint: Adjoint) -> Callable[..., Any]:
    """Chooses the loop that keeps what `adjoint.store` says."""
    policies = jax.checkpoint_policies
    keep = policies.save_only_these_names(GRADIENT)
    if adjoint.gradient == "reverse":
        # Its derivative passes through the gradient's intermediate results: a saved gradient saves nothing.
        keep = policies.nothing_saveable
    if adjoint.store == "host":
        keep = policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=[GRADIENT, STATE],
            offload_src="device",
            offload_dst=HOST,
        )

    def steps_kept(step, operands, moving, *, steps):
        return _repeat(_forget(step, keep), operands, moving, steps=steps)

    def segments_kept(step, operands, moving, *, steps):
        length = max(math.isqrt(steps), 1)
        count, rest = divmod(steps, length)

        def segment(operands, moving, steps=length):
            return steps_kept(step, operands, moving, steps=steps)

        moving = _repeat(_forget(segment), operands, moving, steps=count)
        # The rest is shorter than a segment and comes first in the backward pass: nothing to forget.
        return segment(operands, moving, steps=rest)

    def all_kept(step, operands, moving, *, steps):
        # A single step needs no loop, which would be traced and compiled again for each derivative.
        return (
            step(operands, moving) if steps == 1 else _repeat(step, operands, moving, steps=steps)
        )

    stores = {"all": all_kept, "steps": steps_kept, "segments": segments_kept, "host": steps_kept}
    return stores[adjoint.store]


def _repeat(
    step: Callable[[Tree, Tree], Tree], operands: Tree, moving: Tree, *, steps: int
) -> Tree:
    return jax.lax.scan(lambda moving, _: (step(operands, moving), None), moving, length=steps)[0]


def _forget(function: Callable, keep: Callable | None = None) -> Callable:
    # Inside a scan nothing can be merged with the forward pass, so the barrier against it would only cost.
    return jax.checkpoint(function, policy=keep, prevent_cse=False)


def _restart(now: Tree, start: Tree) -> Tree:
    """The parameters `now`, which pass their derivative on to `start` unchanged."""
    # Adding zero, and not a difference that is added back, leaves the value exactly as it is.
    return jax.tree.map(lambda now, start: now + (start - _stop(start)), _stop(now), start)


def _stop(tree: Tree) -> Tree:
    return jax.tree.map(jax.lax.stop_gradient, tree)
