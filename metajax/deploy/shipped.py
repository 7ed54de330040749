"""Bundles that come with metajax, by name."""

from pathlib import Path

from metajax.data import bundles
from metajax.errors import DataError
from metajax.names import listed, shown

_ROOT = Path(__file__).parent / "trained"


def shipped_names() -> tuple[str, ...]:
    """Lists the trained learners that come with metajax.

    Returns:
      Names for `metajax.load`.

    Example:
      >>> metajax.deploy.shipped_names()
      ('glyphs',)
    """
    return tuple(sorted(path.name for path in _ROOT.iterdir() if bundles.is_bundle(path)))


def find_bundle(path: str | Path) -> Path:
    """Finds the folder of a bundle.

    Args:
      path: Bundle, work directory of a run, which has its bundle in the folder `model`, or name of a bundle
        that comes with metajax. A folder with a bundle comes before a name.

    Returns:
      Folder of the bundle.

    Raises:
      DataError: If there is neither.

    Example:
      >>> find_bundle("glyphs").name
      'glyphs'
    """
    folder = Path(path).expanduser()
    for each in (folder, folder / "model"):
        if bundles.is_bundle(each):
            return each
    if str(path) in shipped_names():
        return _ROOT / str(path)
    if folder.exists():
        return folder  # its reading tells what is wrong
    raise DataError(
        f"{shown(path)} is no bundle: it has no {bundles.DESCRIPTION}, and no trained learner of this name "
        "comes with metajax. Give the folder of a run or of a saved model, or one of: "
        f"{listed(shipped_names())}"
    )
