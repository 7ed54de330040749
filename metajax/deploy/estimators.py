"""Trained learners with the interface of scikit-learn's estimators."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metajax.deploy.classifier import Classifier, load
from metajax.errors import DataError

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
except ImportError as error:
    raise ImportError(
        "FewShotClassifier needs scikit-learn: pip install 'metajax[deploy,baselines]'"
    ) from error


class FewShotClassifier(ClassifierMixin, BaseEstimator):
    """A trained learner as a classifier of scikit-learn: `fit` stores the examples, `predict` reads them.

    Attributes:
      model: Path of a bundle or of a work directory, or a `Classifier`.
      classes_: Class labels [N], sorted, after `fit`.

    Example:
      `trained` would be the path of a run.

      >>> import metajax.deploy as deploy
      >>> options = {"filters": 8, "norm": "group"}
      >>> spec = deploy.LearnerSpec("protonet", "conv4_stride", 2, 4, network_options=options)
      >>> meta = deploy.make_learner_of(spec).init(jax.random.key(0), jnp.zeros((2, 8, 8, 1)))
      >>> form = deploy.ImageForm((8, 8, 1), (0.5,), (0.5,))
      >>> trained = deploy.Classifier(deploy.Bundle(spec, form, meta))
      >>> pictures = np.array([20, 30, 220, 230], np.uint8)[:, None, None] * np.ones((8, 8), np.uint8)
      >>> few = FewShotClassifier(trained).fit(pictures, [0, 0, 1, 1])
      >>> few.predict_proba(pictures).shape
      (4, 2)
    """

    def __init__(self, model: str | Path | Classifier = ""):
        self.model = model

    def fit(self, X: Sequence[Any], y: Sequence[Any]) -> "FewShotClassifier":
        """Learns classes from examples; what was learned before is forgotten.

        Args:
          X: M pictures: paths, contents of files, or arrays [M, H, W] or [M, H, W, C]; or M rows: texts,
            dicts of values, or a data frame with the columns of the training.
          y: Labels [M].

        Returns:
          The estimator itself.

        Raises:
          DataError: If there is no bundle, an example cannot be read, or there are more or fewer labels.
        """
        X, labels = _rows(X), np.asarray(y)
        if len(X) != len(labels):
            raise DataError(f"there are {len(X)} examples and {len(labels)} labels; give one each")
        model = self.model if isinstance(self.model, Classifier) else load(self.model)
        self.classes_ = np.unique(labels)
        by_class = {str(c): [X[int(i)] for i in np.flatnonzero(labels == c)] for c in self.classes_}
        self.fitted_ = Classifier(model.bundle).learn(by_class)
        return self

    def predict_proba(self, X: Sequence[Any]) -> np.ndarray:
        """Answers examples.

        Args:
          X: M examples, as in `fit`.

        Returns:
          Probabilities [M, N] float32, in the order of `classes_`.

        Raises:
          DataError: If an example cannot be read, or `fit` was not called.
        """
        if not hasattr(self, "fitted_"):
            raise DataError("this FewShotClassifier has no examples yet; call fit first")
        return self.fitted_.probabilities(list(_rows(X)))

    def predict(self, X: Sequence[Any]) -> np.ndarray:
        """Names the class of each example.

        Args:
          X: M examples, as in `fit`.

        Returns:
          Labels [M], of the type of the labels in `fit`.

        Raises:
          DataError: If an example cannot be read, or `fit` was not called.
        """
        best = self.predict_proba(X).argmax(-1)
        return self.classes_[best]


def _rows(X: Any) -> Sequence[Any]:
    """Lists the rows of a data frame; anything else stays as it is."""
    return X.to_dict("records") if hasattr(X, "to_dict") else X
