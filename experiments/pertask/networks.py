"""The networks of tasks from tables."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from experiments.pertask.data import TaskData
from experiments.pertask.options import PertaskPlan
from metajax.episodes.rows import Rows
from metajax.episodes.views import Examples, View
from metajax.models import in_precision
from metajax.types import Array, Key, Model
from metajax.zoo import models


class Networks(NamedTuple):
    """Networks, and the inputs that they read.

    Attributes:
      model: Network with a head.
      encoder: Network without its head.
      decoder: Network from inputs and codes to a mean and a deviation.
      view: Function from the features of rows to inputs.
      announcement: The network in words, rows of the announcement.
    """

    model: Model
    encoder: Model
    decoder: Model
    view: View
    announcement: list[tuple[str, str]]


def build(plan: PertaskPlan, data: TaskData) -> Networks:
    """Builds the networks of a run.

    Args:
      plan: The run.
      data: The tables.

    Returns:
      The networks.
    """

    def network(outputs: int | None) -> Model:
        model = models.build_model("mlp", outputs=outputs, features=plan.hidden)
        return in_precision(model, jnp.dtype(plan.common.training.precision))

    def view(store: Rows, key: Key, examples: Examples) -> Array:
        del store, key
        return data.flat(examples.features, True)

    outputs = 1 if data.ways is None else data.ways
    width = jax.eval_shape(
        lambda store: data.flat(store.take(jnp.zeros(1, jnp.int32)), True), data.stores["train"]
    ).shape[1]
    words = f"MLP {','.join(map(str, plan.hidden))} on {width:,} numbers"
    return Networks(network(outputs), network(None), network(2), view, [("model", words)])
