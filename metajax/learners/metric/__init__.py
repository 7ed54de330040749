"""Learners that compare a query with the support set in feature space."""

from metajax import deprecation

# Until the last release `metajax.learners.metric` was one module.
__getattr__ = deprecation.renamed_attributes(
    __name__,
    {
        "DISTANCES": "metajax.learners.metric.base.DISTANCES",
        "MetricMeta": "metajax.learners.metric.base.MetricMeta",
        "matching": "metajax.learners.matching",
        "protonet": "metajax.learners.protonet",
        "relation": "metajax.learners.relation",
        "relation_loss": "metajax.learners.relation_loss",
        "similarities": "metajax.learners.metric.base.similarities",
    },
)
