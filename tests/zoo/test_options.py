import pytest

from metajax.zoo import LEARNERS, MODELS
from metajax.zoo.options import complete, option

RANK = option(int, 4, "Rank of the factors.", least=1, most=8)
SOLVER = option(str, "cg", "Solver.", choices=("cg", "neumann"))
STRENGTH = option(float, None, "Strength.", above=0)


def test_defaults_are_filled_in_and_what_has_none_is_left_out():
    declared = {"rank": RANK, "solver": SOLVER, "strength": STRENGTH}
    assert complete("lora", {}, declared) == {"rank": 4, "solver": "cg"}
    given = {"rank": None, "solver": "neumann", "strength": 0.5}
    assert complete("lora", given, declared) == {"rank": 4, "solver": "neumann", "strength": 0.5}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rank": 0}, "rank=0 is too small; use 1 or more"),
        ({"rank": 9}, "rank=9 is too large; use 8 or less"),
        ({"strength": 0.0}, "strength=0.0 is too small; use more than 0"),
        ({"strength": float("nan")}, "strength=nan is not a finite number"),
        ({"solver": "neuman"}, r"solver=neuman is unknown; did you mean neumann\?"),
        ({"ranks": 2}, "lora has no option ranks; it takes rank, solver, strength"),
    ],
)
def test_values_outside_the_limits_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        complete("lora", given, {"rank": RANK, "solver": SOLVER, "strength": STRENGTH})


@pytest.mark.parametrize(
    ("owner", "options"),
    [
        pytest.param(owner, entry.options, id=owner)
        for owner, entry in [*LEARNERS.items(), *MODELS.items()]
        if entry.options
    ],
)
def test_every_default_is_within_its_limits_and_described(owner, options):
    for name, declared in options.items():
        declared.limits.check(f"the default of {owner}: {name}", declared.default)
        kind = declared.type
        assert declared.default is None or isinstance(declared.default, kind), (
            f"{owner}: the default of {name} is {declared.default!r}; use a value of {kind.__name__}"
        )
        assert declared.help[0].isupper() and declared.help.endswith("."), (
            f"{owner}: the help of {name} is {declared.help!r}; begin it with a capital letter and "
            "end it with a full stop"
        )


def test_an_option_of_several_learners_has_one_type():
    types = {}
    for entry in LEARNERS.values():
        for name, declared in entry.options.items():
            assert types.setdefault(name, declared.type) is declared.type, name
