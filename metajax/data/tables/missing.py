"""Words that stand for a missing value in a table."""

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
