"""Runs a driver as a command without its pictures, which take a third of a short run.

python tests/helpers/undrawn.py fewshot --steps=20
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable

DRIVERS = ("fewshot", "regression", "completion")
DRAWN = ("curves", "episodes_picture", "fits_picture", "completions_picture", "calibration_picture")


def leave_out_pictures(setattr: Callable[[object, str, object], None] = setattr) -> None:
    """Replaces the drawing of pictures by nothing.

    Args:
      setattr: Function with the arguments of the built-in one, such as that of pytest's `monkeypatch`.
    """
    from experiments.fewshot import driver as fewshot
    from experiments.reports import calibration, pictures

    # The answers in this picture are one more program to compile.
    setattr(fewshot, "_pictures", lambda *args: {})
    setattr(calibration, "draw_reliability", lambda *args, **options: None)
    for name in DRAWN:
        setattr(pictures, name, lambda *args, **options: None)


def leave_out_calibration(setattr: Callable[[object, str, object], None] = setattr) -> None:
    """Replaces the calibration of bundles, one more program to compile, by none.

    Args:
      setattr: Function with the arguments of the built-in one, such as that of pytest's `monkeypatch`.
    """
    from experiments.fewshot import bundles
    from experiments.fewshot.calibrate import Calibration

    setattr(bundles, "calibrate", lambda *args, **options: Calibration())


def main() -> None:
    """Runs the driver that the first argument names, as `python -m experiments.NAME` does."""
    name = f"experiments.{sys.argv.pop(1)}"
    driver = importlib.import_module(f"{name}.driver")
    leave_out_pictures()
    leave_out_calibration()
    # The driver prints the command that continues its run by the name of this module.
    sys.modules["__main__"].__spec__ = importlib.util.find_spec(f"{name}.__main__")
    driver.main()


if __name__ == "__main__":
    main()
