"""Positive scalars of a learner, such as a temperature or a strength: fixed, or learned across tasks."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from metajax.types import Array


class Positive(NamedTuple):
    """A positive scalar with or without a parameter, which a learner keeps in its meta-parameters.

    Attributes:
      init: dtype -> the parameter: () if the scalar is fixed, its logarithm, a scalar, if it is learned.
      value: the parameter -> the scalar, above zero: the number itself if it is fixed.
    """

    init: Callable[[Any], Any]
    value: Callable[[Any], Array | float]


def fixed(number: float) -> Positive:
    """Holds a positive scalar constant; a plain number in place of a `Positive` means the same.

    Args:
      number: Value, above 0 and finite.
    """
    _check(number, "fixed")
    return Positive(init=lambda dtype: (), value=lambda parameter: number)


def learned(number: float) -> Positive:
    """Learns a positive scalar across tasks, by its logarithm.

    For example `metajax.protonet(encoder, ways=5, scale=metajax.learned(10.0))`.

    Args:
      number: Value that training starts from, above 0 and finite.
    """
    _check(number, "learned")
    return Positive(init=lambda dtype: jnp.asarray(math.log(number), dtype), value=jnp.exp)


def as_positive(number: float | Positive, *, name: str) -> Positive:
    """Takes a plain number for `fixed(number)`, and returns a `Positive` as it is.

    Args:
      number: Number above 0 and finite, or a `Positive`.
      name: Name of the option, for the error.

    Raises:
      ValueError: if the number is not above 0 and finite.
      TypeError: if it is neither a number nor a `Positive`.
    """
    if isinstance(number, Positive):
        return number
    _check(number, name)
    return fixed(number)


def _check(number: float, name: str) -> None:
    try:
        positive = 0 < number < math.inf
    except TypeError as error:
        raise TypeError(
            f"{name} is {number!r}; use a number above 0, such as 2.0, or metajax.learned(2.0)."
        ) from error
    if not positive:
        raise ValueError(f"{name} is {number}; use a finite number above 0.")
