"""Hints at known names that resemble an unknown one."""

import difflib
from collections.abc import Sequence

from metajax.names import LIMIT, listed, shown


def nearest(name: str, known: Sequence[str]) -> str:
    """Suggests known names that resemble an unknown one, or lists the first of them.

    Args:
      name: Unknown name.
      known: Known names.

    Returns:
      End of a sentence.

    Example:
      >>> nearest("lable", ["label", "text"])
      "did you mean 'label'?"
    """
    # A comparison takes the square of the length, and no sensible name is so long.
    lower = {each.lower(): each for each in known if len(each) <= LIMIT}
    near = difflib.get_close_matches(name[:LIMIT].lower(), lower, n=3, cutoff=0.5)
    if near:
        quoted = [f"'{shown(lower[each])}'" for each in near]
        return f"did you mean {' or '.join(quoted)}?"
    return f"use one of {listed(known, few=20)}."
