"""Old name of `experiments.runtime.compiled_steps`."""

from experiments.runtime.compiled_steps import CompiledSteps

__all__ = ["CompiledSteps"]
