"""Tables of a run's result, with the versions and devices that it depends on."""

import importlib.metadata
import itertools
import os
import platform
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metajax.names import shown

from ..flags.settings import LONGEST_LINE


def table(rows: Sequence[tuple[str, str]]) -> str:
    """Formats names and values in two columns; long values are wrapped.

    Args:
      rows: Pairs of name and text.

    Returns:
      Lines joined by line breaks.
    """
    width = max((len(name) for name, _ in rows), default=0)
    lines = []
    for name, value in rows:
        value = shown(value, LONGEST_LINE)  # names of classes and files may hold any characters
        # A path stays in one piece, which people copy.
        wrapped = textwrap.wrap(value, 76, break_on_hyphens=False, break_long_words=False)
        for i, line in enumerate(wrapped or [""]):
            lines.append(f"{'' if i else name:<{width}}  {line}".rstrip())
    return "\n".join(lines)


def result_rows(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Formats a run's result for `table`; values that are None, empty or long are left out.

    Args:
      result: Fields of result.json: scores, as `test_accuracy` in [0, 1] or `test_mse`; half the width of
        each score's interval, in the score's unit, named `ci95` after the driver's main score, and
        `<score>_ci95` for others; `<score>_left_out`, the number of tasks where the score is undefined;
        `published`, a number as the paper prints it; and other facts of the run. Names that end in
        accuracy, seconds and bytes are shown in readable units.

    Returns:
      Pairs of name and text.
    """
    # A comparison has a table of its own, and reliability a picture.
    merged, ends = ("published_by", "settings", "comparison", "reliability"), ("ci95", "_left_out")
    return [
        (_ROW_NAMES.get(name, name.replace("_", " ")), _in_words(name, value, result))
        for name, value in result.items()
        if name not in merged and not name.endswith(ends) and value is not None and value != ""
    ]


def versions() -> dict[str, str]:
    """Lists the versions of installed packages that a result depends on, and the devices.

    Returns:
      Versions by package name, and the key `device`.
    """
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
    """Returns the name of the processor and the number of its cores."""
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
    """Formats a field of result.json."""
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
    if name == "calibration":
        return ", ".join(f"{key.replace('_', ' ')} {number:.4g}" for key, number in value.items())
    if name.endswith(("_by_step", "_by_points")):
        rows = [list(row.values()) for row in value]
        return ", ".join(f"{number}: {score:.4g}" for number, score, *_ in rows)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float) and name != "seed":
        return _number(name, value)
    return str(value)


def _reliability(name: str, result: Mapping[str, Any]) -> str:
    """Formats a score's interval and the number of tasks left out; "" for fields with neither."""
    own = name.removeprefix("test_")
    # The interval of the driver's main score follows it directly and is named ci95 alone.
    counts = (name, "ci95") in itertools.pairwise(result)
    width, left_out = result.get("ci95" if counts else f"{own}_ci95"), result.get(f"{own}_left_out")
    words = ""
    if width is not None:
        words = f" +- {100 * width:.2f}" if "accuracy" in name else f" +- {width:.4g}"
    return words + (f", {left_out:,} tasks left out" if left_out else "")


def _number(name: str, value: float) -> str:
    """Formats a number in the unit that its name ends with."""
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
    """Formats seconds in s, min or h."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.2f} h"
