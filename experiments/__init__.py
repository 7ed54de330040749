"""Experiments: drivers, what they share, and programs to read."""

from metajax import deprecation

# Commands of 0.1 that moved; they go with the next release.
deprecation.renamed_modules(
    {
        "experiments.minimal_maml": "experiments.examples.minimal_maml",
        "experiments.own_inner_loop": "experiments.examples.own_inner_loop",
        "experiments.pod_check": "experiments.pod.check",
    }
)
