"""Positive scalars: a fixed one is the number itself, a learned one moves by its logarithm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.inner.scalars import Positive, as_positive, fixed, learned


def test_a_fixed_scalar_is_the_number_itself_and_has_no_parameter():
    for scalar in (fixed(2.5), as_positive(2.5, name="scale")):
        parameter = scalar.init(jnp.float16)
        assert parameter == ()
        assert type(scalar.value(parameter)) is float
        assert scalar.value(parameter) == 2.5


def test_a_learned_scalar_is_the_exponential_of_its_parameter():
    scalar = learned(2.5)
    parameter = scalar.init(jnp.float32)
    assert parameter.dtype == jnp.float32
    np.testing.assert_allclose(scalar.value(parameter), 2.5, rtol=1e-6)
    # The derivative of exp is exp, so that no step down a gradient leaves the positive numbers.
    np.testing.assert_allclose(jax.grad(scalar.value)(parameter), 2.5, rtol=1e-6)
    assert scalar.value(parameter - 10) > 0


def test_a_positive_stays_as_it_is():
    scalar = learned(3.0)
    assert as_positive(scalar, name="scale") is scalar
    assert isinstance(scalar, Positive)


@pytest.mark.parametrize("number", [0, -1.0, float("inf"), float("nan")])
def test_other_numbers_are_refused_by_name(number):
    with pytest.raises(ValueError, match=f"strength is {number}; use a finite number above 0"):
        as_positive(number, name="strength")
    with pytest.raises(ValueError, match=f"learned is {number}"):
        learned(number)
    with pytest.raises(ValueError, match=f"fixed is {number}"):
        fixed(number)


def test_other_types_than_numbers_are_refused_by_name():
    with pytest.raises(TypeError, match="scale is 'ten'; use a number above 0"):
        as_positive("ten", name="scale")
