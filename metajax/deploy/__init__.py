"""Trained learners outside of experiments: bundles, and classifiers that learn from a few examples."""

from metajax.deploy.bundle import Bundle
from metajax.deploy.classifier import Classifier, Evaluation, Prediction, load
from metajax.deploy.export import export_onnx, export_program, part_of
from metajax.deploy.pictures import ImageForm
from metajax.deploy.reasons import Example, Reasons
from metajax.deploy.spec import LearnerSpec, make_learner_of

__all__ = [
    "Bundle",
    "Classifier",
    "Evaluation",
    "Example",
    "ImageForm",
    "LearnerSpec",
    "Prediction",
    "Reasons",
    "export_onnx",
    "export_program",
    "load",
    "make_learner_of",
    "part_of",
]
