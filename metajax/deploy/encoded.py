"""The form of pictures whose network reads the vectors of a frozen pre-trained encoder."""

import dataclasses
import functools
import re
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from metajax.data.features import pictures
from metajax.deploy.fields import in_range, taken
from metajax.deploy.pictures import ImageForm
from metajax.errors import DataError
from metajax.names import shown
from metajax.types import Array, Tree

KIND = "pictures"
"""Name of the vectors among the features that a network reads."""


@dataclasses.dataclass(frozen=True)
class EncodedForm(ImageForm):
    """The form of pictures of which a frozen encoder makes vectors; its `mean` and `scale` are not used.

    The encoder itself is not a part of the form: it is found by its name when it is first needed, and has to
    be the one of the training.

    Attributes:
      encoder: Name of the encoder, a key of `metajax.data.features.pictures.ENCODERS`.
      sha256: SHA-256 of the encoder's file of weights, in hexadecimal digits.
      side: Side in pixels of the pictures that the encoder reads.
      flat: Whether the network reads the vectors alone, and not a dict of them.

    Example:
      >>> from metajax.deploy.encoded import EncodedForm
      >>> form = EncodedForm((84, 84, 3), (0.5,) * 3, (0.5,) * 3, sha256="0" * 64, side=96)
      >>> form.in_words()
      '84 x 84 x 3, crop; vectors of efficientnet_lite0 at 96 pixels'
    """

    encoder: str = pictures.EFFICIENTNET
    sha256: str = ""
    side: int = pictures.SIDE
    flat: bool = False

    about = MappingProxyType({})
    """Arguments of the network that depend on the data, of which it has none."""

    @classmethod
    def from_json(cls, found: Any) -> "EncodedForm":
        """Reads a form that `to_json` made, and finds its encoder.

        Args:
          found: Parsed JSON.

        Returns:
          The form.

        Raises:
          DataError: If a field is missing, unknown, of another type, or out of range, or the installed
            encoder is another one.
          ImportError: If the package of the encoder is not installed.
        """
        what, own = "The form of images", [each.name for each in dataclasses.fields(cls)[-4:]]
        given = taken(
            {name: value for name, value in found.items() if name in own},
            {"encoder": str, "sha256": str, "side": int, "flat": bool},
            what=what,
        )
        plain = ImageForm.from_json({k: value for k, value in found.items() if k not in own})
        in_range(given["side"], "side", least=32, most=pictures.LARGEST, what=what)
        if given["encoder"] != pictures.EFFICIENTNET:
            raise DataError(
                f"{what}: the encoder is {shown(given['encoder'])}; use {pictures.EFFICIENTNET}"
            )
        if not re.fullmatch(r"[0-9a-f]{64}", given["sha256"]):
            raise DataError(f"{what}: sha256 is {shown(given['sha256'])}; it has to be 64 digits")
        form = cls(**vars(plain), **given)
        form._found  # noqa: B018  (an encoder that is missing is an error when the bundle is read)
        return form

    def to_json(self) -> dict[str, Any]:
        """Returns the form as values that JSON can hold; raises DataError if no package has its encoder."""
        if self.encoder != pictures.EFFICIENTNET:
            raise DataError(
                "vectors of an encoder in a folder (encoder_dir) cannot leave in a bundle, which would name "
                "a folder of one machine; use the packaged encoder"
            )
        return super().to_json()

    @property
    def _found(self) -> pictures.PictureEncoder:
        return _encoder(self.encoder, self.side, self.sha256)

    @property
    def example(self) -> Any:
        """Inputs of the network for two pictures."""
        vectors = jax.ShapeDtypeStruct((2, self._found.width), np.float32)
        return jax.eval_shape(self.inputs, {KIND: vectors})

    def features(self, kept: np.ndarray) -> Tree:
        """Makes the vectors of pictures.

        Args:
          kept: Pictures [M, H, W, C] uint8, as `read` returns them.

        Returns:
          Dict of the vectors [M, D].
        """
        return {KIND: pictures.compute_picture_vectors(kept, self._found)}

    def inputs(self, features: Tree) -> Tree:
        """Makes inputs of the network from vectors, as `features` returns them."""
        return pictures.unit_vectors(features[KIND]) if self.flat else features

    def normalized(self, pixels: Array) -> Tree:
        """Makes inputs of the network from pictures, with the encoder inside, as exported programs have it.

        Args:
          pixels: Pictures [M, H, W, C] uint8.

        Returns:
          Inputs of the network.
        """
        return self.inputs({KIND: self._found.encode(pixels)})

    def in_words(self) -> str:
        """Describes the form for people."""
        return f"{super().in_words()}; vectors of {self.encoder} at {self.side} pixels"


@functools.lru_cache(maxsize=2)
def _encoder(name: str, side: int, sha256: str) -> pictures.PictureEncoder:
    """Reads the encoder of a form once for all that need it."""
    try:
        return pictures.load_picture_encoder(name, side=side, sha256=sha256)
    except DataError as error:
        raise DataError(f"the encoder of the training cannot be used: {error}") from error
