"""Positive scalars of a learner, such as a temperature or a penalty: fixed, or learned across tasks."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from metajax.types import Array


class Positive(NamedTuple):
    """A positive scalar, fixed or learned, that a learner keeps in its meta-parameters.

    Attributes:
      init: Function dtype -> parameter: () for a fixed scalar, the logarithm, a scalar, for a learned one.
      value: Function parameter -> scalar above zero: the number itself for a fixed scalar.
    """

    init: Callable[[Any], Any]
    value: Callable[[Any], Array | float]


def fixed(number: float) -> Positive:
    """Holds a positive scalar constant; a plain number in place of a `Positive` means the same.

    Args:
      number: Value, above 0 and finite.

    Returns:
      A scalar without a parameter.

    Raises:
      ValueError: If the number is not above 0 and finite.
      TypeError: If it is not a number.

    Example:
      >>> scale = fixed(10.0)
      >>> scale.value(scale.init(jnp.float32))
      10.0
    """
    _check(number, "fixed")
    return Positive(init=lambda dtype: (), value=lambda parameter: number)


def learned(number: float) -> Positive:
    """Learns a positive scalar across tasks, by its logarithm.

    Args:
      number: Value that training starts from, above 0 and finite.

    Returns:
      A scalar whose parameter is its logarithm.

    Raises:
      ValueError: If the number is not above 0 and finite.
      TypeError: If it is not a number.

    Example:
      >>> from metajax.toys import toy_model
      >>> learner = metajax.protonet(toy_model(None), ways=5, scale=learned(10.0))
      >>> scale = learned(2.0)
      >>> float(scale.value(scale.init(jnp.float32)))
      2.0
    """
    _check(number, "learned")
    return Positive(init=lambda dtype: jnp.asarray(math.log(number), dtype), value=jnp.exp)


def as_positive(number: float | Positive, *, name: str) -> Positive:
    """Converts a plain number to `fixed(number)`; a `Positive` is returned unchanged.

    Args:
      number: Number above 0 and finite, or a `Positive`.
      name: Name of the option, for error messages.

    Returns:
      A `Positive`.

    Raises:
      ValueError: If the number is not above 0 and finite.
      TypeError: If it is neither a number nor a `Positive`.
    """
    if isinstance(number, Positive):
        return number
    _check(number, name)
    return fixed(number)


def _check(number: float, name: str) -> None:
    """Raises an error unless a number is positive and finite."""
    try:
        positive = 0 < number < math.inf
    except TypeError as error:
        raise TypeError(
            f"{name} is {number!r}; use a number above 0, such as 2.0, or metajax.learned(2.0)."
        ) from error
    if not positive:
        raise ValueError(f"{name} is {number}; use a finite number above 0.")
