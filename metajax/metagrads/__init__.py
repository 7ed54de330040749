"""Meta-gradients: how meta-parameters improve, estimated over a batch of tasks."""

from metajax.metagrads.estimators import backprop, reptile, scheduled, switch_at
from metajax.metagrads.evolution_strategies import evolution, pes

__all__ = ["backprop", "evolution", "pes", "reptile", "scheduled", "switch_at"]
