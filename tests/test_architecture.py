"""Which package may import which, in one table per top-level package."""

import ast
import importlib
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Which rooms of metajax a room may import, besides itself.
METAJAX = {
    "__main__": {"deploy"},
    "types": {"trees"},
    "errors": set(),
    "names": set(),
    "deprecation": set(),
    "renamed": set(),
    "manual_axes": set(),
    "trees": set(),
    "losses": {"types", "trees"},
    "metrics": {"types", "trees", "losses"},
    "baselines": {"types", "trees", "losses", "learners"},
    "nn": {"types", "manual_axes", "deprecation"},
    "cost": {"nn"},
    "models": {"types", "nn", "deprecation"},
    "inner": {"types", "names", "trees", "deprecation"},
    "objectives": {"types", "names", "trees"},
    "metagrads": {"types", "deprecation", "manual_axes", "objectives"},
    "learners": {"types", "trees", "inner", "losses", "nn", "objectives", "deprecation"},
    "zoo": {"types", "names", "inner", "learners", "models", "nn", "deprecation", "rl"},
    "episodes": {"types", "trees", "errors"},
    "data": {"types", "names", "trees", "episodes", "train", "errors", "models"},
    "deploy": {
        *("types", "errors", "names", "trees", "data", "episodes", "inner", "learners", "losses"),
        *("explain", "metrics", "models", "nn", "zoo"),
    },
    "evaluate": {"types", "train"},
    "explain": {"types", "trees"},
    "sharding": {"types", "train", "evaluate"},
    "train": {"types", "trees", "deprecation"},
    "toys": {"types"},
    "rl": {"types", "losses", "objectives", "train", "learners"},
}
# Which rooms of experiments a room may import. Drivers import all of them, and no other driver.
SHARED = {
    "flags": set(),
    "runtime": {"flags"},
    "setup": {"flags", "runtime"},
    "reports": {"flags", "runtime", "setup"},
    "conduct": {"flags", "runtime", "setup", "reports"},
}
EXPERIMENTS = {
    **SHARED,
    "examples": set(),
    "pod": {*SHARED, "fewshot"},
    "completion": {*SHARED},
    "fewshot": {*SHARED},
    "imitation": {*SHARED},
    "learn_to_regularise": {*SHARED},
    "learn_to_reweight": {*SHARED},
    "pertask": {*SHARED},
    "regression": {*SHARED},
    "rl": {*SHARED},
    "search": {*SHARED},
    "tables": {*SHARED},
}
# Which rooms of benchmarks a file may import; of experiments all may import `runtime` and `reports`.
BENCHMARKS = {
    "acting": {"harness"},
    "budgets": set(),
    "choosing": {"budgets", "harness"},
    "compare": {"harness"},
    "forests": {"harness"},
    "growth": {"harness"},
    "harness": {"peers"},
    "implicit_error": {"harness"},
    "overheads": set(),
    "peers": {"harness"},
    "rows": {"harness"},
    "serving": set(),
    "streaming": {"harness"},
    "symbols": set(),
    "texts": {"harness"},
    "weak_scaling": {"harness"},
}
FOR_BENCHMARKS = {"runtime", "reports", "flags"}
TABLES = {"metajax": METAJAX, "experiments": EXPERIMENTS, "benchmarks": BENCHMARKS}
FRAMEWORKS = {"flax", "equinox", "absl", "orbax", "tensorboardX", "tqdm"}
# Only adapters of models know neural-network frameworks; Grain asks for flags of absl that nobody has parsed.
MAY_KNOW_FRAMEWORKS = {"models": {"flax", "equinox"}, "zoo": {"flax"}, "data": {"absl"}}


def imports(path: Path) -> set[str]:
    """Lists the full names that a file imports anywhere, also inside functions and relatively."""
    found = set()
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


def files() -> list[Path]:
    """Lists the files of metajax."""
    return sorted((ROOT / "metajax").rglob("*.py"))


def rooms(path: Path, package: str) -> set[str]:
    """Lists the rooms of a package that a file imports."""
    return {name.split(".")[1] for name in imports(path) if name.startswith(f"{package}.")}


@pytest.mark.parametrize("package", TABLES)
def test_imports_go_one_way(package):
    for path in sorted((ROOT / package).rglob("*.py")):
        room = path.relative_to(ROOT / package).parts[0].removesuffix(".py")
        if room != "__init__":
            extra = rooms(path, package) - TABLES[package][room] - {room}
            assert not extra, f"{path} imports {extra}"


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_metajax_knows_no_framework_and_no_experiment(path):
    room = path.relative_to(ROOT / "metajax").parts[0].removesuffix(".py")
    theirs = {name.split(".")[0] for name in imports(path)}
    assert not theirs & {"experiments", "benchmarks", "tests", "tensorflow"}
    assert not theirs & (FRAMEWORKS - MAY_KNOW_FRAMEWORKS.get(room, set()))


def test_experiments_import_themselves_relatively():
    # They are called metajax.experiments in a wheel, and experiments in the checkout.
    for path in (ROOT / "experiments").rglob("*.py"):
        absolute = re.findall(r"^\s*(?:from|import) experiments\b.*", path.read_text(), re.M)
        assert not absolute, f"{path}: {absolute}"


def test_examples_import_metajax_alone_and_benchmarks_the_shared_rooms():
    for path in (ROOT / "experiments" / "examples").glob("*.py"):
        assert not rooms(path, "experiments")
    for path in (ROOT / "benchmarks").rglob("*.py"):
        assert rooms(path, "experiments") <= FOR_BENCHMARKS, path


def test_no_exported_name_shadows_a_module():
    for init in (ROOT / "metajax").rglob("__init__.py"):
        package = importlib.import_module(".".join(init.relative_to(ROOT).parent.parts))
        modules = {path.stem for path in init.parent.iterdir()} - {"__init__"}
        for name in modules & set(vars(package)):
            assert isinstance(getattr(package, name), types.ModuleType), f"{package}: {name}"


def test_only_data_touches_files_and_processes():
    touching = re.compile(
        r"(?<![.\w])open\(|\bos\.environ|^import (subprocess|multiprocessing)", re.M
    )
    for path in files():
        if path.relative_to(ROOT / "metajax").parts[0] != "data":
            assert not touching.search(path.read_text()), path


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
