"""The quick lane has tests in every folder, and the tables of the lanes name tests that exist."""

from helpers import lanes


def test_every_folder_has_tests_in_the_quick_lane():
    files = list(lanes.TESTS.rglob("test_*.py"))
    quick = {path.parent for path in files if lanes.pattern_of(path) is not None}
    assert quick == {path.parent for path in files}
    missing = {*lanes.QUICK, *lanes.SLOW, *lanes.THOROUGH} - set(map(lanes.relative, files))
    assert not missing, "the tables name files that are not there"


def test_every_pattern_of_the_table_selects_tests(pytestconfig):
    # Of the files of this session: all of them, where none was named on the command line.
    selected = pytestconfig.stash[lanes.SELECTED]
    assert "test_lanes.py" in selected
    for name, tests in selected.items():
        assert tests > 0, f"the pattern of {name} in tests/helpers/lanes.py matches no test"


def test_every_pattern_of_the_thorough_lane_selects_tests_and_leaves_others(pytestconfig):
    for name, tests in pytestconfig.stash[lanes.LEFT_OUT].items():
        assert tests > 0, f"the pattern of {name} in tests/helpers/lanes.py matches no test"
    learners = lanes.TESTS / "learners"
    contract = learners / "test_contract.py"
    assert lanes.is_thorough(contract, "test_jit_equals_eager[maml_plus_plus]")
    assert not lanes.is_thorough(contract, "test_jit_equals_eager[maml]")
    assert not lanes.is_thorough(
        contract, "test_meta_gradient_against_finite_differences[reptile-reverse]"
    )
    assert not lanes.is_thorough(learners / "test_leo.py", "test_any")


def test_the_marker_follows_the_table(request):
    assert request.node.get_closest_marker("quick")
    assert lanes.is_quick(
        lanes.TESTS / "learners" / "test_contract.py", "test_jit_equals_eager[maml]"
    )
    assert not lanes.is_quick(
        lanes.TESTS / "learners" / "test_contract.py", "test_jit_equals_eager[maml_plus_plus]"
    )
    assert not lanes.is_quick(lanes.TESTS / "learners" / "test_leo.py", "test_any")
