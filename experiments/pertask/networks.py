"""The networks of tasks from tables."""

from typing import NamedTuple

import jax.numpy as jnp

from metajax.episodes.rows import Rows
from metajax.episodes.views import Examples, View, plain_view
from metajax.models import in_precision
from metajax.types import Array, Key, Model
from metajax.zoo import models

from ..setup.tables import row_network_in_words, row_networks
from .data import TaskData
from .options import PertaskPlan


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

    Raises:
      UsageError: If options do not fit together.
    """

    precision = jnp.dtype(plan.common.training.precision)
    heads = (1 if data.ways is None else data.ways, None, 2)
    if plan.model != "mlp":
        options = plan.model_options
        made = row_networks(plan.model, options, data.about, heads, plan.common.training.precision)
        words = row_network_in_words(plan.model, options)
        return Networks(*made, plain_view, [("model", words)])

    def network(outputs: int | None) -> Model:
        model = models.build_model("mlp", outputs=outputs, features=plan.hidden)
        return in_precision(model, precision)

    def view(store: Rows, key: Key, examples: Examples) -> Array:
        del store, key
        return data.flat(examples.features, True)

    width = data.width("train")
    words = f"MLP {','.join(map(str, plan.hidden))} on {width:,} numbers"
    return Networks(*map(network, heads), view, [("model", words)])
