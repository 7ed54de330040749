"""Meta-gradients: estimates of the gradient of the outer loss with respect to the meta-parameters.

A meta-gradient is a function `(meta, keys [T], tasks [T, ...], step) -> (grads, metrics)` over a batch of
T tasks; `grads` goes to any optax optimizer.

- `backprop` differentiates an objective, through the whole adaptation.
- `reptile` moves the start towards the adapted parameters and differentiates nothing.
- `evolution` and `pes` compare values of the loss at perturbed meta-parameters; `pes` updates after every
  piece of a long adaptation and carries a memory from step to step.
- `switch_at` and `scheduled` choose a meta-gradient by the outer step.
"""

from metajax.deprecation import renamed_attributes
from metajax.metagrads.antithetic import evolution
from metajax.metagrads.backpropagation import backprop
from metajax.metagrads.displacement import reptile
from metajax.metagrads.persistent import pes
from metajax.metagrads.switching import scheduled, switch_at

__all__ = ["backprop", "evolution", "pes", "reptile", "scheduled", "switch_at"]

# Names of `metajax.metagrad` and `metajax.evolution`, the two modules of 0.1 that this package replaces.
__getattr__ = renamed_attributes(
    __name__,
    {
        "EstimateFn": "metajax.metagrads.averaging.EstimateFn",
        "PesMemory": "metajax.metagrads.persistent.PesMemory",
        "mean_over_tasks": "metajax.metagrads.averaging.mean_over_tasks",
        "means": "metajax.metagrads.averaging.means",
    },
)
