"""Scoring: the outer loss and the metrics of a learner's predictions for one task."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from metajax import trees
from metajax.types import Array, Batch, Fast, Learner, LossFn, Meta, Metrics, Tree

MetricFn = Callable[[Tree, Batch], Tree]


@dataclasses.dataclass(frozen=True)
class Scoring:
    """The outer loss of a task, its metrics and a penalty.

    Attributes:
      loss: Function `(outputs [B, ...], batch) -> scalar`, the outer loss.
      metrics: Functions `(outputs, batch) -> tree of arrays`, mostly a scalar, by the name under which they
        are reported next to `loss`.
      penalty: Function `(meta, fast) -> scalar` of the adapted fast state that is added to the outer loss;
        reported as `penalty`, while `loss` is reported without it. None adds nothing.
      chunk: Largest number of examples that are predicted together; None predicts all at once. The chunks are
        a scan that recomputes in the backward pass, so memory is that of one chunk plus all outputs: loss and
        metrics see the whole batch, and need not be means. Values and gradients change by rounding only if
        the prediction for an example does not depend on the others: under group norm, layer norm or none,
        but not under batch norm.

    Example:
      >>> scoring = metajax.Scoring(metajax.cross_entropy, {"accuracy": metajax.accuracy})
      >>> logits, batch = jnp.eye(2), metajax.Batch(None, jnp.array([0, 0]))
      >>> scoring.measure(logits, batch)["accuracy"].item()
      0.5
    """

    loss: LossFn
    metrics: Mapping[str, MetricFn] = dataclasses.field(default_factory=dict)
    penalty: Callable[[Meta, Fast], Array] | None = None
    chunk: int | None = None

    def __post_init__(self):
        """Raises a ValueError for a chunk of no examples."""
        if self.chunk is not None and self.chunk < 1:
            raise ValueError(f"chunk is {self.chunk}; use 1 or more, or None for all.")

    def score(self, learner: Learner, meta: Meta, fast: Fast, batch: Batch) -> Metrics:
        """Predicts a batch [B, ...] and measures the outputs.

        Args:
          learner: Learner.
          meta: Meta-parameters.
          fast: Adapted fast state.
          batch: Examples to score.

        Returns:
          Dict of `loss`, the metrics, and `penalty` if there is one.
        """
        outputs = self.predict(learner, meta, fast, batch.inputs)
        return self.penalize(self.measure(outputs, batch), meta, fast)

    def measure(self, outputs: Tree, batch: Batch) -> Metrics:
        """Computes `loss` and the metrics of outputs [B, ...]."""
        named = {**self.metrics, "loss": self.loss}
        return {name: metric(outputs, batch) for name, metric in named.items()}

    def penalize(self, values: Metrics, meta: Meta, fast: Fast) -> Metrics:
        """Adds the entry `penalty` to measured values, if there is a penalty."""
        return {**values, "penalty": self.penalty(meta, fast)} if self.penalty else values

    penalise = penalize  # the spelling of 0.1, for one release

    def total(self, values: Metrics) -> Array:
        """Computes the outer loss from measured values: `loss`, plus `penalty` if there is one."""
        return values["loss"] + values["penalty"] if self.penalty else values["loss"]

    def predict(self, learner: Learner, meta: Meta, fast: Fast, inputs: Tree) -> Tree:
        """Predicts inputs [B, ...], in chunks of equal size if there are more than `chunk`.

        Args:
          learner: Learner.
          meta: Meta-parameters.
          fast: Adapted fast state.
          inputs: Tree of arrays [B, ...].

        Returns:
          Outputs [B, ...] of the learner.
        """
        examples = trees.count(inputs)
        if self.chunk is None or examples <= self.chunk:
            return learner.predict(meta, fast, inputs)
        # The fewest chunks that fit, of equal size, so that little is computed for padding.
        num_chunks = -(-examples // self.chunk)
        size = -(-examples // num_chunks)

        def split(leaf):
            # Padding repeats a true example, whose outputs and derivatives are as finite as the others'.
            padding = ((0, num_chunks * size - examples), *[(0, 0)] * (leaf.ndim - 1))
            return jnp.pad(leaf, padding, mode="edge").reshape(num_chunks, size, *leaf.shape[1:])

        # Nothing inside a chunk is kept for the backward pass; the scan would keep it for all chunks.
        predict = jax.checkpoint(learner.predict)
        chunks = jax.tree.map(split, inputs)
        outputs = jax.lax.map(lambda chunk: predict(meta, fast, chunk), chunks)
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:examples], outputs)


def as_scoring(scoring: Scoring | LossFn) -> Scoring:
    """Wraps a bare loss in a `Scoring`; returns a `Scoring` unchanged."""
    return scoring if isinstance(scoring, Scoring) else Scoring(scoring)
