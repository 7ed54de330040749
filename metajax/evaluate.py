"""Evaluation as a pure function: the metrics of numbered tasks."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from metajax.train import SampleFn, draw_task, map_by_task
from metajax.types import Array, Key, Meta, Objective

EvaluateFn = Callable[[Meta, Any, Key, Array], Any]


def make_evaluate(
    objective: Objective, sample: SampleFn, *, tasks_at_once: int = 1, by_task: Any = None
) -> EvaluateFn:
    """Makes an evaluation over numbered tasks.

    Args:
      objective: Objective of one task, of which only the metrics are used, any tree of arrays.
      sample: Function `(data, key) -> task`, one task.
      tasks_at_once: Number of tasks that are vectorized together.
      by_task: Leaves of the data with a leading axis of tasks [T], as in `draw_tasks`.

    Returns:
      `(meta, data, key, tasks [T]) -> metrics`, every leaf [T, ...]. They are the tasks that `draw_tasks`
      draws at step 0: the same key and numbers are the same test, however they are split between calls or
      devices.

    Example:
      >>> objective = lambda meta, key, task: (None, {"error": jnp.abs(meta - task)})
      >>> evaluate = make_evaluate(objective, lambda data, key: data + jax.random.uniform(key))
      >>> scores = evaluate(0.0, 10.0, jax.random.key(0), jnp.arange(5))
      >>> scores["error"].shape, bool(jnp.all(scores["error"] >= 10))
      ((5,), True)
    """

    def evaluate(meta: Meta, data: Any, key: Key, tasks: Array) -> Any:
        step_key, tasks = jax.random.fold_in(key, 0), jnp.asarray(tasks)

        # Drawn inside the map: 600 episodes of photographs at once would be gigabytes.
        def score(place: Array) -> Any:
            own = map_by_task(lambda leaf: jnp.asarray(leaf)[place], by_task, data)
            return objective(meta, *draw_task(sample, step_key, own, tasks[place]))[1]

        return jax.lax.map(score, jnp.arange(len(tasks)), batch_size=tasks_at_once)

    return evaluate
