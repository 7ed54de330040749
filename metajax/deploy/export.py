"""Programs of trained learners for other machines: adaptation and answers in one function."""

from collections.abc import Sequence

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jax.core import InconclusiveDimensionOperation

from metajax.deploy.bundle import Bundle
from metajax.deploy.spec import make_learner_of
from metajax.errors import DataError
from metajax.learners.states import ABSENT
from metajax.types import Array, Batch

PLATFORMS = ("cpu", "cuda", "tpu")
"""Platforms that a program is made for."""


def export_program(
    bundle: Bundle, *, ways: int | None = None, platforms: Sequence[str] = PLATFORMS
) -> jax.export.Exported:
    """Makes a program of a trained learner, with its parameters and its preprocessing inside.

    The program is a function (support [S, H, W, C] uint8, labels [S] int32, queries [Q, H, W, C] uint8) ->
    probabilities [Q, N] float32, for any S and Q. Classes without a label get no probability. Each query is
    answered alone. `exported.serialize()` are bytes that `jax.export.deserialize` reads; JAX reads them for
    six months after the version that wrote them. Keep the bundle, and export anew.

    Args:
      bundle: The trained learner.
      ways: Number of classes N; None is that of its training.
      platforms: Platforms to make it for.

    Returns:
      The program.

    Raises:
      DataError: If the learner cannot tell so many classes apart, or cannot be exported with symbolic sizes.

    Example:
      >>> import metajax.deploy as deploy
      >>> spec = deploy.LearnerSpec("protonet", "mlp", ways=2, examples=4)
      >>> meta = deploy.make_learner_of(spec).init(jax.random.key(0), jnp.zeros((2, 4, 4, 1)))
      >>> program = export_program(deploy.Bundle(spec, deploy.ImageForm((4, 4, 1), (0.5,), (0.5,)), meta))
      >>> pixels = np.zeros((3, 4, 4, 1), np.uint8)
      >>> program.call(pixels, np.array([0, 1, 1], np.int32), pixels[:1]).shape
      (1, 2)
    """
    spec, form = bundle.spec, bundle.images
    ways = spec.ways if ways is None else ways
    if ways < 2 or (ways != spec.ways and not spec.any_ways):
        least = "2 or more" if spec.any_ways else str(spec.ways)
        raise DataError(f"ways is {ways}; for this {spec.learner} use {least}")
    learner = make_learner_of(spec, ways=ways, alone=True, plain=True)
    meta = jax.tree.map(np.asarray, bundle.meta)
    temperature = np.float32(bundle.temperature)

    def whole(support: Array, labels: Array, queries: Array) -> Array:
        key = jax.random.key(0)
        batch = Batch(form.normalized(support), labels)
        fast = learner.adapt(meta, learner.start(meta, key, batch), key, batch)
        outputs = learner.predict(meta, fast, form.normalized(queries)) / temperature
        present = (labels[:, None] == jnp.arange(ways)).any(0)
        return jax.nn.softmax(jnp.where(present, outputs, ABSENT), -1)

    examples, queries = jax.export.symbolic_shape("s, q", constraints=["s >= 2", "q >= 1"])
    arguments = (
        jax.ShapeDtypeStruct((examples, *form.shape), np.uint8),
        jax.ShapeDtypeStruct((examples,), np.int32),
        jax.ShapeDtypeStruct((queries, *form.shape), np.uint8),
    )
    try:
        return jax.export.export(jax.jit(whole), platforms=tuple(platforms))(*arguments)
    except InconclusiveDimensionOperation as error:
        raise DataError(
            f"{spec.learner} on {spec.network} depends on the number of examples in its very program and "
            "cannot be exported for all"
        ) from error
