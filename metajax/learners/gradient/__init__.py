"""Learners that adapt by gradient steps."""

from metajax import deprecation

# Until the last release `metajax.learners.gradient` was one module.
__getattr__ = deprecation.renamed_attributes(
    __name__,
    {
        "GradientFast": "metajax.learners.gradient.base.GradientFast",
        "GradientMeta": "metajax.learners.gradient.base.GradientMeta",
        "check_mixed": "metajax.learners.check_mixed",
        "gradient_learner": "metajax.learners.gradient_learner",
    },
)
