"""Runs drivers as commands without starting Python for each: one process imports them, and forks.

It computes nothing itself: JAX has threads from its first computation on, which a fork would not have.
"""

import contextlib
import importlib
import importlib.util
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

from helpers.undrawn import DRIVERS, leave_out_calibration, leave_out_pictures

ROOT = Path(__file__).parents[2]
SECONDS = 240  # that a command may take
# What drivers import on the way, each a second or more.
LATER = ("orbax.checkpoint", "tensorboardX.summary", "matplotlib.figure", "matplotlib.mathtext")


class ForkServer:
    """Runs drivers' commands by forks of one process.

    Args:
      variables: Environment of all commands; those of JAX are read once.
    """

    def __init__(self, variables: dict[str, str]):
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            cwd=ROOT,
            env={**os.environ, **variables, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, *flags, driver="fewshot", variables=None, file_bytes=None, drawn=True):
        """Runs a driver.

        Args:
          flags: Of its command line.
          driver: Module of `experiments`.
          variables: Environment variables that are not JAX's.
          file_bytes: Largest file that the command can write, int; None for no limit.
          drawn: Whether it draws its pictures, a third of a short run.

        Returns:
          Its exit status, standard output and standard error.
        """
        with tempfile.TemporaryDirectory() as folder:
            asked = {"flags": [*map(str, flags)], "driver": driver, "folder": folder}
            asked |= {"variables": variables or {}, "file_bytes": file_bytes, "drawn": drawn}
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
            status = int(self._process.stdout.readline())
            return status, *((Path(folder) / name).read_text() for name in ("out", "err"))

    def close(self):
        """Ends the process."""
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def serve() -> None:
    """Forks for each line of standard input, and answers with the exit status."""
    for name in (*(f"experiments.{driver}.driver" for driver in DRIVERS), *LATER):
        importlib.import_module(name)
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if child == 0:
            _run(asked)
        _, ended = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(ended), flush=True)


def _run(asked: dict) -> None:
    """Is the command; does not return."""
    status = 1
    try:
        signal.alarm(SECONDS)
        for number, name in ((0, os.devnull), (1, "out"), (2, "err")):
            opened = os.open(Path(asked["folder"]) / name, os.O_RDWR | os.O_CREAT)
            os.dup2(opened, number)
        os.environ.update(asked["variables"])
        if asked["file_bytes"]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (asked["file_bytes"],) * 2)
        if not asked["drawn"]:
            leave_out_pictures()
            leave_out_calibration()
        module = f"experiments.{asked['driver']}"
        # The driver prints the command that continues its run by the name of this module.
        sys.modules["__main__"].__spec__ = importlib.util.find_spec(f"{module}.__main__")
        sys.argv = [module, *asked["flags"]]
        sys.modules[f"{module}.driver"].main()
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(status)


if __name__ == "__main__":
    serve()
