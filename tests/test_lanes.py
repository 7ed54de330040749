"""The quick lane has tests in every folder, and its table names tests that exist."""

from helpers import lanes


def test_every_folder_has_tests_in_the_quick_lane():
    files = list(lanes.TESTS.rglob("test_*.py"))
    quick = {path.parent for path in files if lanes.pattern_of(path) is not None}
    assert quick == {path.parent for path in files}
    missing = {*lanes.QUICK, *lanes.SLOW} - set(map(lanes.relative, files))
    assert not missing, "the tables name files that are not there"


def test_every_pattern_of_the_table_selects_tests(pytestconfig):
    # Of the files of this session: all of them, where none was named on the command line.
    selected = pytestconfig.stash[lanes.SELECTED]
    assert "test_lanes.py" in selected
    for name, tests in selected.items():
        assert tests > 0, f"the pattern of {name} in tests/helpers/lanes.py matches no test"


def test_the_marker_follows_the_table(request):
    assert request.node.get_closest_marker("quick")
    assert lanes.is_quick(
        lanes.TESTS / "learners" / "test_contract.py", "test_jit_equals_eager[maml]"
    )
    assert not lanes.is_quick(
        lanes.TESTS / "learners" / "test_contract.py", "test_jit_equals_eager[maml_plus_plus]"
    )
    assert not lanes.is_quick(lanes.TESTS / "learners" / "test_leo.py", "test_any")
