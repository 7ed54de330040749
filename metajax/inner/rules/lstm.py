"""Meta-LSTM's inner rule: the parameters are the cell state of an LSTM, the same for every parameter."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from metajax import trees
from metajax.inner.rules.base import learned_transformation
from metajax.types import Array, Params

CUT = 10.0  # p: gradients under exp(-p) are told by their value, larger ones by logarithm and sign


class LstmRule(NamedTuple):
    """What there is to learn; nothing of it depends on the shapes of the parameters that it moves.

    Attributes:
      kernel: [2 + units, 4 units] of the LSTM that reads the gradient: input, forget, candidate, output.
      bias: [4 units].
      gates: [2, units + 2] of the forget gate and of the input gate: of what that LSTM says, of the
        parameter, and of the gate's last value.
      gate_bias: [2].
    """

    kernel: Array
    bias: Array
    gates: Array
    gate_bias: Array


class LstmRuleState(NamedTuple):
    """State of a task, of the widest dtype among the parameters, float32 at least.

    Attributes:
      hidden: Hidden states of the LSTM, [units, ...] for each leaf [...].
      cell: Its cell states, likewise.
      gates: Last values of the two gates, [2, ...] for each leaf; of no meaning before the first step.
      count: Number of steps taken, a scalar.
    """

    hidden: Params
    cell: Params
    gates: Params
    count: Array


def lstm_rule(
    learning_rate: float, *, units: int = 20, seed: int = 0
) -> optax.GradientTransformationExtraArgs:
    """Moves parameters as an LSTM its cell state: params <- forget * params - input * grads.

    Both gates look at one parameter at a time: at what an LSTM makes of its gradients so far, at its value
    and at their own last value. Gradients count as constants in the meta-gradient, as in the paper. Its gates
    also read the loss, which is the same for all parameters; these do not.

    Args:
      learning_rate: where input gates start, the step size; forget gates start near one. Under 1.
      units: of the LSTM. A step keeps about six times as many numbers a parameter for the backward pass.
      seed: of its first weights.

    Returns:
      A rule that learns an `LstmRule` of the widest dtype among the leaves, float32 at least.

    Raises:
      ValueError: where `learning_rate` is not between 0 and 1, or `units` under 1.

    Reference: Ravi and Larochelle, 2017 (https://openreview.net/forum?id=rJY0-Kcll), eq. 2 to 4, sections 3.2
    and, for gradients as the LSTM reads them, 3.3.
    """
    if not 0 < learning_rate < 1:
        raise ValueError(
            f"learning_rate is {learning_rate}; use a number between 0 and 1, such as 0.01."
        )
    if units < 1:
        raise ValueError(f"units is {units}; use 1 or more.")

    def init(params: Params) -> LstmRule:
        dtype = trees.float_dtype(params)
        kernel_key, gates_key = jax.random.split(jax.random.key(seed))
        kernel = jax.nn.initializers.glorot_uniform()(kernel_key, (2 + units, 4 * units), dtype)
        gates = 0.01 * jax.random.normal(gates_key, (2, units + 2), dtype)
        bias = jnp.zeros(4 * units, dtype).at[units : 2 * units].set(1)
        # Open and nearly shut: sigmoid(5) leaves 0.993 of a parameter, and the step is `learning_rate`.
        gate_bias = jnp.array([5.0, jnp.log(learning_rate) - jnp.log1p(-learning_rate)], dtype)
        return LstmRule(kernel, bias, gates, gate_bias)

    def start(params: Params) -> LstmRuleState:
        dtype = trees.float_dtype(params)

        def zeros(count):
            return jax.tree.map(lambda p: jnp.zeros((count, *p.shape), dtype), params)

        return LstmRuleState(zeros(units), zeros(units), zeros(2), jnp.zeros((), jnp.int32))

    def update(learned, grads, state, params, **extra):
        del extra
        if params is None:
            raise ValueError("params is None; pass the current ones, which the gates read.")
        *state, count = state
        moved = jax.tree.map(
            lambda *leaf: _move(learned, *leaf, first=count == 0), grads, *state, params
        )
        updates, *state = (
            jax.tree.map(lambda _, leaf, i=i: leaf[i], grads, moved) for i in range(4)
        )
        return updates, LstmRuleState(*state, count + 1)

    return learned_transformation(init, update, start)


def _move(
    learned: LstmRule,
    grad: Array,
    hidden: Array,
    cell: Array,
    gates: Array,
    value: Array,
    *,
    first: Array,
) -> tuple[Array, Array, Array, Array]:
    """The update of a leaf [...], and its state after it."""
    shape, units, dtype = grad.shape, len(hidden), hidden.dtype
    learned = jax.tree.map(lambda leaf: leaf.astype(dtype), learned)
    grad = jax.lax.stop_gradient(grad).reshape(-1).astype(dtype)
    value = value.reshape(-1).astype(dtype)
    hidden, cell, gates = (x.reshape(len(x), -1) for x in (hidden, cell, gates))
    # Gates start from their biases, which are learned, and which the start of a task does not know.
    gates = jnp.where(first, jax.nn.sigmoid(learned.gate_bias)[:, None], gates)
    # Units before parameters: with the few units last, a meta-gradient takes a third longer on a CPU.
    made = learned.kernel.T @ jnp.concatenate([log_and_sign(grad), hidden]) + learned.bias[:, None]
    write, keep, candidate, show = jnp.split(made, 4)
    cell = jax.nn.sigmoid(keep) * cell + jax.nn.sigmoid(write) * jnp.tanh(candidate)
    hidden = jax.nn.sigmoid(show) * jnp.tanh(cell)
    read = learned.gates[:, :units] @ hidden + learned.gates[:, units, None] * value
    read += learned.gates[:, units + 1, None] * gates + learned.gate_bias[:, None]
    gates = jax.nn.sigmoid(read)
    update = (gates[0] - 1) * value - gates[1] * grad
    return (
        update.reshape(shape),
        *(x.reshape(len(x), *shape) for x in (hidden, cell, gates)),
    )


def log_and_sign(grad: Array) -> Array:
    """A gradient [...] as two numbers [2, ...]: logarithm and sign, or where it is small -1 and the value.

    Reference: Andrychowicz et al., 2016 (https://arxiv.org/abs/1606.04474), appendix A.
    """
    size = jnp.abs(grad)
    large = size >= jnp.exp(-CUT)
    logarithm = jnp.log(jnp.where(large, size, 1)) / CUT
    return jnp.stack(
        [
            jnp.where(large, logarithm, -1),
            jnp.where(large, jnp.sign(grad), jnp.exp(CUT) * grad),
        ]
    )
