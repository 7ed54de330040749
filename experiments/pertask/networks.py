"""The networks of tasks from tables."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from experiments.flags.settings import UsageError
from experiments.pertask.data import TaskData
from experiments.pertask.options import PertaskPlan
from metajax.episodes.rows import Rows
from metajax.episodes.views import Examples, View, plain_view
from metajax.models import in_precision
from metajax.types import Array, Key, Model
from metajax.zoo import models
from metajax.zoo.row_models import ROW_MODELS, build_row_model


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
        entry = ROW_MODELS[plan.model]
        about, options = data.about.get(entry.reads, {}), plan.model_options.network
        try:
            made = [
                build_row_model(plan.model, outputs=outputs, about=about, **options)
                for outputs in heads
            ]
        except ValueError as error:
            raise UsageError(f"--model={plan.model} does not fit: {error}") from error
        chosen = {**plan.model_options.features, **options}
        words = " ".join([plan.model, *(f"{name}={value}" for name, value in chosen.items())])
        networks = (in_precision(model, precision) for model in made)
        return Networks(*networks, plain_view, [("model", words)])

    def network(outputs: int | None) -> Model:
        model = models.build_model("mlp", outputs=outputs, features=plan.hidden)
        return in_precision(model, precision)

    def view(store: Rows, key: Key, examples: Examples) -> Array:
        del store, key
        return data.flat(examples.features, True)

    width = jax.eval_shape(
        lambda store: data.flat(store.take(jnp.zeros(1, jnp.int32)), True), data.stores["train"]
    ).shape[1]
    words = f"MLP {','.join(map(str, plan.hidden))} on {width:,} numbers"
    return Networks(*map(network, heads), view, [("model", words)])
