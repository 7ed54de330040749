"""Names in messages: one Unicode form, no control characters, no megabytes."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metajax.names import composed, find, listed, shown


def test_names_that_look_alike_are_equal():
    assert composed("cafe\u0301") == composed("caf\u00e9") == "caf\u00e9"
    assert composed("Train") == "Train"


def test_short_printable_names_are_shown_unchanged():
    for name in ("", "a b", "caf\u00e9", "\u732b", "/data/pictures/it's"):
        assert shown(name) == name
    assert shown(5) == "5"


def test_control_characters_and_stray_bytes_are_escaped():
    assert shown("\x1b[31mred\r\n") == "\\x1b[31mred\\r\\n"
    assert shown(os.fsdecode(b"caf\xe9")) == "caf\\udce9"
    assert shown("\u202egnp.exe") == "\\u202egnp.exe"  # would turn the line around


def test_long_names_are_shortened_in_the_middle():
    assert shown("a" * 999_999 + "z", 10) == "aaaaa...aaaaz (1,000,000 characters)"
    assert shown("x" * 11, 11) == "x" * 11
    assert shown("\n" * 11, 11) == "\\n\\n\\...\\n\\n\\n (11 characters)"


@given(st.text(), st.integers(2, 40))
def test_a_message_stays_one_short_line(text, limit):
    assert shown(text, limit).isprintable()
    assert len(shown(text, limit)) <= limit + len("... (999 characters)")


def test_long_lists_are_counted():
    assert listed(["a", "b\n"]) == "'a', 'b\\n'"
    assert listed("abcd", few=2) == "'a', 'b' and 2 more"


def test_an_unknown_name_is_refused_with_the_nearest():
    table = {"conv4": 1, "resnet12": 2, "resnet18": 3}
    assert find("model", "conv4", table) == 1
    with pytest.raises(ValueError, match="No model is named 'conv'; the nearest are conv4"):
        find("model", "conv", table)
    with pytest.raises(ValueError, match="the nearest are conv4, resnet12, resnet18"):
        find("model", "?", table)
