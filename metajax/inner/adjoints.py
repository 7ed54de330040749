"""Adjoints: ways to differentiate through inner steps, which trade time for memory.

An adjoint never changes the adapted parameters; only `truncated` and `first_order` change a derivative. The
backward pass has two costs: the derivative of each inner gradient, and the values stored to compute it.
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

# Names of values that checkpoint policies select.
GRADIENT, STATE = "inner_gradient", "inner_state"
GRADIENTS = ("reverse", "mixed", "stopped")
STORES = ("all", "steps", "segments", "host")
HOST = "pinned_host"  # JAX's name of the host's memory


class Adjoint(NamedTuple):
    """A way to differentiate through inner steps.

    Attributes:
      gradient: Derivative of an inner gradient, a string. `"reverse"`: reverse over reverse mode, exact for
        every loss. `"mixed"`: forward over reverse mode, which stores only the parameters of a step and
        needs symmetric second derivatives; `mixed_mode_error` checks a loss for them. `"stopped"`: inner
        gradients are constants (first order), and the derivative passes only through the rule's updates.
      store: Values stored for the backward pass, a string. `"all"`: all intermediate results. `"steps"`: the
        state before each step and, with mixed gradients, the inner gradient. `"segments"`: the state before
        one in about sqrt(S) steps; the rest is recomputed from there. `"host"`: the state before each step
        and the inner gradient, in the host's memory.
      last: Number of last steps that are differentiated, an int of 0 or more; None differentiates all.
        Earlier steps pass the derivative with respect to the initial parameters on unchanged and have no
        other derivative, so 0 is first-order MAML.

    Example:
      >>> short = Adjoint("mixed", "steps", last=2)
      >>> def loss(weights, target):
      ...     return jnp.sum((weights - target) ** 2)
      >>> def update(target, grads, weights, state):
      ...     return weights - 0.1 * grads, state
      >>> options = {"steps": 20, "adjoint": short}
      >>> weights, _ = metajax.unroll(loss, update, jnp.zeros(2), (), jnp.ones(2), **options)
      >>> weights.shape
      (2,)

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
    """Finds an adjoint by its name in `ADJOINTS`.

    Args:
      name: Name, such as "remat".

    Returns:
      The adjoint.

    Raises:
      ValueError: If no adjoint has this name; the message lists the nearest names.
    """
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
    """Runs `steps` inner steps of gradient descent, or of any other rule, differentiated by `adjoint`.

    The derivative is that of a plain Python loop over `jax.grad(loss)` and `update`; the adjoint chooses its
    cost. Two or more steps are one `jax.lax.scan`, so compile time does not grow with their number.

    No function may close over values that are being differentiated: pass them in `operands`.

    Costs of the adjoints of `metajax.ADJOINTS`, for S steps:

    | adjoint | derivative | memory | arithmetic |
    |---|---|---|---|
    | reverse | exact | all intermediate results of S steps | least |
    | remat | exact | S states, results of one step | each step computed twice |
    | mixed | exact if second derivatives are symmetric | S states and gradients | about as remat |
    | recursive | like mixed | about 2 sqrt(S) states and gradients | one more forward pass |
    | offload | like mixed | as mixed, in the host's memory | as mixed, and the transfer |
    | truncated | of the last 5 steps | as mixed, of 5 steps | as mixed, of 5 steps |
    | first_order | inner gradients are constants | least | no second derivatives |

    Args:
      loss: Inner loss, (params, result of `read`) -> scalar.
      update: One step, (operands, grads, params, state) -> (params, state), of the same structure, shapes and
        dtypes as its arguments.
      params: Initial parameters, a tree of floating-point arrays; inner gradients are with respect to them.
      state: Tree of arrays that change from step to step besides the parameters, such as momenta, a counter
        or a key; () for none.
      operands: Tree of arrays that do not change, such as step sizes, data and fixed parameters.
      steps: Number of steps S, an int of 0 or more.
      adjoint: Way to differentiate, an `Adjoint` or a name in `ADJOINTS`.
      read: Function (operands, state) -> second argument of the loss, such as the minibatch or the parameters
        of this step; by default the operands.

    Returns:
      Parameters and state after the last step, a pair of trees like `params` and `state`.

    Raises:
      ValueError: If `steps` is negative, the adjoint is unknown, the loss is not a scalar, `params` has no
        leaves or one that is not floating-point, or `update` returns params or a state of another
        structure, shape or dtype.
      TypeError: If `adjoint` is neither an `Adjoint` nor a string.

    Example:
      Learns the step size of three steps; only the state before each step is stored.

      >>> def loss(weights, operands):
      ...     _, target = operands
      ...     return jnp.sum((weights - target) ** 2)
      >>> def update(operands, grads, weights, state):
      ...     step_size, _ = operands
      ...     return weights - step_size * grads, state
      >>> def outer(step_size):
      ...     operands = (step_size, jnp.ones(2))
      ...     weights, _ = unroll(loss, update, jnp.zeros(2), (), operands, steps=3, adjoint="remat")
      ...     return jnp.sum((weights - 1) ** 2)
      >>> float(jax.grad(outer)(0.25))
      -0.75

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
        raise ValueError("There are no parameters to adapt; give params with at least one array.")
    gradient = {
        "reverse": jax.grad,
        "mixed": mixed_gradient,
        "stopped": lambda loss: lambda *args: _stop(jax.grad(loss)(*args)),
    }[adjoint.gradient](scalar(loss))
    offload = adjoint.store == "host"

    def step(operands, carry):
        if offload:
            carry = jax.tree.map(lambda leaf: checkpoint_name(leaf, STATE), carry)
        params, state = carry
        grads = gradient(params, read(operands, state))
        grads = jax.tree.map(lambda leaf: checkpoint_name(leaf, GRADIENT), grads)
        return _require_like(update(operands, grads, params, state), carry)

    carry = (params, state)
    differentiated = steps if adjoint.last is None else min(adjoint.last, steps)
    if differentiated < steps:
        # Truncation: the first steps run on stopped values, then the parameters get a straight-through
        # derivative to where they started.
        now, state = _repeat(step, *_stop((operands, carry)), steps=steps - differentiated)
        carry = (_straight_through(now, params), _stop(state))
    return _loop_for(adjoint)(step, operands, carry, steps=differentiated)


def check_adjoint(adjoint: Adjoint) -> None:
    """Raises an error if the adjoint is invalid or its store needs a memory space the device lacks.

    Args:
      adjoint: Adjoint to check.

    Raises:
      TypeError: If it is not an `Adjoint`.
      ValueError: If one of its fields has an unknown value, or the store is "host" on a device without it.
    """
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
            "use the adjoint 'recursive', which stores little on the device."
        )


def _require_like(found: Any, carry: tuple[Tree, Tree]) -> tuple[Tree, Tree]:
    """Returns the result of `update` if it has the structure, shapes and dtypes of the carry."""
    if not (isinstance(found, tuple) and len(found) == 2):
        raise ValueError(f"update returns {type(found).__name__}; return a pair (params, state).")
    for name, new, old in zip(("params", "state"), found, carry, strict=True):
        if difference := trees.difference(new, old):
            raise ValueError(
                f"update returns other {name} than it got: {difference}; return them alike."
            )
    return found


def _loop_for(adjoint: Adjoint) -> Callable[..., Any]:
    """Chooses the loop over steps that stores the values named by `adjoint.store`."""
    policies = jax.checkpoint_policies
    keep = policies.save_only_these_names(GRADIENT)
    if adjoint.gradient == "reverse":
        # The derivative passes through the gradient's intermediate results: storing the gradient saves none.
        keep = policies.nothing_saveable
    if adjoint.store == "host":
        keep = policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=[GRADIENT, STATE],
            offload_src="device",
            offload_dst=HOST,
        )

    def store_steps(step, operands, carry, *, steps):
        return _repeat(_rematerialize(step, keep), operands, carry, steps=steps)

    def store_segments(step, operands, carry, *, steps):
        length = max(math.isqrt(steps), 1)
        count, rest = divmod(steps, length)

        def segment(operands, carry, steps=length):
            return store_steps(step, operands, carry, steps=steps)

        carry = _repeat(_rematerialize(segment), operands, carry, steps=count)
        # The remainder is shorter than a segment and comes first in the backward pass, which needs its states
        # at once: recomputing them would save no memory.
        return segment(operands, carry, steps=rest)

    def store_all(step, operands, carry, *, steps):
        # A single step needs no loop, which would be traced and compiled again for each derivative.
        return step(operands, carry) if steps == 1 else _repeat(step, operands, carry, steps=steps)

    stores = {
        "all": store_all,
        "steps": store_steps,
        "segments": store_segments,
        "host": store_steps,
    }
    return stores[adjoint.store]


def _repeat(step: Callable[[Tree, Tree], Tree], operands: Tree, carry: Tree, *, steps: int) -> Tree:
    """Runs a step `steps` times in one scan."""
    return jax.lax.scan(lambda carry, _: (step(operands, carry), None), carry, length=steps)[0]


def _rematerialize(function: Callable, keep: Callable | None = None) -> Callable:
    """Recomputes a function in the backward pass, except for the values that the policy `keep` stores."""
    # Within a scan XLA cannot merge the recomputation with the forward pass; a barrier would only cost time.
    return jax.checkpoint(function, policy=keep, prevent_cse=False)


def _straight_through(now: Tree, start: Tree) -> Tree:
    """Returns the parameters `now`, whose derivative with respect to `start` is the identity."""
    # Adding start - start, which is exactly zero, leaves the value bit for bit as it is.
    return jax.tree.map(lambda now, start: now + (start - _stop(start)), _stop(now), start)


def _stop(tree: Tree) -> Tree:
    """Stops the gradient of all leaves."""
    return jax.tree.map(jax.lax.stop_gradient, tree)
