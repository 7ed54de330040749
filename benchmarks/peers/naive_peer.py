"""The peer naive: second-order MAML as JAX examples write it, `vmap` over tasks of a hand-written inner loop.

It runs on one device, uses `lax.conv_general_dilated` and `lax.reduce_window`, and takes the gradient outside
of the `vmap`.
"""

import jax
import jax.numpy as jnp
import optax
from jax import lax

from benchmarks.harness import cases
from benchmarks.peers import transformer
from benchmarks.peers.compiled import CompiledPeer


def make(case: cases.Case) -> CompiledPeer:
    """Makes the peer on JAX's first device.

    Args:
      case: Case.

    Returns:
      The peer.
    """
    task_loss = _prototype_loss(case) if case.kind == "supervised" else _adapted_loss(case)
    tasks = cases.make_tasks(case)

    def mean_loss(params, data):
        return jnp.mean(jax.vmap(task_loss, (None, 0, 0))(params, *data))

    def meta_grad(params, data):
        loss, grads = jax.value_and_grad(mean_loss)(params, data)
        return grads, loss

    device = jax.devices()[0]
    data = jax.device_put((tasks.support, tasks.query), device)
    return CompiledPeer(meta_grad, cases.make_parameters(case), data, device)


def features(params: dict, x: jax.Array) -> jax.Array:
    """Computes the features of conv4.

    Args:
      params: Parameters of `cases.make_parameters`.
      x: Images [B, H, W, C].

    Returns:
      Features [B, D].
    """
    for index in range(cases.BLOCKS):
        x = lax.conv_general_dilated(
            x,
            params[f"conv{index}"]["kernel"],
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
        norm = params[f"norm{index}"]
        x = (x - mean) * lax.rsqrt(variance + cases.NORM_EPSILON["conv"])
        x = jax.nn.relu(x * norm["scale"] + norm["bias"])
        x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return x.reshape(x.shape[0], -1)


def head(params: dict, x: jax.Array) -> jax.Array:
    """Computes logits.

    Args:
      params: Kernel and bias.
      x: Features [B, D].

    Returns:
      Logits [B, N].
    """
    return x @ params["kernel"] + params["bias"]


def _adapted_loss(case: cases.Case):
    """Makes the query loss after adaptation of a task."""
    labels = cases.make_tasks(case._replace(tasks=1))
    rate = cases.INNER_LR[case.network]
    adam = case.kind == "transformer"
    optimizer = optax.adam(rate, eps_root=1e-8) if adam else optax.sgd(rate)

    def adapt(apply, params, inputs):
        def loss(params):
            return _cross_entropy(apply(params, inputs), labels.support_labels)

        state = optimizer.init(params)
        for _ in range(case.inner_steps):
            updates, state = optimizer.update(jax.grad(loss)(params), state, params)
            params = optax.apply_updates(params, updates)
        return params

    def head_only(params, support, query):
        adapted = adapt(head, params["head"], features(params, support))
        return _cross_entropy(head(adapted, features(params, query)), labels.query_labels)

    def everything(params, support, query):
        apply = transformer.apply if adam else lambda p, x: head(p["head"], features(p, x))
        return _cross_entropy(apply(adapt(apply, params, support), query), labels.query_labels)

    return head_only if case.adapts == "head" else everything


def _prototype_loss(case: cases.Case):
    """Makes the query loss of prototypical networks on a task."""
    labels = cases.make_tasks(case._replace(tasks=1)).query_labels

    def loss(params, support, query):
        prototypes = features(params, support).reshape(case.ways, case.shots, -1).mean(1)
        differences = features(params, query)[:, None] - prototypes
        return _cross_entropy(-jnp.sum(differences**2, axis=-1), labels)

    return loss


def _cross_entropy(logits, labels):
    """Computes the mean cross-entropy."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
