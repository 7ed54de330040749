"""Trained learners of numbers with the interface of scikit-learn's regressors."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metajax.deploy.compiled import room
from metajax.errors import DataError
from metajax.learners.sequence.neural_process import mean_and_std
from metajax.names import shown
from metajax.types import Array, Batch, Fast, Learner, Meta

try:
    from sklearn.base import BaseEstimator, RegressorMixin
except ImportError as error:
    raise ImportError(
        "FewShotRegressor needs scikit-learn: pip install 'metajax[deploy,baselines]'"
    ) from error


class FewShotRegressor(RegressorMixin, BaseEstimator):
    """A trained learner of numbers as a regressor of scikit-learn: `fit` adapts to a few rows.

    Attributes:
      learner: Learner of one task whose targets are numbers, such as `metajax.maml` of a network with one
        output, or a neural process.
      meta: Meta-parameters of the learner, as the training left them.
      seed: Seed of learners that draw at random.

    Example:
      `meta` would come from a training; here it is fresh.

      >>> model = metajax.toys.toy_model(1)
      >>> learner = metajax.maml(model, metajax.squared_error, rule=optax.sgd(0.1), steps=5)
      >>> X = np.linspace(-1, 1, 10, dtype=np.float32)[:, None]
      >>> meta = learner.init(jax.random.key(0), X)
      >>> few = FewShotRegressor(learner, meta).fit(X, np.sin(X[:, 0]))
      >>> few.predict(X).shape
      (10,)
    """

    def __init__(self, learner: Learner | None = None, meta: Meta = None, *, seed: int = 0):
        self.learner = learner
        self.meta = meta
        self.seed = seed

    def fit(self, X: Any, y: Any) -> "FewShotRegressor":
        """Adapts to examples; what was learned before is forgotten.

        Args:
          X: Inputs [M, ...] of finite numbers, in the scale of the training, or a data frame of them.
          y: Targets [M] or [M, Y] of finite numbers, in the scale of the training.

        Returns:
          The estimator itself.

        Raises:
          DataError: If there is no learner or no example, numbers are missing, there are more or fewer
            targets, or the learner does not read such examples.
        """
        if self.learner is None or self.meta is None:
            raise DataError(
                "this FewShotRegressor has no learner; use FewShotRegressor(learner, meta)"
            )
        inputs, targets = _numbers(X, "X"), _numbers(y, "y")
        if inputs.ndim < 2 or targets.ndim not in (1, 2) or not len(inputs):
            raise DataError(
                f"X is {list(inputs.shape)} and y {list(targets.shape)}; use [M, ...] and [M] or [M, Y], of "
                "one example or more"
            )
        if len(inputs) != len(targets):
            raise DataError(
                f"there are {len(inputs)} examples and {len(targets)} targets; give one each"
            )
        self.flat_ = targets.ndim == 1
        targets = targets[:, None] if self.flat_ else targets
        self.shape_, self.targets_ = inputs.shape[1:], targets.shape[1]
        adapt, _ = _compiled(self.learner)
        key = jax.random.key(self.seed)
        try:
            self.fast_ = adapt(self.meta, key, Batch(jnp.asarray(inputs), jnp.asarray(targets)))
        except (TypeError, ValueError, AssertionError) as error:
            raise DataError(
                f"the learner does not read inputs {list(inputs.shape)} with targets "
                f"{list(targets.shape)}: {shown(error)}"
            ) from error
        return self

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Predicts targets.

        Args:
          X: Inputs [B, ...], as in `fit`.
          return_std: Whether to return standard deviations too, which neural processes have.

        Returns:
          Targets [B] or [B, Y] float32, as `y` was in `fit`; with `return_std`, these and their standard
          deviations.

        Raises:
          DataError: If `fit` was not called, inputs are of another form, or the learner has no deviations.
        """
        if not hasattr(self, "fast_"):
            raise DataError("this FewShotRegressor has no examples yet; call fit first")
        inputs = _numbers(X, "X")
        if inputs.shape[1:] != self.shape_:
            raise DataError(
                f"X is {list(inputs.shape)}, and the examples were [M, {', '.join(map(str, self.shape_))}]"
            )
        found = self._outputs(inputs)
        if return_std and len(found) == 1:
            raise DataError(
                "this learner predicts values without deviations; use a neural process, or return_std=False"
            )
        shaped = [values[:, 0] if self.flat_ else values for values in found]
        return (shaped[0], shaped[1]) if return_std else shaped[0]

    def _outputs(self, inputs: np.ndarray) -> list[np.ndarray]:
        """Predicts values [B, Y], and deviations where the learner has them."""
        _, predict = _compiled(self.learner)
        # Few programs serve all numbers of rows.
        padded = np.zeros((room(max(1, len(inputs))), *self.shape_), np.float32)
        padded[: len(inputs)] = inputs
        outputs = predict(self.meta, self.fast_, padded)[: len(inputs)]
        if outputs.shape[-1] == 2 * self.targets_:
            return [np.asarray(part) for part in mean_and_std(outputs)]
        if outputs.shape[-1] != self.targets_:
            raise DataError(
                f"the learner predicts {outputs.shape[-1]} numbers, and the targets were {self.targets_}"
            )
        return [np.asarray(outputs)]


@functools.lru_cache(maxsize=8)
def _compiled(learner: Learner) -> tuple[Any, Any]:
    """Compiles a learner; estimators of one learner share it."""

    @jax.jit
    def adapt(meta: Meta, key: Array, batch: Batch) -> Fast:
        start_key, adapt_key = jax.random.split(key)
        return learner.adapt(meta, learner.start(meta, start_key, batch), adapt_key, batch)

    return adapt, jax.jit(learner.predict)


def _numbers(values: Any, name: str) -> np.ndarray:
    """Reads an array of finite numbers as float32."""
    try:
        array = np.asarray(values, np.float32)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} holds values that are no numbers: {shown(error)}") from error
    if not array.ndim:
        raise DataError(f"{name} is one number; give an array with an example in each row")
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        raise DataError(
            f"{name} holds {array[tuple(bad[0])]} in row {bad[0][0]}; leave it out or fill it in"
        )
    return array
