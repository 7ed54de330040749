"""The table of operations. A rule is a function (graph, equation, *values) -> value, or values."""

from collections.abc import Callable
from typing import Any

import numpy as np

Rule = Callable[..., Any]

RULES: dict[str, Rule] = {}
"""Rules by the name of the operation."""


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Registers the rule of operations.

    Args:
      *names: Names of the operations.

    Returns:
      A decorator of the rule.

    Example:
      >>> @rule("nothing")
      ... def _nothing(graph, equation, value):
      ...     return value
      >>> RULES.pop("nothing") is _nothing
      True
    """

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def dtype_of(equation: Any) -> np.dtype:
    """Returns the dtype of the first argument of an equation.

    Args:
      equation: Equation of a jaxpr.

    Returns:
      The dtype.
    """
    return np.dtype(equation.invars[0].aval.dtype)


def shape_of(equation: Any, argument: int = 0) -> tuple:
    """Returns the shape of an argument of an equation.

    Args:
      equation: Equation of a jaxpr.
      argument: Number of the argument.

    Returns:
      The shape; sizes may be symbolic.
    """
    return equation.invars[argument].aval.shape
