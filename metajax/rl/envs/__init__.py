"""Environments as pure functions of a task."""

from metajax.rl.envs.bandits import bandit

__all__ = ["bandit"]
