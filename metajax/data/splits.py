"""Which classes are for training, validation and test.

A policy names the classes of each split,
`(classes, seed) -> {"train": names, "valid": names, "test": names}`; `split_classes` checks what it
says and turns it into indices.
"""

import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metajax.data import strict_json
from metajax.data.images import DataError
from metajax.names import FEW, LIMIT, composed, listed, shown

Names = Mapping[str, Sequence[str]]


class Classes(NamedTuple):
    """The classes of a data set, as far as dividing them goes; images have the same attributes.

    Attributes:
      names: One a class, [classes] str.
      groups: What each belongs to, [classes] str.
      counts: [classes] int32, how many images each has.
    """

    names: tuple[str, ...]
    groups: tuple[str, ...]
    counts: np.ndarray

    def select(self, kept: Sequence[int]) -> "Classes":
        """Keeps the classes at these indices, in the order given."""
        names, groups = (tuple(values[i] for i in kept) for values in self[:2])
        return Classes(names, groups, np.asarray(self.counts)[list(kept)])


Policy = Callable[[Classes, int], Names]

SPLITS = ("train", "valid", "test")

OMNIGLOT_COUNTS = (1100, 100, 423)
"""MAML's 1,200 training classes, 100 of them held out for validation, and 423 test classes."""

# The TFDS spelling of the alphabets of Lake's background set; the other 20 are for evaluation.
OMNIGLOT_BACKGROUND = (
    "Alphabet_of_the_Magi",
    "Anglo-Saxon_Futhorc",
    "Arcadian",
    "Armenian",
    "Asomtavruli_(Georgian)",
    "Balinese",
    "Bengali",
    "Blackfoot_(Canadian_Aboriginal_Syllabics)",
    "Braille",
    "Burmese_(Myanmar)",
    "Cyrillic",
    "Early_Aramaic",
    "Futurama",
    "Grantha",
    "Greek",
    "Gujarati",
    "Hebrew",
    "Inuktitut_(Canadian_Aboriginal_Syllabics)",
    "Japanese_(hiragana)",
    "Japanese_(katakana)",
    "Korean",
    "Latin",
    "Malay_(Jawi_-_Arabic)",
    "Mkhedruli_(Georgian)",
    "N_Ko",
    "Ojibwe_(Canadian_Aboriginal_Syllabics)",
    "Sanskrit",
    "Syriac_(Estrangelo)",
    "Tagalog",
    "Tifinagh",
)


def split_classes(
    images: Classes, policy: Policy, *, seed: int = 0, min_images: int = 1
) -> dict[str, tuple[int, ...]]:
    """Splits the classes as the policy says.

    A name of the policy is that of a class or, failing that, equal to it once both are composed (Unicode
    NFC): some systems write the accents of file names apart.

    Args:
      images: Those of all classes, or `Classes` alone.
      policy: `random`, `by_group`, `lake`, `by_name` or `from_file`, called with its options.
      seed: of the policies that draw; a fixed list does not change with it.
      min_images: Fewest images of a class; those with fewer are in no split, as if the data lacked them.

    Returns:
      Indices into `images.names` for train, valid and test, disjoint, each sorted by class name:
      the order in which the source lists its classes makes no difference.

    Raises:
      DataError: a name is unknown, a class is in two splits or twice in one, or a split is empty.
    """
    large = large_classes(images, min_images)
    classes = Classes(images.names, images.groups, images.counts).select(large)
    wanted, index = policy(classes, seed), _indices(images.names)
    named = [name for split in SPLITS for name in wanted[split]]
    if unknown := [name for name in named if index(name) is None]:
        raise DataError(
            f"the split names classes that the data lack: {_nearest(unknown, images.names)}"
        )
    found = {split: [index(name) for name in wanted[split]] for split in SPLITS}
    times = Counter(i for split in SPLITS for i in found[split])
    if repeated := [i for i in times if times[i] > 1]:
        first = repeated[0]
        where = " and ".join(split for split in SPLITS if first in found[split])
        names = listed(images.names[i] for i in repeated)
        raise DataError(
            f"{len(repeated)} classes are listed more than once: {names}, the first of them in {where}; list"
            " each once"
        )
    kept = {split: set(found[split]).intersection(large) for split in SPLITS}
    if empty := [split for split in SPLITS if not kept[split]]:
        enough = f" of {min_images} images or more" if min_images > 1 else ""
        raise DataError(
            f"no class{enough} is left for {' and '.join(empty)}; every split needs one"
        )
    return {split: tuple(sorted(kept[split], key=images.names.__getitem__)) for split in SPLITS}


def large_classes(images: Classes, min_images: int) -> list[int]:
    """Indices of the classes that have enough images; DataError where none has."""
    large = np.flatnonzero(np.asarray(images.counts) >= min_images).tolist()
    if len(images.counts) and not large:
        raise DataError(
            f"no class has {min_images} images, the largest {max(images.counts)}; ask for fewer"
        )
    return large


def _indices(names: Sequence[str]) -> Callable[[str], int | None]:
    """Finds a class by its name, or by its composed name where that is the name of one class only."""
    exact = {name: i for i, name in enumerate(names)}
    alike = Counter(map(composed, names))
    others = {composed(name): i for name, i in exact.items() if alike[composed(name)] == 1}
    return lambda name: exact.get(name, others.get(composed(name)))


def random(
    *,
    counts: Sequence[int] | None = None,
    fractions: Sequence[float] = (0.64, 0.16, 0.20),
    least: int = 1,
) -> Policy:
    """Draws classes at random: test first, then validation, so those stay when training shrinks.

    Args:
      counts: how many classes train, valid and test get; they may leave some out.
      fractions: of the classes, where there are no counts; what rounding leaves goes to train.
      least: Fewest classes of a split, which fractions of a few classes would not reach.
    """

    def policy(images: Classes, seed: int) -> Names:
        names = shuffled(images.names, seed)
        train, valid, test = counts or _share(len(names), fractions, least)
        if train + valid + test > len(names):
            raise DataError(
                f"{train} + {valid} + {test} classes are asked for and the data have {len(names)};"
                " ask for fewer, or split by fractions"
            )
        ends = np.cumsum([test, valid, train])
        return {
            "test": names[: ends[0]],
            "valid": names[ends[0] : ends[1]],
            "train": names[ends[1] : ends[2]],
        }

    return policy


def by_name(names: Names) -> Policy:
    """Takes the classes as they are listed: a published split."""
    return lambda images, seed: names


def given(names: Names) -> Policy:
    """Takes the classes as folders for splits hold them, some of which may be missing."""

    def policy(images: Classes, seed: int) -> Names:
        holders: dict[str, list[str]] = {}
        for split in SPLITS:
            for name in names.get(split, ()):
                holders.setdefault(composed(name), []).append(split)
        if shared := [name for name, splits in holders.items() if len(splits) > 1]:
            raise DataError(
                f"{' and '.join(holders[shared[0]])} hold folders of the same classes, {listed(shared)}, but"
                " classes that are tested must not be trained on; choose the split 'random', which puts the"
                " images of a class together and divides the classes"
            )
        if missing := [split for split in SPLITS if not names.get(split)]:
            raise DataError(
                f"there is no folder for {' and '.join(missing)}, so that no class is left for it; move some"
                " class folders there, or choose the split 'random', which divides them all"
            )
        return names

    return policy


def by_group(groups: Names) -> Policy:
    """Takes all classes of the groups listed for each split: scripts, alphabets, superclasses."""

    def policy(images: Classes, seed: int) -> Names:
        known = {composed(group): group for group in images.groups}
        wanted = {split: [composed(group) for group in groups[split]] for split in SPLITS}
        if unknown := [group for split in SPLITS for group in wanted[split] if group not in known]:
            raise DataError(
                f"the split names groups that the data lack: {_nearest(unknown, known)}"
            )
        members = list(zip(images.names, map(composed, images.groups), strict=True))
        return {s: [name for name, group in members if group in wanted[s]] for s in SPLITS}

    return policy


def lake(*, background: Iterable[str] = OMNIGLOT_BACKGROUND, held_out: int = 5) -> Policy:
    """Keeps alphabets apart: test alphabets are none of the background.

    Args:
      background: groups to learn from; all others are for test.
      held_out: how many of the background groups, drawn by the seed, are for validation.

    Reference: Lake et al., 2015, Science 350 (background and evaluation sets of Omniglot).
    """
    background = frozenset(background)

    def policy(images: Classes, seed: int) -> Names:
        seen = shuffled(set(images.groups) & background, seed)
        if len(seen) <= held_out:
            raise DataError(
                f"{held_out} alphabets are to be held out and the data have {len(seen)} of the"
                f" background set; hold out fewer"
            )
        groups = {
            "train": seen[held_out:],
            "valid": seen[:held_out],
            "test": sorted(set(images.groups) - background),
        }
        return by_group(groups)(images, seed)

    return policy


def from_file(path: str | Path) -> Policy:
    """Reads JSON, {"train": [names], "valid": [names], "test": [names]}; all three are needed."""
    file = f"the split file {shown(path)}"

    def policy(images: Classes, seed: int) -> Names:
        try:
            names = strict_json.loads(Path(path).read_text(encoding="utf-8-sig"))
        except OSError as error:
            raise DataError(f"{file} cannot be read: {error.strerror or shown(error)}") from error
        except ValueError as error:
            raise DataError(f"{file} is not JSON as it should be: {shown(error)}") from error
        if not isinstance(names, dict) or set(names) != set(SPLITS):
            found = listed(sorted(names)) if isinstance(names, dict) else type(names).__name__
            raise DataError(
                f'{file} must hold {{"train": [...], "valid": [...], "test": [...]}} and holds'
                f" {found or 'nothing'}. Where a published split has no validation classes, move some"
                " training classes there"
            )
        for split, classes in names.items():
            if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
                raise DataError(f"{file}: {split} must be a list of class names")
        return names

    return policy


def shuffled(names: Iterable[str], seed: int) -> list[str]:
    """Sorts, then shuffles by the seed: the same on every machine and in every NumPy version."""
    names = sorted(names)
    # NumPy keeps the raw bits of a generator for ever, but not what it makes of them.
    keys = np.random.PCG64(seed).random_raw(len(names))
    return [names[i] for i in np.argsort(keys, kind="stable")]


def _share(classes: int, fractions: Sequence[float], least: int) -> tuple[int, int, int]:
    if classes < 3 * least:
        each = f" of {least} classes or more" if least > 1 else ""
        raise DataError(
            f"three splits{each} need {3 * least} classes or more, and the data have {classes}; add classes"
        )
    if min(fractions) < 0 or sum(fractions) > 1 + 1e-9:
        raise ValueError(
            f"fractions {tuple(fractions)} must not be negative nor sum to more than 1"
        )
    valid, test = (max(least, round(classes * part)) for part in fractions[1:])
    left_out = round(classes * (1 - sum(fractions)))
    return classes - valid - test - left_out, valid, test


def _nearest(unknown: Sequence[str], known: Iterable[str]) -> str:
    # Comparing takes the square of the length, and what is so long is no name.
    known = [name for name in sorted(known) if len(name) <= LIMIT]
    hints = []
    for name in unknown[:FEW]:
        close = difflib.get_close_matches(name[:LIMIT], known, n=3)
        hint = f" (did you mean {', '.join(map(shown, close))}?)" if close else ""
        hints.append(f"'{shown(name)}'{hint}")
    more = f" and {len(unknown) - FEW} more" if len(unknown) > FEW else ""
    return ", ".join(hints) + more
