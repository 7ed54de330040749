"""Scoring: what a learner's outputs on one task are worth."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from metajax import trees
from metajax.types import Array, Batch, Fast, Learner, LossFn, Meta, Metrics, Tree

MetricFn = Callable[[Tree, Batch], Tree]


@dataclasses.dataclass(frozen=True)
class Scoring:
    """The outer loss of a task, and what is reported beside it.

    Attributes:
      loss: (outputs [B, ...], batch) -> scalar outer loss.
      metrics: Named functions (outputs, batch) -> tree of arrays, mostly a scalar, reported beside `loss`.
      penalty: (meta, fast) -> scalar that is added to the outer loss, fast being the adapted state; reported
        as `penalty`, and `loss` without it.
      chunk: Largest number of examples that are answered together, or None for all. The chunks are a scan
        that recomputes in the backward pass, so memory is that of one chunk and of all outputs: loss and
        metrics see the whole batch, and need not be means. Values and gradients change by rounding alone, if
        the answer to an example does not depend on the others: under group norm, layer norm or none, but not
        under batch norm.
    """

    loss: LossFn
    metrics: Mapping[str, MetricFn] = dataclasses.field(default_factory=dict)
    penalty: Callable[[Meta, Fast], Array] | None = None
    chunk: int | None = None

    def __post_init__(self):
        """Raises ValueError for a chunk of no examples."""
        if self.chunk is not None and self.chunk < 1:
            raise ValueError(f"chunk is {self.chunk}; use 1 or more, or None for all.")

    def score(self, learner: Learner, meta: Meta, fast: Fast, batch: Batch) -> Metrics:
        """Answers a batch [B, ...] and measures the outputs: `loss`, the metrics and `penalty`, if any."""
        outputs = self.predict(learner, meta, fast, batch.inputs)
        return self.penalise(self.measure(outputs, batch), meta, fast)

    def measure(self, outputs: Tree, batch: Batch) -> Metrics:
        """Measures outputs [B, ...]: `loss` and the metrics."""
        named = {**self.metrics, "loss": self.loss}
        return {name: metric(outputs, batch) for name, metric in named.items()}

    def penalise(self, values: Metrics, meta: Meta, fast: Fast) -> Metrics:
        """Puts `penalty` beside what was measured, if there is one."""
        return {**values, "penalty": self.penalty(meta, fast)} if self.penalty else values

    def total(self, values: Metrics) -> Array:
        """Returns the outer loss among scores: `loss`, with `penalty` if there is one."""
        return values["loss"] + values["penalty"] if self.penalty else values["loss"]

    def predict(self, learner: Learner, meta: Meta, fast: Fast, inputs: Tree) -> Tree:
        """Answers inputs [B, ...], in chunks of equal size if there are more than `chunk`."""
        examples = trees.count(inputs)
        if self.chunk is None or examples <= self.chunk:
            return learner.predict(meta, fast, inputs)
        num_chunks = -(-examples // self.chunk)
        size = -(-examples // num_chunks)

        def split(leaf):
            # Padding repeats a true example, on which outputs and derivatives are as finite as elsewhere.
            padding = ((0, num_chunks * size - examples), *[(0, 0)] * (leaf.ndim - 1))
            return jnp.pad(leaf, padding, mode="edge").reshape(num_chunks, size, *leaf.shape[1:])

        # Nothing inside a chunk is kept for the backward pass; the scan would keep it for all of them.
        predict = jax.checkpoint(learner.predict)
        chunks = jax.tree.map(split, inputs)
        outputs = jax.lax.map(lambda chunk: predict(meta, fast, chunk), chunks)
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:examples], outputs)


def as_scoring(scoring: Scoring | LossFn) -> Scoring:
    """Makes a `Scoring` of a loss alone; returns a `Scoring` as it is."""
    return scoring if isinstance(scoring, Scoring) else Scoring(scoring)
