"""From the command line into a driver and out again: flags, one-line errors, exit statuses."""

import dataclasses
import logging
import sys
import traceback
import typing
from collections.abc import Callable
from typing import Any

from absl import app, flags

from experiments import distributed
from experiments.checkpoints import CheckpointError
from experiments.files import SettingsMismatch
from experiments.flag_sources import read_flags
from experiments.settings import (
    TrainingError,
    UsageError,
    check_fields,
    define_flags,
    from_flags,
    help_text,
    nearest,
)
from metajax.episodes.images import DataError
from metajax.names import shown

_LONGEST = 4000  # characters of an error, which may quote a whole flag


def launch(
    settings_class: type,
    docstring: str,
    run: Callable[[Any], int],
    *,
    prepare: Callable[[Any], None] = lambda settings: None,
) -> None:
    """Runs a driver: flags in, exit status out.

    Args:
      settings_class: the driver's settings.
      docstring: the head of `--help`.
      run: settings -> exit status. Flags that make no sense exit with 2, other errors of the user's with 1.
      prepare: configures the process; what is left out when `run` is called from a program.
    """
    define_flags(settings_class)

    def parse(argv: list[str]) -> list[str]:
        if any(arg in ("--help", "-h", "-help", "--helpshort") for arg in argv):
            print(help_text(settings_class, docstring))
            sys.exit(0)
        try:
            check_fields(read_flags(settings_class, argv, flags.FLAGS))
        except flags.UnrecognizedFlagError as error:
            known = [field.name for field in dataclasses.fields(settings_class)]
            _fail(f"--{error.flagname} is not a flag; {nearest(error.flagname, known)}", 2)
        except (flags.Error, UsageError, OSError) as error:
            _fail(error, 2)
        return argv[:1]

    def main(argv: list[str]) -> None:
        del argv
        logging.getLogger("jax").setLevel(
            logging.WARNING
        )  # no word of the backends it did not find
        try:
            settings = from_flags(settings_class)
            with distributed.watching():
                prepare(settings)
                status = run(settings)
        except KeyboardInterrupt:
            _fail("interrupted; the same command goes on from what is saved.", 130)
        except (UsageError, SettingsMismatch) as error:
            _fail(error, 2)
        # What is the user's to mend is one line; a defect of ours still shows its traceback.
        except (DataError, CheckpointError, TrainingError, ImportError, OSError) as error:
            _fail(error, 1)
        except Exception:
            distributed.leave(1, traceback.format_exc())
            raise
        distributed.over(status or 0)
        sys.exit(status or 0)

    app.run(main, flags_parser=parse)


def _fail(error: Exception | str, status: int) -> typing.NoReturn:
    line = " ".join(str(error).split()).removeprefix("ERROR:: ")
    line = f"error: {shown(line, _LONGEST)}"
    distributed.leave(status, line)
    print(line, file=sys.stderr)
    sys.exit(status)
