"""A run's result in words, and what it depends on: memory, versions and devices."""

import importlib.metadata
import itertools
import os
import platform
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.flags.settings import LONGEST_LINE
from metajax.names import shown


def table(rows: Sequence[tuple[str, str]]) -> str:
    """Lays out names and values in two columns; a long value goes on below itself."""
    width = max((len(name) for name, _ in rows), default=0)
    lines = []
    for name, value in rows:
        value = shown(value, LONGEST_LINE)  # names may hold anything
        for i, line in enumerate(textwrap.wrap(value, 76, break_on_hyphens=False) or [""]):
            lines.append(f"{'' if i else name:<{width}}  {line}".rstrip())
    return "\n".join(lines)


def result_rows(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Puts a run's result into words for `table`; what is None, empty or long is left out.

    Args:
      result: Fields of result.json: scores, as `test_accuracy` in [0, 1] or `test_mse`; half the width of the
        interval of each, in its unit, named `ci95` behind the one that a driver goes by, and `<score>_ci95`
        of others; `<score>_left_out`, the number of tasks on which it is not defined; `published`, a number
        as the paper prints it; and what else describes the run. Names that end in accuracy, seconds and
        bytes are shown in units to read.
    """
    merged, ends = ("published_by", "settings"), ("ci95", "_left_out")
    return [
        (_ROW_NAMES.get(name, name.replace("_", " ")), _in_words(name, value, result))
        for name, value in result.items()
        if name not in merged and not name.endswith(ends) and value is not None and value != ""
    ]


def versions() -> dict[str, str]:
    """The versions a result depends on, of what is installed, and the devices it was made on."""
    import jax

    found = {"python": platform.python_version()}
    for name in ("metajax", "jax", "jaxlib", "numpy", "optax", "flax"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    device = jax.devices()[0]
    kind = "" if device.device_kind == device.platform else f" {device.device_kind}"
    cpu = _cpu_model()
    found["device"] = f"{device.platform}{kind} x {jax.device_count()}" + (
        f", {cpu}" if cpu else ""
    )
    return found


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{models[0]} ({os.cpu_count()} cores)" if models else platform.machine()


_ROW_NAMES = {
    "test_mse": "test MSE",
    "test_mse_by_step": "test MSE by step",
    "test_mse_by_points": "test MSE by points",
    "best_valid_mse": "best valid MSE",
    "episodes_sha256": "episodes' hash",
    "train_tasks_per_second": "training speed",
    "streamed_images_per_second": "images from disk",
    "wall_seconds": "wall time",
    "compile_seconds": "compile time",
    "test_seconds": "test time",
    "peak_memory_bytes": "peak memory",
}


def _in_words(name: str, value: Any, result: Mapping[str, Any]) -> str:
    percent = "test_accuracy" in result
    if reliability := _reliability(name, result):
        return _number(name, value) + reliability
    if name == "published":
        source = f" ({result['published_by']})" if result.get("published_by") else ""
        return f"{value:g}{'%' if percent else ''}{source}"
    if name == "episodes_sha256":
        return value[:12]
    if name == "versions":
        return ", ".join(f"{key} {version}" for key, version in value.items())
    if name.endswith(("_by_step", "_by_points")):
        rows = [list(row.values()) for row in value]
        return ", ".join(f"{number}: {score:.4g}" for number, score, *_ in rows)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float) and name != "seed":
        return _number(name, value)
    return str(value)


def _reliability(name: str, result: Mapping[str, Any]) -> str:
    """The interval of a score in words, and the tasks that it leaves out; empty for what has neither."""
    own = name.removeprefix("test_")
    # That of the score that a driver goes by stands behind it, and is named ci95 alone.
    counts = (name, "ci95") in itertools.pairwise(result)
    width, left_out = result.get("ci95" if counts else f"{own}_ci95"), result.get(f"{own}_left_out")
    words = ""
    if width is not None:
        words = f" +- {100 * width:.2f}" if "accuracy" in name else f" +- {width:.4g}"
    return words + (f", {left_out:,} tasks left out" if left_out else "")


def _number(name: str, value: float) -> str:
    if "accuracy" in name:
        return f"{100 * value:.2f}%"
    if name.endswith("_seconds"):
        return _duration(value)
    if name.endswith("_per_second"):
        return f"{value:,.1f} {'images' if 'images' in name else 'tasks'}/s"
    if name.startswith("waited_"):
        return f"{100 * value:.1f}% of training"
    if name.endswith("_bytes"):
        return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.2f} h"
