"""Who may import whom; DESIGN in one table."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# What each module of metajax may import from metajax, beside itself.
ALLOWED = {
    "types": {"trees"},
    "names": set(),
    "varying": set(),
    "trees": set(),
    "losses": {"types", "trees"},
    "metrics": {"types", "trees", "losses"},
    "nn": {"types", "varying"},
    "cost": {"nn"},
    "models": {"types", "names", "nn"},
    "inner": {"types", "names", "trees"},
    "scoring": {"types", "trees"},
    "evidence": {"types", "trees"},
    "objectives": {"types", "scoring", "evidence"},
    "metagrad": {"types", "varying", "scoring", "evidence"},
    "evolution": {"types", "scoring", "evidence", "metagrad"},
    "adversarial": {"types", "names", "trees", "scoring", "evidence"},
    "sequences": {"types", "trees", "scoring", "evidence"},
    "learners": {"types", "names", "trees", "inner", "losses", "nn", "scoring"},
    "episodes": {"types", "names", "trees"},
    "sharding": {"types", "train"},
    "train": {"types", "trees"},
    "streaming": {"types", "train", "episodes"},
}
FRAMEWORKS = {"flax", "equinox", "absl", "orbax", "tensorboardX", "tqdm"}
# Only adapters of models know neural-network frameworks; Grain asks for flags of absl that nobody has parsed.
MAY_KNOW_FRAMEWORKS = {"models": {"flax", "equinox"}, "episodes": {"absl"}}


def imports(path: Path) -> set[str]:
    """Full names imported anywhere in a file, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def files() -> list[Path]:
    return sorted((ROOT / "metajax").rglob("*.py"))


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    room = path.relative_to(ROOT / "metajax").parts[0].removesuffix(".py")
    if room == "__init__":
        return
    names = imports(path)
    ours = {name.split(".")[1] for name in names if name.startswith("metajax.")}
    assert ours <= ALLOWED[room] | {room}
    theirs = {name.split(".")[0] for name in names}
    assert not theirs & {"experiments", "tests", "tensorflow"}
    assert not theirs & (FRAMEWORKS - MAY_KNOW_FRAMEWORKS.get(room, set()))


def test_importing_metajax_loads_no_framework():
    code = "import sys, metajax; print(*sorted(m for m in sys.modules if '.' not in m))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert not set(loaded.stdout.split()) & {
        "flax",
        "equinox",
        "tensorflow",
        "tensorflow_datasets",
        "grain",
        "orbax",
        "matplotlib",
        "PIL",
        "tensorboardX",
    }


def test_public_names_exist_and_are_documented():
    import metajax

    for name in metajax.__all__:
        assert getattr(metajax, name).__doc__, f"{name} has no docstring"
