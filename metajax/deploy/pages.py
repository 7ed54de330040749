"""A page that learns in the browser: a static folder of a learner, onnxruntime-web and one HTML file."""

import base64
import json
from pathlib import Path
from typing import NamedTuple

from metajax.data import bundles
from metajax.data.files.npm import read_npm
from metajax.deploy.classifier import Classifier
from metajax.deploy.export import export_onnx, has_features
from metajax.errors import DataError
from metajax.names import shown

RUNTIME = "onnxruntime-web"
"""Package of npm that runs ONNX programs in a browser."""
PAGE_MODEL = "glyphs"
"""Name of the bundle of a page where none is given."""
MOST_CLASSES = 10
"""Classes that a page offers by default, of learners that tell any number apart."""

_FILES = ("dist/ort.wasm.bundle.min.mjs", "dist/ort-wasm-simd-threaded.wasm")


class Page(NamedTuple):
    """A folder that was written.

    Attributes:
      folder: The folder.
      size: Bytes of its files.
      version: Version of onnxruntime-web.
    """

    folder: Path
    size: int
    version: str


def write_pages(
    model: Classifier, folder: str | Path, *, runtime: str | Path | None, ways: int | None = None
) -> Page:
    """Writes a static folder whose page learns classes from drawings and pictures, offline.

    Any static host serves it, as `python -m http.server --directory FOLDER` does. The classes that the model
    has learned are there at the start, with their examples.

    Args:
      model: Trained learner of pictures.
      folder: Folder to write.
      runtime: Archive or folder of the package onnxruntime-web of npm.
      ways: Most classes; None is 10, or as many as the learner tells apart.

    Returns:
      The folder, its size and the version of onnxruntime-web.

    Raises:
      DataError: If the learner cannot be written as ONNX, more classes are learned than `ways`, or the
        package is not there.
      ImportError: If `onnx` is not installed.

    Example:
      >>> write_pages(metajax.load("pets"), "page", runtime="onnxruntime-web-1.30.0.tgz")  # doctest: +SKIP
    """
    if runtime is None:
        raise DataError(
            f"the page needs {RUNTIME}; fetch it once by `npm pack {RUNTIME}`, and give the archive as "
            "--runtime"
        )
    spec, form = model.bundle.spec, model.bundle.images
    if ways is None:
        ways = max(MOST_CLASSES, len(model.labels)) if spec.any_ways else spec.ways
    if len(model.labels) > ways:
        raise DataError(
            f"{len(model.labels)} classes are learned; use --ways={len(model.labels)} or more"
        )
    version, files = read_npm(runtime, RUNTIME, _FILES)
    contents = {name.rpartition("/")[2]: content for name, content in files.items()}
    parts = ["adapt", "predict", *(["features"] if has_features(spec) else [])]
    for part in parts:
        contents[f"{part}.onnx"] = export_onnx(model.bundle, ways=ways, part=part)
    facts = {
        "size": form.shape[0],
        "channels": form.shape[2],
        "ways": ways,
        "fit": form.fit,
        "invert": form.invert,
        "dark_background": sum(form.mean) < 0.5 * len(form.mean),
        "parts": parts,
        "learner": spec.learner,
        RUNTIME: version,
        "examples": [
            {"label": label, "pictures": [base64.b64encode(p.tobytes()).decode() for p in pictures]}
            for label, pictures in model.examples.items()
        ],
    }
    contents["model.json"] = json.dumps(facts).encode()
    contents["index.html"] = Path(__file__).with_name("page").joinpath("index.html").read_bytes()
    folder = Path(folder).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{shown(folder)} cannot be made: {error.strerror}") from error
    for name, content in contents.items():
        bundles.write_file(folder / name, content)
    return Page(folder, sum(map(len, contents.values())), version)
