"""Environments as pure functions of a task."""

from metajax.rl.envs.arm import ArmTask, reacher
from metajax.rl.envs.bandits import bandit
from metajax.rl.envs.corners import corner_tasks, four_corners
from metajax.rl.envs.plane import navigation, navigation_tasks
from metajax.rl.envs.tables import TabularTask, tabular_mdp

__all__ = [
    "ArmTask",
    "TabularTask",
    "bandit",
    "corner_tasks",
    "four_corners",
    "navigation",
    "navigation_tasks",
    "reacher",
    "tabular_mdp",
]
