"""Few-shot images of characters, drawn from the fonts that come with matplotlib: nothing is downloaded.

A class is a letter; an image is that letter in one of the twelve DejaVu faces, slightly turned, slanted,
stretched, moved, and with a thicker or thinner stroke. Letters that look alike (Latin A, Greek Alpha,
Cyrillic A; C and c) are one class, and classes are split by script, so that training has no letter of the
test scripts.

Every letter fills the frame, so sizes do not distinguish classes. Do not make new classes by quarter turns,
as is customary with Omniglot: many Canadian syllabics are rotations of each other.
"""

import math
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metajax.data.files import decoding
from metajax.data.images import LabelledImages
from metajax.errors import DataError

# Scripts by split. A script is the beginning of the Unicode names of its letters, and the group of its
# classes.
SPLIT_SCRIPTS: dict[str, tuple[str, ...]] = {
    "train": ("LATIN", "CYRILLIC", "CANADIAN SYLLABICS", "COPTIC", "LISU"),
    "valid": ("ARABIC", "GREEK", "OLD ITALIC"),
    "test": ("GEORGIAN", "ARMENIAN", "HEBREW", "LAO"),
}

# The first of several letters that look alike is kept, in this order: Latin, whose names everybody knows,
# then the validation and test scripts, which have few letters.
_LATIN, *_OTHERS = SPLIT_SCRIPTS["train"]
_PRIORITY = (_LATIN, *SPLIT_SCRIPTS["test"], *SPLIT_SCRIPTS["valid"], *_OTHERS)

_CATEGORIES = {"Ll", "Lo", "Lt", "Lu"}  # letters, without the tiny modifiers of Lm
_MIN_FACES = 4  # fewest faces that hold a letter
_FONT_PIXELS = 96  # size of an em, well above the size of an image
_MIN_INK = 0.4 * _FONT_PIXELS  # a smaller letter is a dot

# Two drawings are compared in a box of this side in pixels, each thickened by one pixel of tolerance. They
# are alike if less ink than `_ALIKE` pixels of either is missing from the other. The limit was chosen, and
# the twins were found, by inspecting the closest pairs that were kept.
_BOX = 24
_ASPECTS_PER_OCTAVE = 4
_ALIKE = 6.5
_GRAYS = 15  # levels, so few that sums of products are exact in float32 and equal on every machine

# Pairs that differ by the measure and not to the eye; the first of each is left out.
_TWINS = (
    "ႺG ჳƷ ՄU ႮU ⴎU Րr 𐌀A Γr τT ɹل Ꞁר ⱷՓ ᒐՆ ƌმ ðბ ƛλ ꞍႡ ƱႣ ƻշ ɖⴣ ƕԽ ɿג "
    "ԆႢ ᒉԴ ᓮᓲ ᑬᑮ ᒊᒌ ᑍᑏ ᔧᔩ ꜢȜ ʓƺ ɥႡ Лת ɰⴓ 𐌜b ᵽթ ᙱᖏ ᙲᖐ ᙳᖑ ᙴᖒ ᙵᖓ ᙶᖔ ꝼꝻ Ⴄף ѹѸ ҖЖ ѱΨ ჁԻ Ϯꝉ "
    "ᔇᓯ ᐥǁ ᐦǁ Һh ӎⱮ ⴁႸ ЏЦ ᵼᵻ ҎP ҏp Ꝋɵ Ꜿᑔ ɑa ϡϠ ⴥႻ ƿP ћħ ʉɄ סD ɞՅ ϺM ϻM ѰΨ 𐌂ᐸ "
    "ɸՓ Ⴈר ᴖᴒ ƣƢ 𐌒ϙ 𐌕T Ϣω"
)

_OVERSAMPLING = 4  # pixels of a drawing per pixel of an image
_BLUR = 2.0  # pixels of the em; limits the distance by which the edge of a stroke can move


class _Face(NamedTuple):
    """A font.

    Attributes:
      name: Name of its file, without suffix.
      font: Font object of Pillow.
      letters: Letters that it holds.
    """

    name: str
    font: Any
    letters: frozenset[str]


def build(
    *,
    images_per_class: int = 20,
    image_size: int = 28,
    seed: int = 0,
    characters: Iterable[str] | None = None,
) -> LabelledImages:
    """Draws the data set, with ink 255 on 0; all of it takes ten to twenty seconds.

    Every letter has its own random stream: its images do not depend on the other letters, and fewer images
    per class are a prefix of more. The same versions of Pillow and of the fonts give the same bytes.

    Args:
      images_per_class: Number of images per letter, at least 1.
      image_size: Height and width in pixels, at least 8.
      seed: Seed of the faces and the distortions.
      characters: Letters to choose from; None for all letters that enough faces hold.

    Returns:
      Images [M, image_size, image_size, 1] of classes that have the Unicode names of the letters, grouped by
      script.

    Raises:
      DataError: If matplotlib, its fonts or Pillow are missing, no letter is left, or images are too small.
      ValueError: If `images_per_class` is below 1.

    Example:
      >>> from metajax.data import glyphs
      >>> images = glyphs.build(images_per_class=2, characters="gk")
      >>> print(images.images.shape, images.names[0])
      (4, 28, 28, 1) LATIN SMALL LETTER G
    """
    if images_per_class < 1:
        raise ValueError(f"images_per_class is {images_per_class}; use 1 or more.")
    if image_size < 8:
        raise DataError(f"image_size is {image_size} pixels, too small to read; use 8 or more.")
    faces = _load_faces()
    letters = _distinct(_candidates(faces, characters), faces)
    if not letters:
        raise DataError(
            f"No letter to draw among the characters {characters!r}; use letters of the "
            f"scripts in SPLIT_SCRIPTS that at least {_MIN_FACES} DejaVu faces hold."
        )
    images = decoding.allocate(len(letters) * images_per_class, image_size=image_size, channels=1)
    for i, letter in enumerate(letters):
        own = slice(i * images_per_class, (i + 1) * images_per_class)
        images[own, ..., 0] = _draw(letter, faces, images_per_class, image_size, seed)
    return LabelledImages(
        images=images,
        counts=np.full(len(letters), images_per_class, np.int32),
        names=tuple(unicodedata.name(letter) for letter in letters),
        groups=tuple(_script(letter) for letter in letters),
    )


def _load_faces() -> list[_Face]:
    """Opens the text faces of DejaVu, in the order of their names."""
    try:
        import matplotlib
        from matplotlib.ft2font import FT2Font
        from PIL import ImageFont
    except ImportError as error:
        raise DataError(
            f"The glyphs data set is drawn with matplotlib and Pillow, but {error}; "
            "run pip install 'metajax[data]'."
        ) from error
    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    paths = [path for path in sorted(folder.glob("DejaVu*.ttf")) if "Display" not in path.name]
    if len(paths) < _MIN_FACES:
        raise DataError(
            f"{folder} holds {len(paths)} DejaVu faces, and at least {_MIN_FACES} are needed; this "
            "matplotlib came without its fonts: install the package of PyPI, "
            "pip install --force-reinstall matplotlib."
        )
    # The basic layout draws the same letter with and without libraqm.
    layout = ImageFont.Layout.BASIC
    return [
        _Face(
            path.stem,
            ImageFont.truetype(str(path), _FONT_PIXELS, layout_engine=layout),
            frozenset(map(chr, FT2Font(str(path)).get_charmap())),
        )
        for path in paths
    ]


def _script(letter: str) -> str:
    """Names the script of a letter; '' for a letter of no split."""
    name = unicodedata.name(letter, "")
    return next((script for script in _PRIORITY if name.startswith(script + " ")), "")


def _candidates(faces: Sequence[_Face], characters: Iterable[str] | None) -> list[str]:
    """Lists the letters of all splits that enough faces hold, by priority."""
    every = frozenset().union(*(face.letters for face in faces))
    letters = [
        letter
        for letter in every.intersection(every if characters is None else characters)
        if unicodedata.category(letter) in _CATEGORIES
        and unicodedata.normalize("NFKD", letter) == letter  # no accented, no compatibility forms
        and _script(letter)
        and sum(letter in face.letters for face in faces) >= _MIN_FACES
    ]
    return sorted(letters, key=lambda letter: (_PRIORITY.index(_script(letter)), letter))


def _ink(face: _Face, letter: str) -> Any:
    """Draws a letter as a gray Pillow image, cropped to its ink."""
    from PIL import Image, ImageDraw

    left, top, right, bottom = face.font.getbbox(letter)
    image = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(image).text((-left, -top), letter, fill=255, font=face.font)
    return image.crop(image.getbbox())


def _distinct(letters: Sequence[str], faces: Sequence[_Face]) -> list[str]:
    """Keeps, in order, each letter that is large enough and unlike all kept letters."""
    # Bold faces are left out, because their thick strokes hide differences that the eye sees.
    regular = [face for face in faces if "Bold" not in face.name]
    drawings = [[_ink(face, x) for face in regular if x in face.letters] for x in letters]
    alike = _alike(drawings)
    kept: list[int] = []
    for index, inks in enumerate(drawings):
        large = all(max(ink.size) >= _MIN_INK for ink in inks)
        if large and not alike[index, kept].any():
            kept.append(index)
    twins = {pair[0] for pair in _TWINS.split()}
    return [letters[index] for index in kept if letters[index] not in twins]


def _alike(drawings: Sequence[Sequence[Any]]) -> np.ndarray:
    """Compares letters: the drawings of one in every face with the drawings of another in every face.

    A drawing is stretched to two boxes, whose aspects are the neighbors of the drawing's aspect in a
    geometric series. So letters of similar aspect are compared stroke by stroke, and a bar is never compared
    with a square.

    Args:
      drawings: Drawings of each letter, one per face.

    Returns:
      Marks of letters that are alike, [letters, letters] bool.
    """
    boxes = defaultdict(list)
    for letter, inks in enumerate(drawings):
        for ink in inks:
            step = math.floor(_ASPECTS_PER_OCTAVE * math.log2(ink.width / ink.height))
            for aspect in (step, step + 1):
                boxes[aspect].append((letter, ink))
    alike = np.zeros((len(drawings), len(drawings)), bool)
    for aspect, members in boxes.items():
        owners = np.array([letter for letter, _ in members])
        exact, thick = _stretched([ink for _, ink in members], 2 ** (aspect / _ASPECTS_PER_OCTAVE))
        missing = _GRAYS * exact.sum(axis=1, keepdims=True) - exact @ thick.T
        close = np.maximum(missing, missing.T) < _ALIKE * _GRAYS**2
        first, second = np.nonzero(close)
        alike[owners[first], owners[second]] = True
    return alike


def _stretched(inks: Sequence[Any], aspect: float) -> tuple[np.ndarray, np.ndarray]:
    """Fits drawings to a box of an aspect.

    Args:
      inks: Drawings.
      aspect: Width of the box over its height.

    Returns:
      The drawings, and the drawings thickened by one pixel on all sides: float32 [drawings, pixels] of whole
      numbers up to `_GRAYS`.
    """
    from PIL import Image, ImageFilter

    width, height = (max(3, round(_BOX * min(1.0, side))) for side in (aspect, 1 / aspect))
    exact, thick = [], []
    for ink in inks:
        image = Image.new("L", (width + 2, height + 2))
        image.paste(ink.resize((width, height), Image.Resampling.BOX), (1, 1))
        exact.append(np.asarray(image).ravel())
        thick.append(np.asarray(image.filter(ImageFilter.MaxFilter(3))).ravel())
    grays = np.round(np.arange(256) * (_GRAYS / 255)).astype(np.float32)
    return grays[np.stack(exact)], grays[np.stack(thick)]


def _draw(
    letter: str, faces: Sequence[_Face], count: int, image_size: int, seed: int
) -> np.ndarray:
    """Draws images [count, image_size, image_size] uint8 of one letter, in all faces in turn."""
    rng = np.random.default_rng((seed, ord(letter)))
    inks = [_ink(face, letter) for face in faces if letter in face.letters]
    turns = rng.permutation(len(inks))
    choices = rng.uniform(-1, 1, (count, 7))
    return np.stack(
        [_distorted(inks[turns[i % len(inks)]], choices[i], image_size) for i in range(count)]
    )


def _distorted(ink: Any, choices: np.ndarray, image_size: int) -> np.ndarray:
    """Distorts a drawing by seven numbers in [-1, 1]; all its ink stays within the frame."""
    from PIL import Image

    turn, slant, stretch, size, weight, *move = choices
    glyph = _reweighted(ink, weight)
    frame = _OVERSAMPLING * image_size
    cosine, sine = math.cos(0.18 * turn), math.sin(0.18 * turn)  # about 10 degrees
    shape = np.array([[cosine, -sine], [sine, cosine]]) @ [[1, 0.15 * slant], [0, 1]]
    shape = shape * np.exp([0.1 * stretch, -0.1 * stretch])
    reach = np.abs(shape) @ (np.array(ink.size) / 2 + _BLUR)  # half of the extent of the ink
    scale = (0.78 + 0.12 * size) * frame / 2 / reach.max()
    slack = np.minimum(0.47 * frame - scale * reach, 0.08 * frame)
    inverse = np.linalg.inv(scale * shape)  # Pillow maps pixels of the result to the source
    origin = np.array(glyph.size) / 2 - inverse @ (frame / 2 + slack * move)
    warp = (*inverse[0], origin[0], *inverse[1], origin[1])
    large = glyph.transform((frame, frame), Image.Transform.AFFINE, warp, Image.Resampling.BILINEAR)
    return np.asarray(large.resize((image_size, image_size), Image.Resampling.HAMMING))


def _reweighted(ink: Any, weight: float) -> Any:
    """Thickens (`weight` up to 1) or thins (down to -1) the strokes, and adds a border."""
    from PIL import ImageFilter, ImageOps

    # A blur and a threshold move the edges: outward for a threshold below one half, inward above it. The blur
    # leaves two thirds of the ink of a hairline, so the highest threshold, 0.58, keeps it.
    blurred = ImageOps.expand(ink, math.ceil(3 * _BLUR)).filter(ImageFilter.GaussianBlur(_BLUR))
    level = 255 * (0.4 - 0.18 * weight)
    return blurred.point([min(255, max(0, round(128 + 2.5 * (v - level)))) for v in range(256)])
