"""Networks of policies: models whose outputs are distributions of actions."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from metajax.rl.distributions import ActorCritic, Categorical, Normal, action_size
from metajax.rl.types import Actions, Discrete
from metajax.types import Array, Key, Model, Params, Tree

# The least standard deviation of an action, of ProMP's code; below it log-densities explode.
LEAST_STD = 1e-6


def mlp_policy(
    actions: Actions,
    *,
    hidden: Sequence[int] = (64, 64),
    activation: Callable[[Array], Array] = jnp.tanh,
    critic: bool = False,
    initial_std: float = 1.0,
) -> Model:
    """Makes a fully connected network that outputs a distribution of actions.

    Choices have logits; vectors have a mean that depends on the observation and a standard deviation, learned
    as a logarithm, that does not. The last layer's leaves lie below `head`.

    Args:
      actions: Kind of the actions.
      hidden: Widths of the hidden layers.
      activation: Function applied after each hidden layer.
      critic: Whether a second network of the same widths predicts the value: outputs are `ActorCritic`.
      initial_std: Standard deviation of the actions at the start, in their units.

    Returns:
      A model from observations [B, ...], an array or a tree of arrays, to a distribution [B].

    Raises:
      ValueError: If `initial_std` is not above zero.

    Example:
      >>> model = mlp_policy(metajax.rl.Discrete(3), hidden=(8,))
      >>> params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((5, 2)))
      >>> model.apply(params, jnp.zeros((5, 2))).logits.shape
      (5, 3)
    """
    if not initial_std > 0:
        raise ValueError(f"initial_std is {initial_std}; use a number above 0, such as 1.")
    outputs = action_size(actions)

    def init(key: Key, inputs: Tree) -> Params:
        policy_key, critic_key = jax.random.split(key)
        features = flattened(inputs).shape[-1]
        params: dict[str, Any] = init_mlp(policy_key, (features, *hidden, outputs), last_scale=0.1)
        if not isinstance(actions, Discrete):
            params["head"]["log_std"] = jnp.full(outputs, jnp.log(initial_std))
        if critic:
            params["critic"] = init_mlp(critic_key, (features, *hidden, 1))
        return params

    def apply(params: Params, inputs: Tree) -> Any:
        observed = flattened(inputs)
        found = apply_mlp(params, observed, activation=activation)
        policy = distribution(actions, found, params["head"].get("log_std"))
        if not critic:
            return policy
        value = apply_mlp(params["critic"], observed, activation=activation)
        return ActorCritic(policy, value[:, 0])

    return Model(init, apply)


def distribution(actions: Actions, outputs: Array, log_std: Array | None = None) -> Any:
    """Makes the distribution of actions from the outputs of a network.

    Args:
      actions: Kind of the actions.
      outputs: Logits or means [..., A].
      log_std: Logarithms of the standard deviations [A]; for vectors only.

    Returns:
      `Categorical` or `Normal` [...].

    Example:
      >>> distribution(metajax.rl.Discrete(3), jnp.zeros((5, 3))).logits.shape
      (5, 3)
    """
    if isinstance(actions, Discrete):
        return Categorical(outputs)
    if log_std is None:
        raise ValueError(
            "Actions that are vectors need log_std, the logarithms of their deviations."
        )
    floor = jnp.log(jnp.asarray(LEAST_STD, outputs.dtype))
    return Normal(outputs, jnp.broadcast_to(jnp.maximum(log_std, floor), outputs.shape))


def flattened(inputs: Tree) -> Array:
    """Joins the leaves of observations [B, ...] into one float array [B, D].

    Args:
      inputs: Array or tree of arrays [B, ...].

    Returns:
      Features [B, D]; integers and booleans become floats.

    Example:
      >>> flattened({"place": jnp.zeros((5, 2)), "map": jnp.zeros((5, 3, 3))}).shape
      (5, 11)
    """
    leaves = [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(inputs)]
    dtype = jnp.result_type(float, *[leaf.dtype for leaf in leaves])
    return jnp.concatenate([leaf.astype(dtype) for leaf in leaves], axis=-1)


def init_mlp(key: Key, widths: Sequence[int], *, last_scale: float = 1.0) -> dict[str, Any]:
    """Draws the layers of a fully connected network, by Glorot's uniform distribution; biases are zero.

    Args:
      key: Random key; consumed.
      widths: Widths of the input, the hidden layers and the output.
      last_scale: Factor of the last layer's weights; a small one starts near the uniform policy.

    Returns:
      Dict of layers `hidden0`, `hidden1` and so on, and `head`, each with `kernel` and `bias`.

    Example:
      >>> sorted(init_mlp(jax.random.key(0), (2, 8, 3)))
      ['head', 'hidden0']
    """
    keys = jax.random.split(key, len(widths) - 1)
    draw = jax.nn.initializers.glorot_uniform()
    layers = {}
    for index, (key, before, after) in enumerate(zip(keys, widths, widths[1:], strict=False)):
        last = index == len(widths) - 2
        kernel = draw(key, (before, after)) * (last_scale if last else 1.0)
        layers["head" if last else f"hidden{index}"] = {"kernel": kernel, "bias": jnp.zeros(after)}
    return layers


def apply_mlp(
    params: Params, inputs: Array, *, activation: Callable[[Array], Array] = jnp.tanh
) -> Array:
    """Applies a network of `init_mlp` to inputs [..., D].

    Args:
      params: Layers.
      inputs: Features [..., D].
      activation: Function applied after each hidden layer.

    Returns:
      Outputs [..., width of the head].

    Example:
      >>> apply_mlp(init_mlp(jax.random.key(0), (2, 8, 3)), jnp.zeros((5, 2))).shape
      (5, 3)
    """
    for index in range(sum(name.startswith("hidden") for name in params)):
        layer = params[f"hidden{index}"]
        inputs = activation(inputs @ layer["kernel"] + layer["bias"])
    return inputs @ params["head"]["kernel"] + params["head"]["bias"]
