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
from metajax.deploy.encoded import EncodedForm
from metajax.deploy.fields import in_range, taken
from metajax.deploy.pictures import ImageForm
from metajax.deploy.rows import RowForm
from metajax.deploy.spec import LearnerSpec, make_learner_of
from metajax.errors import DataError
from metajax.names import listed, shown
from metajax.types import Meta

Form = ImageForm | RowForm
"""Form of the examples that a learner reads: pictures, or texts and rows of a table."""

_NO_EXAMPLES: Mapping[str, np.ndarray] = MappingProxyType({})
_FIELDS: dict[str, Any] = {
    "format": int,
    "tensors": dict,
    "learner": dict,
    "temperature": float,
    "threshold": (float, type(None)),
    "training": dict,
}
_META, _KEPT, _FEATURES = "meta", "examples", "features"  # groups of tensors


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A trained learner, with the form of its inputs.

    Attributes:
      spec: Description of the learner.
      form: Form of the examples.
      meta: Meta-parameters.
      temperature: Divisor of the logits, fitted on validation tasks; 1 leaves them as they are.
      threshold: Probability below which an answer is "unknown"; None answers always.
      training: Facts of the training for people: data, result with its interval, versions.
    """

    spec: LearnerSpec
    form: Form
    meta: Meta
    temperature: float = 1.0
    threshold: float | None = None
    training: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def images(self) -> ImageForm:
        """Form of the pictures; raises DataError for a bundle of texts or rows."""
        if isinstance(self.form, ImageForm):
            return self.form
        raise DataError(
            "this model reads texts or rows of a table, and here pictures are needed; use a model of pictures"
        )

    def save(
        self, folder: str | Path, *, examples: Mapping[str, np.ndarray] = _NO_EXAMPLES
    ) -> Path:
        """Writes the bundle.

        Args:
          folder: Folder to write, or to replace.
          examples: Examples that were learned, by class name, as the form's `read` returns them.

        Returns:
          The folder.

        Raises:
          DataError: If it cannot be written.
        """
        packed, arrays = self.form.pack(examples)
        if isinstance(self.form, ImageForm):
            form, groups = {"images": self.form.to_json()}, {}
        else:
            form, groups = {"rows": self.form.to_json()}, {_FEATURES: self.form.arrays()}
        description = {
            "learner": self.spec.to_json(),
            **form,
            **({"examples": packed} if packed else {}),
            "temperature": float(self.temperature),
            "threshold": self.threshold,
            "training": dict(self.training),
        }
        groups = {_META: _named(self.meta), **groups, _KEPT: arrays}
        # The tensors of the learner are there even if it has none.
        groups = {name: group for name, group in groups.items() if group or name == _META}
        return bundles.write_bundle(folder, description, groups)

    @classmethod
    def read(cls, folder: str | Path) -> tuple["Bundle", dict[str, np.ndarray]]:
        """Reads a bundle.

        Args:
          folder: Folder of the bundle.

        Returns:
          The bundle, and the examples that were saved with it, by class name.

        Raises:
          DataError: If it is damaged, or its tensors do not fit its learner.
        """
        found = bundles.read_bundle(folder)
        where = f"the bundle {shown(folder)} cannot be used"
        try:
            of_rows = "rows" in found.description
            kinds = {**_FIELDS, "rows" if of_rows else "images": dict}
            if "examples" in found.description:
                kinds["examples"] = list
            fields = taken(found.description, kinds, what="The description")
            groups = dict(found.tensors)
            if strange := set(groups) - {_META, _KEPT, *([_FEATURES] if of_rows else [])}:
                raise DataError(f"the tensors {listed(strange)} are unknown")
            spec = LearnerSpec.from_json(fields["learner"])
            form: Form = (
                RowForm.from_json(fields["rows"], groups.get(_FEATURES, {}))
                if of_rows
                else (EncodedForm if "encoder" in fields["images"] else ImageForm).from_json(
                    fields["images"]
                )
            )
            temperature, threshold = float(fields["temperature"]), fields["threshold"]
            in_range(temperature, "temperature", least=1e-3, most=1e3, what="The description")
            if threshold is not None:
                in_range(threshold, "threshold", least=0, most=1, what="The description")
            meta = _meta_of(spec, form, groups.get(_META, {}))
            examples = form.unpack(fields.get("examples"), groups.get(_KEPT, {}))
        except (DataError, ValueError, TypeError, AssertionError) as error:
            raise DataError(f"{where}: {shown(error, 1000)}") from error
        return cls(spec, form, meta, temperature, threshold, fields["training"]), examples


def _named(meta: Meta) -> dict[str, np.ndarray]:
    """Names the leaves of meta-parameters by their paths."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(meta)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def _meta_of(spec: LearnerSpec, form: Form, found: Mapping[str, np.ndarray]) -> Meta:
    """Puts tensors where the learner has its meta-parameters; nothing is allocated for their shapes."""
    learner = make_learner_of(spec, about=form.about)
    key = jax.eval_shape(lambda: jax.random.key(0))
    expected = jax.eval_shape(learner.init, key, form.example)
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
