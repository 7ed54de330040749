"""Bundles: everything that a trained learner needs to learn and to answer, and nothing that runs."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from metajax.data import bundles
from metajax.deploy.fields import in_range, taken
from metajax.deploy.pictures import ImageForm
from metajax.deploy.spec import LearnerSpec, make_learner_of
from metajax.errors import DataError
from metajax.names import listed, shown
from metajax.types import Meta

_NOTHING: Mapping[str, Any] = MappingProxyType({})
_FIELDS = {
    "format": int,
    "tensors": dict,
    "learner": dict,
    "images": dict,
    "temperature": float,
    "threshold": (float, type(None)),
    "training": dict,
}


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A trained learner, with the form of its inputs.

    Attributes:
      spec: Description of the learner.
      images: Form of the pictures.
      meta: Meta-parameters.
      temperature: Divisor of the logits, fitted on validation tasks; 1 leaves them as they are.
      threshold: Probability below which an answer is "unknown"; None answers always.
      training: Facts of the training for people: data, result with its interval, versions.
    """

    spec: LearnerSpec
    images: ImageForm
    meta: Meta
    temperature: float = 1.0
    threshold: float | None = None
    training: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def save(
        self,
        folder: str | Path,
        *,
        extra: Mapping[str, Mapping[str, np.ndarray]] = _NOTHING,
    ) -> Path:
        """Writes the bundle.

        Args:
          folder: Folder to write, or to replace.
          extra: Further groups of arrays by name.

        Returns:
          The folder.

        Raises:
          DataError: If it cannot be written.
        """
        description = {
            "learner": self.spec.to_json(),
            "images": dataclasses.asdict(self.images),
            "temperature": float(self.temperature),
            "threshold": self.threshold,
            "training": dict(self.training),
        }
        return bundles.write_bundle(folder, description, {"meta": _named(self.meta), **extra})

    @classmethod
    def read(cls, folder: str | Path) -> tuple["Bundle", dict[str, dict[str, np.ndarray]]]:
        """Reads a bundle.

        Args:
          folder: Folder of the bundle.

        Returns:
          The bundle, and its further groups of arrays by name.

        Raises:
          DataError: If it is damaged, or its tensors do not fit its learner.
        """
        found = bundles.read_bundle(folder)
        where = f"the bundle {shown(folder)} cannot be used"
        try:
            fields = taken(found.description, _FIELDS, what="The description")
            spec = LearnerSpec.from_json(fields["learner"])
            images = ImageForm.from_json(fields["images"])
            temperature, threshold = float(fields["temperature"]), fields["threshold"]
            in_range(temperature, "temperature", least=1e-3, most=1e3, what="The description")
            if threshold is not None:
                in_range(threshold, "threshold", least=0, most=1, what="The description")
            groups = dict(found.tensors)
            meta = _meta_of(spec, images, groups.pop("meta", {}))
        except (DataError, ValueError, TypeError) as error:
            raise DataError(f"{where}: {shown(error, 1000)}") from error
        return cls(spec, images, meta, temperature, threshold, fields["training"]), groups


def _named(meta: Meta) -> dict[str, np.ndarray]:
    """Names the leaves of meta-parameters by their paths."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(meta)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def _meta_of(spec: LearnerSpec, images: ImageForm, found: Mapping[str, np.ndarray]) -> Meta:
    """Puts tensors where the learner has its meta-parameters; nothing is allocated for their shapes."""
    inputs = jax.ShapeDtypeStruct((2, *images.shape), np.float32)
    learner = make_learner_of(spec)
    expected = jax.eval_shape(learner.init, jax.eval_shape(lambda: jax.random.key(0)), inputs)
    leaves, structure = jax.tree_util.tree_flatten_with_path(expected)
    names = [jax.tree_util.keystr(path) for path, _ in leaves]
    if strange := set(names) ^ set(found):
        raise DataError(f"its tensors are not those of {spec.learner}: {listed(sorted(strange))}")
    for name, (_, leaf) in zip(names, leaves, strict=True):
        array = found[name]
        if array.shape != leaf.shape or array.dtype != leaf.dtype:
            raise DataError(
                f"the tensor {name} is {array.dtype}{list(array.shape)}, and {spec.learner} has "
                f"{leaf.dtype}{list(leaf.shape)}, {math.prod(leaf.shape):,} numbers"
            )
    return jax.tree.unflatten(structure, [found[name] for name in names])
