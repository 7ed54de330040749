"""Random forests by scikit-learn, one task at a time on the host."""

import numpy as np

from metajax.baselines.simple import log_shares


def random_forest(
    inputs: np.ndarray,
    targets: np.ndarray,
    queries: np.ndarray,
    *,
    ways: int | None,
    trees: int = 100,
    seed: int = 0,
) -> np.ndarray:
    """Fits a random forest to the support rows of one task and predicts its queries.

    Args:
      inputs: Support inputs [B, D], without padding.
      targets: Labels [B] of classes in [0, N), or values [B] or [B, 1].
      queries: Query inputs [Q, D].
      ways: Number of classes N; None for values.
      trees: Number of trees; all other settings are scikit-learn's defaults.
      seed: Seed of the forest.

    Returns:
      The logarithms of the shares of the classes [Q, N], or values [Q, 1].

    Raises:
      ImportError: If scikit-learn is not installed.

    Example:
      >>> x, y = np.arange(12.0)[:, None], np.repeat([0, 1], 6)
      >>> random_forest(x, y, np.array([[0.0], [11.0]]), ways=2, trees=10).argmax(axis=1).tolist()
      [0, 1]
    """
    try:
        from sklearn import ensemble
    except ImportError as error:
        raise ImportError(
            "A random forest needs scikit-learn; pip install 'metajax[baselines]' brings it."
        ) from error
    targets = np.asarray(targets).reshape(-1)
    if ways is None:
        model = ensemble.RandomForestRegressor(trees, random_state=seed)
        return model.fit(inputs, targets).predict(queries)[:, None]
    model = ensemble.RandomForestClassifier(trees, random_state=seed).fit(inputs, targets)
    shares = np.zeros((len(queries), ways), np.float32)
    shares[:, model.classes_.astype(int)] = model.predict_proba(queries)
    return np.asarray(log_shares(shares, ways))
