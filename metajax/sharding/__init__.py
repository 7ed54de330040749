"""Tasks and parameters over many devices; the only room that names mesh axes and collectives.

`task_mesh` makes the mesh, `place` and `fetch` move trees to its devices and back, and three wrappers spread
a computation over tasks: `over_tasks` a meta-gradient, `draw_over_tasks` the drawing of tasks, and
`over_episodes` an evaluation.
"""

from metajax.sharding.layout import LEAST_DIVIDED, fetch, place, shardings
from metajax.sharding.mesh import BOTH, SHARDS, TASKS, divided, replicated, task_mesh
from metajax.sharding.over import AnyMetaGrad, draw_over_tasks, over_episodes, over_tasks

__all__ = [
    "BOTH",
    "LEAST_DIVIDED",
    "SHARDS",
    "TASKS",
    "AnyMetaGrad",
    "divided",
    "draw_over_tasks",
    "fetch",
    "over_episodes",
    "over_tasks",
    "place",
    "replicated",
    "shardings",
    "task_mesh",
]
