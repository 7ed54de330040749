"""Trained learners outside of experiments: bundles, and classifiers that learn from a few examples."""

from metajax.deploy.answers import Evaluation, Prediction
from metajax.deploy.bundle import Bundle
from metajax.deploy.calibration import (
    calibration_scores,
    fit_temperature,
    known_threshold,
    reliability,
    separation,
)
from metajax.deploy.classifier import Classifier, load
from metajax.deploy.encoded import EncodedForm
from metajax.deploy.export import export_onnx, export_program, part_of
from metajax.deploy.pictures import ImageForm
from metajax.deploy.reasons import Example, Reasons
from metajax.deploy.row_fields import Features
from metajax.deploy.row_reasons import Part, RowExample, RowReasons
from metajax.deploy.rows import RowForm
from metajax.deploy.runs import RunsEvaluation, evaluate_runs
from metajax.deploy.shipped import shipped_names
from metajax.deploy.spec import LearnerSpec, make_learner_of

__all__ = [
    "Bundle",
    "Classifier",
    "EncodedForm",
    "Evaluation",
    "Example",
    "Features",
    "ImageForm",
    "LearnerSpec",
    "Part",
    "Prediction",
    "Reasons",
    "RowExample",
    "RowForm",
    "RowReasons",
    "RunsEvaluation",
    "calibration_scores",
    "evaluate_runs",
    "export_onnx",
    "export_program",
    "fit_temperature",
    "known_threshold",
    "load",
    "make_learner_of",
    "part_of",
    "reliability",
    "separation",
    "shipped_names",
]
