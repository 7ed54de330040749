"""What a text in a table stands for: a number, a word, or nothing."""

from collections.abc import Iterable

MISSING = frozenset(("", "?", "na", "n/a", "nan", "null", "none"))
"""Words that stand for a missing number, in lower case."""

NO_CATEGORY = MISSING - {"none"}
"""Words that stand for a missing category or class, in lower case; "none" may be an answer."""


def is_missing(word: str) -> bool:
    """Checks whether a text stands for a missing category or class.

    Args:
      word: Value of a column.

    Returns:
      Whether it is in `NO_CATEGORY`, in any case and with any blanks around it.

    Example:
      >>> is_missing("NA"), is_missing(" "), is_missing("none")
      (True, True, False)
    """
    return word.strip().lower() in NO_CATEGORY


def parse_number(word: str) -> float:
    """Reads a number.

    Args:
      word: Value of a column.

    Returns:
      The number, which may be infinite or NaN.

    Raises:
      ValueError: If it is none. Python's `float` reads the code "3_7" as 37; here it is a word.

    Example:
      >>> parse_number(" 1e3 ")
      1000.0
    """
    if "_" in word:
        raise ValueError(f"'{word}' is not a number")
    return float(word)


def missing_among(words: Iterable[str]) -> frozenset[str]:
    """Finds the words that stand for a missing class: "none" too where all classes are numbers.

    Args:
      words: Values of the target.

    Returns:
      The words, in lower case.

    Example:
      >>> "none" in missing_among(["0", "1", "none"]), "none" in missing_among(["mild", "none"])
      (True, False)
    """
    found = {word.strip().lower() for word in words} - MISSING
    try:
        return MISSING if found and [parse_number(word) for word in found] else NO_CATEGORY
    except ValueError:
        return NO_CATEGORY
