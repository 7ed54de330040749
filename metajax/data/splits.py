"""Policies that divide the classes of a data set into training, validation and test classes.

A policy is a function `(classes, seed) -> {"train": names, "valid": names, "test": names}`; `split_classes`
checks its answer and turns names into numbers of classes.
"""

import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from metajax.data import strict_json
from metajax.errors import DataError
from metajax.names import FEW, LIMIT, composed, listed, shown

Names = Mapping[str, Sequence[str]]


class ClassInfo(Protocol):
    """Labeled images or `Classes`: whatever has the names, groups and sizes of classes."""

    @property
    def names(self) -> tuple[str, ...]:
        """Unique name of each class."""
        ...

    @property
    def groups(self) -> tuple[str, ...]:
        """Group that each class belongs to; '' for none."""
        ...

    @property
    def counts(self) -> np.ndarray:
        """Number of images per class, [classes] int32."""
        ...


class Classes(NamedTuple):
    """The classes of a data set, without images; labeled images have the same attributes.

    Attributes:
      names: Unique name of each class.
      groups: Group that each class belongs to; '' for none.
      counts: Number of images per class, [classes] int32.
    """

    names: tuple[str, ...]
    groups: tuple[str, ...]
    counts: np.ndarray

    def select(self, kept: Sequence[int]) -> "Classes":
        """Keeps some of the classes.

        Args:
          kept: Numbers of the classes to keep, in their new order.

        Returns:
          The classes.
        """
        names, groups = (tuple(values[i] for i in kept) for values in (self.names, self.groups))
        return Classes(names, groups, np.asarray(self.counts)[list(kept)])


Policy = Callable[[Classes, int], Names]  # (classes, seed) -> class names by split

SPLITS = ("train", "valid", "test")
"""Names of the splits."""

OMNIGLOT_COUNTS = (1100, 100, 423)
"""MAML's 1,200 training classes, 100 of them held out for validation, and 423 test classes."""

# The alphabets of Lake's background set, as TFDS spells them; the other 20 are for evaluation.
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
    images: ClassInfo, policy: Policy, *, seed: int = 0, min_images: int = 1
) -> dict[str, tuple[int, ...]]:
    """Splits classes by a policy.

    A name in the answer of the policy is the name of a class or, failing that, equal to it in composed form
    (Unicode NFC), because some systems decompose the accents of file names.

    Args:
      images: Labeled images of all classes, or their `Classes`.
      policy: Policy, such as `random()`, `by_group(...)`, `lake()`, `by_name(...)` or `from_file(...)`.
      seed: Seed for policies that draw; fixed lists ignore it.
      min_images: Fewest images of a class; smaller classes are in no split, as if the data lacked them.

    Returns:
      Numbers of classes by split, disjoint and sorted by class name, so that the order of the classes in
      the source does not matter.

    Raises:
      DataError: If a name is unknown, a class is listed twice, or a split is empty.

    Example:
      >>> from metajax.data import splits
      >>> classes = splits.Classes(("ant", "bee", "cat"), ("", "", ""), np.array([5, 5, 5]))
      >>> policy = splits.by_name({"train": ["bee"], "valid": ["cat"], "test": ["ant"]})
      >>> splits.split_classes(classes, policy)
      {'train': (1,), 'valid': (2,), 'test': (0,)}
    """
    large = large_classes(images, min_images)
    classes = Classes(images.names, images.groups, images.counts).select(large)
    wanted, index = policy(classes, seed), _indices(images.names)
    found: dict[str, list[int]] = {split: [] for split in SPLITS}
    unknown = []
    for split in SPLITS:
        for name in wanted[split]:
            number = index(name)
            if number is None:
                unknown.append(name)
            else:
                found[split].append(number)
    if unknown:
        raise DataError(
            f"the split names classes that the data lack: {_nearest(unknown, images.names)}"
        )
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
    return {split: tuple(sorted(kept[split], key=lambda i: images.names[i])) for split in SPLITS}


def large_classes(images: ClassInfo, min_images: int) -> list[int]:
    """Finds the classes with enough images.

    Args:
      images: Labeled images of all classes, or their `Classes`.
      min_images: Fewest images of a class.

    Returns:
      Numbers of the classes, in ascending order.

    Raises:
      DataError: If no class has enough images.
    """
    large = np.flatnonzero(np.asarray(images.counts) >= min_images).tolist()
    if len(images.counts) and not large:
        raise DataError(
            f"no class has {min_images} images, and the largest has {max(images.counts)}; use a lower minimum"
        )
    return large


def _indices(names: Sequence[str]) -> Callable[[str], int | None]:
    """Makes a function that finds a class by its name, or by its composed name if that is unique."""
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
    """Makes a policy that draws classes at random.

    Test classes are drawn first, then validation classes, so both stay the same if the training split
    shrinks.

    Args:
      counts: Number of training, validation and test classes; the sum may be less than all classes.
      fractions: Shares of training, validation and test classes, used without `counts`; classes left over by
        rounding are for training.
      least: Fewest classes of a split, for data sets of few classes.

    Returns:
      The policy, which raises DataError if there are too few classes.

    Example:
      >>> from metajax.data import splits
      >>> names = tuple(f"class {i}" for i in range(10))
      >>> classes = splits.Classes(names, ("",) * 10, np.full(10, 5))
      >>> {name: len(kept) for name, kept in splits.random()(classes, 0).items()}
      {'test': 2, 'valid': 2, 'train': 6}
    """

    def policy(images: Classes, seed: int) -> Names:
        names = shuffled(images.names, seed)
        train, valid, test = counts or _share(len(names), fractions, least)
        if train + valid + test > len(names):
            raise DataError(
                f"{train} + {valid} + {test} classes are asked for, and the data have {len(names)};"
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
    """Makes a policy of fixed lists, such as a published split.

    Args:
      names: Class names by split.

    Returns:
      The policy.

    Example:
      >>> from metajax.data import splits
      >>> policy = splits.by_name({"train": ["bee"], "valid": ["cat"], "test": ["ant"]})
    """
    return lambda images, seed: names


def given(names: Names) -> Policy:
    """Makes a policy of the folders for splits, some of which may be missing.

    Args:
      names: Class names by split, as `files.folder.given_split` finds them.

    Returns:
      The policy, which raises DataError if a folder is missing or two folders share a class.
    """

    def policy(images: Classes, seed: int) -> Names:
        holders: dict[str, list[str]] = {}
        for split in SPLITS:
            for name in names.get(split, ()):
                holders.setdefault(composed(name), []).append(split)
        if shared := [name for name, splits in holders.items() if len(splits) > 1]:
            raise DataError(
                f"{' and '.join(holders[shared[0]])} hold folders of the same classes, {listed(shared)}, but"
                " test classes must not be trained on; choose the split 'random', which puts the"
                " images of a class together and divides the classes"
            )
        if missing := [split for split in SPLITS if not names.get(split)]:
            raise DataError(
                f"there is no folder for {' and '.join(missing)}, so it has no class; move some class folders"
                " there, or choose the split 'random', which divides all classes"
            )
        return names

    return policy


def by_group(groups: Names) -> Policy:
    """Makes a policy of groups of classes, such as scripts, alphabets or superclasses.

    Args:
      groups: Names of groups by split.

    Returns:
      The policy, which raises DataError if a group is unknown.
    """

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


def lake(
    *,
    background: Iterable[str] = OMNIGLOT_BACKGROUND,
    held_out: int = 5,
    also: Iterable[str] = (),
) -> Policy:
    """Makes Lake's policy of Omniglot: no alphabet is in two splits.

    Args:
      background: Alphabets for training and validation; all others are for test.
      held_out: Number of background alphabets, drawn by the seed, for validation.
      also: Further groups for training, of which none is for validation.

    Returns:
      The policy, which raises DataError if there are too few background alphabets.

    Reference: Lake et al., 2015, Science 350 (background and evaluation sets of Omniglot).
    """
    background, also = frozenset(background), frozenset(also)

    def policy(images: Classes, seed: int) -> Names:
        seen = shuffled(set(images.groups) & background, seed)
        if len(seen) <= held_out:
            raise DataError(
                f"{held_out} alphabets are to be held out, and the data have {len(seen)} of the"
                " background set; hold out fewer"
            )
        groups = {
            "train": [*seen[held_out:], *sorted(also)],
            "valid": seen[:held_out],
            "test": sorted(set(images.groups) - background - also),
        }
        return by_group(groups)(images, seed)

    return policy


def from_file(path: str | Path) -> Policy:
    """Makes a policy of a JSON file.

    Args:
      path: File with {"train": [class names], "valid": [...], "test": [...]}; all three are needed.

    Returns:
      The policy, which reads the file when it is called, and raises DataError if the file is missing or
      broken.
    """
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
    """Sorts names, then shuffles them; the same on every machine and in every NumPy version.

    Args:
      names: Names in any order.
      seed: Seed of the shuffle.

    Returns:
      The names in random order.
    """
    names = sorted(names)
    # NumPy guarantees the raw bits of a generator for all versions, and not its `permutation`.
    keys = np.random.PCG64(seed).random_raw(len(names))
    return [names[i] for i in np.argsort(keys, kind="stable")]


def _share(classes: int, fractions: Sequence[float], least: int) -> tuple[int, int, int]:
    """Computes the number of training, validation and test classes."""
    if classes < 3 * least:
        each = f" of {least} classes or more" if least > 1 else ""
        raise DataError(
            f"three splits{each} need {3 * least} classes or more, and the data have {classes}; add classes"
        )
    if min(fractions) < 0 or sum(fractions) > 1 + 1e-9:
        raise ValueError(
            f"fractions are {tuple(fractions)}; use numbers of 0 or more whose sum is at most 1"
        )
    valid, test = (max(least, round(classes * part)) for part in fractions[1:])
    left_out = round(classes * (1 - sum(fractions)))
    return classes - valid - test - left_out, valid, test


def _nearest(unknown: Sequence[str], known: Iterable[str]) -> str:
    """Quotes the first unknown names, each with the known names that resemble it."""
    # A comparison takes the square of the length, and no sensible name is so long.
    known = [name for name in sorted(known) if len(name) <= LIMIT]
    hints = []
    for name in unknown[:FEW]:
        close = difflib.get_close_matches(name[:LIMIT], known, n=3)
        hint = f" (did you mean {', '.join(map(shown, close))}?)" if close else ""
        hints.append(f"'{shown(name)}'{hint}")
    more = f" and {len(unknown) - FEW} more" if len(unknown) > FEW else ""
    return ", ".join(hints) + more
