"""The peer metajax: tasks spread over the devices, one at a time per CPU device."""

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

import metajax
from benchmarks.harness import cases
from benchmarks.peers import transformer
from benchmarks.peers.compiled import CompiledPeer
from experiments.runtime.devices import largest_divisor, use_every_core
from metajax.models.adapters import from_functions
from metajax.sharding import replicated
from metajax.zoo import models


def make(case: cases.Case, *, adjoint: str | None = None) -> CompiledPeer:
    """Makes the peer.

    Args:
      case: Case.
      adjoint: Adjoint of the inner loop, a key of `metajax.inner.adjoints.ADJOINTS`; None for the default.

    Returns:
      The peer.

    Raises:
      ValueError: If the adjoint is unknown.
    """
    use_every_core(case.tasks)  # as the drivers do
    devices = jax.devices()
    mesh = metajax.task_mesh(devices[: largest_divisor(case.tasks, at_most=len(devices))])
    at_once = 1 if jax.default_backend() == "cpu" else None

    params = cases.make_parameters(case)
    learner = _learner(case, **_adjoint(adjoint))
    made = jax.eval_shape(learner.init, jax.random.key(0), jnp.zeros((1, *case.shape)))
    objective = metajax.query_objective(learner, metajax.cross_entropy)
    meta = made._replace(params=params)
    if jax.tree.map(jnp.shape, made) != jax.tree.map(jnp.shape, meta):
        raise ValueError(
            "the model's parameters differ in shape from the ones that the peers share"
        )
    spread = metajax.over_tasks(mesh, metajax.backprop(objective, tasks_at_once=at_once))

    def meta_grad(meta, data):
        grads, metrics = spread(meta, *data)
        return grads, metrics["loss"]

    by_task = NamedSharding(mesh, PartitionSpec(*mesh.axis_names))
    keys = jax.random.split(jax.random.key(0), case.tasks)
    data = jax.device_put((keys, _episodes(case)), by_task)
    return CompiledPeer(meta_grad, meta, data, replicated(mesh))


def _learner(case: cases.Case, **options) -> metajax.Learner:
    """Makes the learner of a case."""
    rate, loss = cases.INNER_LR[case.network], metajax.cross_entropy
    options.update(steps=case.inner_steps)
    if case.kind == "transformer":
        # Only the shapes of `init` are used. `eps_root` keeps the derivative of Adam's square root finite
        # at zero.
        model = from_functions(
            lambda key, inputs: jax.tree.map(jnp.asarray, cases.make_parameters(case)),
            transformer.apply,
        )
        return metajax.maml(model, loss, rule=optax.adam(rate, eps_root=1e-8), **options)
    if case.kind == "supervised":
        encoder = models.build_model("conv4", outputs=None, filters=case.filters)
        return metajax.protonet(encoder, ways=case.ways)
    model = models.build_model("conv4", outputs=case.ways, filters=case.filters)
    make = metajax.anil if case.adapts == "head" else metajax.maml
    return make(model, loss, rule=optax.sgd(rate), **options)


def _episodes(case: cases.Case) -> metajax.Episode:
    """Makes the tasks of a case."""
    tasks = cases.make_tasks(case)

    def batches(inputs, labels):
        return metajax.Batch(inputs, jnp.broadcast_to(labels, (case.tasks, *labels.shape)))

    return metajax.Episode(
        batches(tasks.support, tasks.support_labels), batches(tasks.query, tasks.query_labels)
    )


def _adjoint(name: str | None) -> dict:
    """Finds an adjoint by its name; raises ValueError for an unknown one."""
    if name is None:
        return {}
    from metajax.inner.adjoints import ADJOINTS

    if name not in ADJOINTS:
        raise ValueError(f"adjoint {name!r} is unknown; use one of {', '.join(ADJOINTS)}.")
    return {"adjoint": ADJOINTS[name]}
