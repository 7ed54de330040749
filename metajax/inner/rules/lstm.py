"""Meta-LSTM's inner rule: the parameters are the cell state of an LSTM that all of them share."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from metajax import trees
from metajax.deprecation import renamed_arguments
from metajax.inner.rules.base import learned_transformation
from metajax.types import Array, Params

CUT = 10.0  # p of the paper: gradients below exp(-p) are read by value, larger ones by logarithm and sign


class LstmRule(NamedTuple):
    """Learned parameters of `lstm_rule`; no shape depends on the parameters that it updates.

    Attributes:
      kernel: Weights [2 + units, 4 units] of the LSTM that reads gradients; gates are input, forget,
        candidate, output.
      bias: Biases [4 units] of that LSTM.
      gates: Weights [2, units + 2] of the forget gate and of the input gate: for the LSTM's hidden state, the
        parameter's value, and the gate's previous value.
      gate_bias: Biases [2] of both gates.
    """

    kernel: Array
    bias: Array
    gates: Array
    gate_bias: Array


class LstmRuleState(NamedTuple):
    """State of a task, of the widest dtype among the parameters, at least float32.

    Attributes:
      hidden: Hidden states of the LSTM, [units, ...] for each leaf [...].
      cell: Cell states of the LSTM, [units, ...] for each leaf.
      gates: Previous values of the two gates, [2, ...] for each leaf; without meaning before the first step.
      count: Number of steps taken, an int scalar.
    """

    hidden: Params
    cell: Params
    gates: Params
    # Named as in optax's own states; the tuple's method is not needed.
    count: Array  # pyright: ignore[reportIncompatibleMethodOverride]


@renamed_arguments(rate="learning_rate")
def lstm_rule(
    learning_rate: float, *, units: int = 20, seed: int = 0
) -> optax.GradientTransformationExtraArgs:
    """Makes the rule of Meta-LSTM: params <- forget * params - input * grads.

    Both gates see one parameter at a time: the hidden state of an LSTM that reads the parameter's gradients,
    its value, and the gate's previous value. Gradients are constants in the meta-gradient, as in the paper.
    The paper's gates also read the loss, which is the same for all parameters; these do not.

    Args:
      learning_rate: First value of the input gates, the step size, in (0, 1); forget gates start near one.
      units: Units of the LSTM, an int of 1 or more. A step stores about six times as many numbers per
        parameter for the backward pass.
      seed: Seed of the first weights.

    Returns:
      A rule whose learned parameters are an `LstmRule` of the widest dtype among the leaves, at least
      float32.

    Raises:
      ValueError: If `learning_rate` is not between 0 and 1, or `units` is below 1.

    Example:
      >>> rule = lstm_rule(0.01, units=4)
      >>> state = jax.eval_shape(rule.init, jnp.ones(3))
      >>> state.learned.value.kernel.shape, state.state.hidden.shape
      ((6, 16), (4, 3))

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
        # The LSTM's own forget gate starts open, with a bias of one.
        bias = jnp.zeros(4 * units, dtype).at[units : 2 * units].set(1)
        # The forget gate starts open, sigmoid(5) = 0.993; the input gate at `learning_rate`, by its logit.
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
        chex.assert_trees_all_equal_shapes(grads, params)
        *parts, count = state
        moved = jax.tree.map(
            lambda *leaf: _move(learned, *leaf, first=count == 0), grads, *parts, params
        )
        updates, hidden, cell, gates = (
            jax.tree.map(lambda _, leaf, i=i: leaf[i], grads, moved) for i in range(4)
        )
        return updates, LstmRuleState(hidden, cell, gates, count + 1)

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
    """Computes the update of a leaf [...], and its hidden state, cell state and gates after the step."""
    shape, units, dtype = grad.shape, len(hidden), hidden.dtype
    learned = jax.tree.map(lambda leaf: leaf.astype(dtype), learned)
    grad = jax.lax.stop_gradient(grad).reshape(-1).astype(dtype)
    value = value.reshape(-1).astype(dtype)
    hidden, cell, gates = (x.reshape(len(x), -1) for x in (hidden, cell, gates))
    # Previous gates start from the gates' biases, which are learned: the start of a task does not see them.
    gates = jnp.where(first, jax.nn.sigmoid(learned.gate_bias)[:, None], gates)
    # Units before parameters: with the few units last, a meta-gradient takes a third longer on a CPU.
    made = learned.kernel.T @ jnp.concatenate([log_and_sign(grad), hidden]) + learned.bias[:, None]
    write, keep, candidate, show = jnp.split(made, 4)
    cell = jax.nn.sigmoid(keep) * cell + jax.nn.sigmoid(write) * jnp.tanh(candidate)
    hidden = jax.nn.sigmoid(show) * jnp.tanh(cell)
    # Eq. 3 and 4: the paper's gates read the LSTM's hidden state, the parameter and their previous value.
    read = learned.gates[:, :units] @ hidden + learned.gates[:, units, None] * value
    read += learned.gates[:, units + 1, None] * gates + learned.gate_bias[:, None]
    gates = jax.nn.sigmoid(read)
    # Eq. 2, less the parameter: (forget - 1) * value - input * grad.
    update = ((gates[0] - 1) * value - gates[1] * grad).reshape(shape)
    hidden, cell, gates = (x.reshape(len(x), *shape) for x in (hidden, cell, gates))
    return update, hidden, cell, gates


def log_and_sign(grad: Array) -> Array:
    """Encodes gradients of any magnitude as two numbers of about [-1, 1].

    A gradient of at least exp(-p), p = 10, becomes its logarithm over p and its sign; a smaller one -1 and
    exp(p) times its value.

    Args:
      grad: Gradient [...].

    Returns:
      Features [2, ...].

    Reference: Andrychowicz et al., 2016 (https://arxiv.org/abs/1606.04474), appendix A.
    """
    size = jnp.abs(grad)
    large = size >= jnp.exp(-CUT)
    # The inner `where` keeps the logarithm's derivative finite for small gradients, whose branch is unused.
    logarithm = jnp.log(jnp.where(large, size, 1)) / CUT
    return jnp.stack(
        [
            jnp.where(large, logarithm, -1),
            jnp.where(large, jnp.sign(grad), jnp.exp(CUT) * grad),
        ]
    )
