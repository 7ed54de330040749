"""The trackers by name, found before anything is compiled."""

import importlib.util
from collections.abc import Callable
from typing import NamedTuple

from metajax.zoo.options import nearest

from ...flags.settings import UsageError
from ..observers import Observer
from .once import Once, Service
from .services import Mlflow, Trackio, Wandb
from .tensorboard import TensorBoard


class _Entry(NamedTuple):
    """A service that needs an optional package.

    Attributes:
      title: Name in messages.
      make: Function project -> service.
    """

    title: str
    make: Callable[[str], Service]


# The name is that of the package and of the extra too.
SERVICES = {
    "wandb": _Entry("W&B", Wandb),
    "mlflow": _Entry("MLflow", Mlflow),
    "trackio": _Entry("Trackio", Trackio),
}
TRACKERS = ("tensorboard", *SERVICES)


def choose_trackers(asked: str, *, project: str) -> list[Observer]:
    """Makes the trackers of `--track`.

    Args:
      asked: Names, separated by commas; "" for none.
      project: Project of W&B and Trackio, experiment of MLflow.

    Returns:
      An observer for each name.

    Raises:
      UsageError: If a name is unknown.
      ImportError: If a package is not installed.

    Example:
      >>> [type(tracker).__name__ for tracker in choose_trackers("tensorboard", project="mine")]
      ['TensorBoard']
    """
    names = dict.fromkeys(name.strip() for name in asked.split(",") if name.strip())
    for name in names:
        if name not in TRACKERS:
            raise UsageError(f"--track={name} is unknown; {nearest(name, TRACKERS)}")
        if name in SERVICES and importlib.util.find_spec(name) is None:
            raise ImportError(
                f"--track={name} needs the package {name}; install it with: pip install 'metajax[{name}]'"
            )
    return [
        Once(name, SERVICES[name].title, SERVICES[name].make(project))
        if name in SERVICES
        else TensorBoard()
        for name in names
    ]
