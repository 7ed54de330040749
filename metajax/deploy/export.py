"""Programs of trained learners for other machines: adaptation and answers, as one function or apart."""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jax.core import InconclusiveDimensionOperation

from metajax.deploy.bundle import Bundle
from metajax.deploy.onnx import to_onnx
from metajax.deploy.spec import LearnerSpec, make_learner_of
from metajax.errors import DataError
from metajax.learners.states import ABSENT
from metajax.models.precision import in_precision
from metajax.nn.conv import PLAIN
from metajax.types import Array, Batch
from metajax.zoo.models import MODELS, build_model

PLATFORMS = ("cpu", "cuda", "tpu")
"""Platforms that a program of JAX is made for."""
PARTS = ("whole", "adapt", "predict", "features")
"""Functions that a program can be."""


class Part(NamedTuple):
    """A function of arrays that a program is made of.

    Attributes:
      function: Function of the arguments; it returns a list of arrays.
      arguments: Shapes and dtypes of the arguments; sizes of the task are symbolic.
      inputs: Names of the arguments.
      outputs: Names of the results.
    """

    function: Callable[..., list[Array]]
    arguments: tuple[jax.ShapeDtypeStruct, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def part_of(bundle: Bundle, part: str = "whole", *, ways: int | None = None) -> Part:
    """Makes a function of a trained learner, with its parameters and its preprocessing inside.

    "whole" takes support pictures [S, H, W, C] uint8, their labels [S] int32 and queries [Q, H, W, C] uint8,
    and returns probabilities [Q, N] float32. "adapt" takes the support pictures and labels and returns the
    arrays of the task's state; "predict" takes these and queries, and returns the probabilities. Classes
    without a label get no probability. Each query is answered alone. "features" takes queries and returns
    what the encoder makes of them, [Q, D], for learners that compare features.

    Args:
      bundle: The trained learner.
      part: One of `PARTS`.
      ways: Number of classes N; None is that of its training.

    Returns:
      The function, and what it takes.

    Raises:
      DataError: If the learner cannot tell so many classes apart, or there is no such part.

    Example:
      >>> import metajax.deploy as deploy
      >>> spec = deploy.LearnerSpec("protonet", "mlp", ways=2, examples=4)
      >>> meta = deploy.make_learner_of(spec).init(jax.random.key(0), jnp.zeros((2, 4, 4, 1)))
      >>> bundle = deploy.Bundle(spec, deploy.ImageForm((4, 4, 1), (0.5,), (0.5,)), meta)
      >>> part_of(bundle, "adapt").outputs  # class sums, their counts, and which classes there are
      ('state0', 'state1', 'present')
    """
    spec, form = bundle.spec, bundle.images
    ways = spec.ways if ways is None else ways
    if ways < 2 or (ways != spec.ways and not spec.any_ways):
        least = "2 or more" if spec.any_ways else str(spec.ways)
        raise DataError(f"ways is {ways}; for this {spec.learner} use {least}")
    if part not in PARTS:
        raise DataError(f"part is {part}; use {', '.join(PARTS)}")
    learner = make_learner_of(spec, ways=ways, alone=True, plain=True, about=form.about)
    meta = jax.tree.map(np.asarray, bundle.meta)
    temperature = np.float32(bundle.temperature)

    def adapted(support: Array, labels: Array) -> tuple[Any, Array]:
        key = jax.random.key(0)
        batch = Batch(form.normalized(support), labels)
        fast = learner.adapt(meta, learner.start(meta, key, batch), key, batch)
        return fast, (labels[:, None] == jnp.arange(ways)).any(0)

    def adapt(support: Array, labels: Array) -> list[Array]:
        return jax.tree.leaves(adapted(support, labels))

    def answered(fast: Any, present: Array, queries: Array) -> list[Array]:
        outputs = learner.predict(meta, fast, form.normalized(queries)) / temperature
        return [jax.nn.softmax(jnp.where(present, outputs, ABSENT), -1)]

    def whole(support: Array, labels: Array, queries: Array) -> list[Array]:
        fast, present = adapted(support, labels)
        return answered(fast, present, queries)

    if part == "features":
        return _features(bundle)

    def pictures(count) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((count, *form.shape), np.uint8)

    def examples(count) -> tuple[jax.ShapeDtypeStruct, ...]:
        return pictures(count), jax.ShapeDtypeStruct((count,), np.int32)

    # All sizes of a program have to occur in its arguments, so that each part has sizes of its own.
    if part == "whole":
        names = ("support", "labels", "queries")
        count, asked = jax.export.symbolic_shape("s, q", constraints=["s >= 2", "q >= 1"])
        return Part(whole, (*examples(count), pictures(asked)), names, ("probabilities",))
    (count,) = jax.export.symbolic_shape("s", constraints=["s >= 2"])
    learned = examples(count)
    state, structure = jax.tree.flatten(jax.eval_shape(adapted, *learned))
    names = (*(f"state{i}" for i in range(len(state) - 1)), "present")
    if part == "adapt":
        return Part(adapt, learned, ("support", "labels"), names)

    def predict(*arrays: Array) -> list[Array]:
        fast, present = jax.tree.unflatten(structure, arrays[:-1])
        return answered(fast, present, arrays[-1])

    (asked,) = jax.export.symbolic_shape("q", constraints=["q >= 1"])
    if any(not isinstance(size, int) for leaf in state for size in leaf.shape):
        count, asked = jax.export.symbolic_shape("s, q", constraints=["s >= 2", "q >= 1"])
        state = jax.tree.leaves(jax.eval_shape(adapted, *examples(count)))
    return Part(predict, (*state, pictures(asked)), (*names, "queries"), ("probabilities",))


def has_features(spec: LearnerSpec) -> bool:
    """Finds out whether a learner compares features that its encoder alone makes of a picture.

    Args:
      spec: Description of the learner.

    Returns:
      True if the part "features" can be made.

    Example:
      >>> from metajax.deploy import LearnerSpec
      >>> has_features(LearnerSpec("protonet", "mlp", 5, 5)), has_features(LearnerSpec("maml", "mlp", 5, 5))
      (True, False)
    """
    compares = (
        spec.entry.encoder_of is not None and spec.learner != "relation"
    )  # which compares maps
    return compares and not spec.sees_the_batch and spec.network in MODELS


def _features(bundle: Bundle) -> Part:
    """Makes the function of the encoder."""
    spec, form = bundle.spec, bundle.images
    if not has_features(spec):
        raise DataError(f"{spec.learner} has no features of a picture alone; export another part")
    options = dict(spec.network_options)
    if "implementation" in MODELS[spec.network].options:
        options["implementation"] = PLAIN
    model = build_model(spec.network, outputs=None, **options)
    encoder = in_precision(model, jnp.dtype(spec.precision))
    params = spec.entry.encoder_of(jax.tree.map(np.asarray, bundle.meta))  # pyright: ignore[reportOptionalCall]

    def features(queries: Array) -> list[Array]:
        return [encoder.apply(params, form.normalized(queries)).astype(jnp.float32)]

    (count,) = jax.export.symbolic_shape("q", constraints=["q >= 1"])
    argument = jax.ShapeDtypeStruct((count, *form.shape), np.uint8)
    return Part(features, (argument,), ("queries",), ("features",))


def export_program(
    bundle: Bundle,
    *,
    ways: int | None = None,
    platforms: Sequence[str] = PLATFORMS,
    part: str = "whole",
) -> jax.export.Exported:
    """Makes a program of JAX of a trained learner, with its parameters and its preprocessing inside.

    The program is a function as `part_of` describes it, for any numbers of pictures. `exported.serialize()`
    are bytes that `jax.export.deserialize` reads; JAX reads them for six months after the version that wrote
    them. Keep the bundle, and export anew.

    Args:
      bundle: The trained learner.
      ways: Number of classes N; None is that of its training.
      platforms: Platforms to make it for.
      part: One of `PARTS`; "whole" returns one array, the others lists of arrays.

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
    with _explained(bundle):
        made = part_of(bundle, part, ways=ways)
        function = made.function
        run = jax.jit(lambda *a: function(*a)[0] if part == "whole" else function(*a))
        return jax.export.export(run, platforms=tuple(platforms))(*made.arguments)


def export_onnx(
    bundle: Bundle, *, ways: int | None = None, part: str = "whole", labels: Sequence[str] = ()
) -> bytes:
    """Makes an ONNX program of a trained learner, with its parameters and its preprocessing inside.

    The program is a function as `part_of` describes it, for any numbers of pictures. Its properties name the
    labels, size, channels and polarity of the pictures. onnxruntime runs it, in a browser too.

    Args:
      bundle: The trained learner.
      ways: Number of classes N; None is that of its training.
      part: One of `PARTS`.
      labels: Names of the classes, for whoever shows its answers.

    Returns:
      The content of an .onnx file.

    Raises:
      DataError: If the learner cannot tell so many classes apart, or uses an operation that ONNX lacks.
      ImportError: If `onnx` is not installed.

    Example:
      >>> import metajax.deploy as deploy
      >>> spec = deploy.LearnerSpec("protonet", "mlp", ways=2, examples=4)
      >>> meta = deploy.make_learner_of(spec).init(jax.random.key(0), jnp.zeros((2, 4, 4, 1)))
      >>> bundle = deploy.Bundle(spec, deploy.ImageForm((4, 4, 1), (0.5,), (0.5,)), meta)
      >>> export_onnx(bundle, labels=["cat", "dog"])[:2]  # doctest: +SKIP
      b'...'
    """
    form = bundle.images
    properties = {
        "labels": json.dumps(list(labels)),
        "size": str(form.shape[0]),
        "channels": str(form.shape[2]),
        "invert": json.dumps(form.invert),
        "dark_background": json.dumps(bool(np.mean(form.mean) < 0.5)),
        "fit": form.fit,
        "learner": bundle.spec.learner,
        "part": part,
    }
    with _explained(bundle):
        made = part_of(bundle, part, ways=ways)
        return to_onnx(
            made.function,
            made.arguments,
            inputs=made.inputs,
            outputs=made.outputs,
            properties=properties,
        )


@contextlib.contextmanager
def _explained(bundle: Bundle) -> Iterator[None]:
    """Explains why a learner cannot be exported for all numbers of examples."""
    try:
        yield
    except InconclusiveDimensionOperation as error:
        raise DataError(
            f"{bundle.spec.learner} on {bundle.spec.network} depends on the number of examples in its very "
            "program and cannot be exported for all"
        ) from error
