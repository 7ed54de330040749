"""From the command line into a driver and out again: flags, one-line errors, exit statuses."""

import contextlib
import dataclasses
import io
import logging
import os
import re
import sys
import traceback
import typing
from collections.abc import Callable
from typing import Any

from absl import app, flags

from metajax.errors import DataError
from metajax.zoo.options import nearest

from ..flags.settings import (
    TrainingError,
    UsageError,
    check_fields,
    define_flags,
    from_flags,
    help_text,
    in_one_line,
)
from . import distributed, signals
from .checkpoints import CheckpointError
from .files import SettingsMismatch
from .flag_sources import read_flags
from .recipes import with_recipes

# Messages of absl about flags.
_CIRCULAR = re.compile("circular flagfile dependency.*flagfile: (.*)")
_NOT_BOOLEAN = re.compile(r"\('Non-boolean argument to boolean flag', .*\)")


def launch(
    settings_class: type,
    docstring: str,
    run: Callable[[Any], int],
    *,
    prepare: Callable[[Any], None] = lambda settings: None,
) -> None:
    """Runs a driver: flags in, exit status out.

    Args:
      settings_class: Settings of the driver.
      docstring: Text above the options in `--help`.
      run: Function settings -> exit status. Usage errors exit with 2, other errors of the user with 1.
      prepare: Function that configures the process; programs that call `run` themselves leave it out.
    """
    define_flags(settings_class)

    def parse(argv: list[str]) -> list[str]:
        asked = {argument.lstrip("-") for argument in argv[1:] if argument.startswith("-")}
        if asked & {"help", "h", "helpshort", "helpfull"}:
            with contextlib.suppress(BrokenPipeError):  # `--help | head` reads the first lines
                print(help_text(settings_class, docstring, full="helpfull" in asked), flush=True)
                sys.exit(0)
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        try:
            with contextlib.redirect_stderr(io.StringIO()) as said:
                settings = read_flags(settings_class, with_recipes(argv), flags.FLAGS)
            if circular := _CIRCULAR.search(said.getvalue()):
                raise UsageError(f"--flagfile={circular[1]} reads itself; leave that line out.")
            sys.stderr.write(said.getvalue())
            check_fields(settings)
        except flags.UnrecognizedFlagError as error:
            known = [field.name for field in dataclasses.fields(settings_class)]
            _fail(f"--{error.flagname} is not a flag; {nearest(error.flagname, known)}", 2)
        except UnicodeDecodeError as error:
            _fail(f"a --flagfile is no text ({error}); its lines look like --ways=5.", 2)
        except (flags.Error, UsageError, OSError, ValueError) as error:
            _fail(error, 2)
        except RuntimeError as error:
            _fail_at_home(error)
        return argv[:1]

    def main(argv: list[str]) -> None:
        del argv
        logging.getLogger("jax").setLevel(
            logging.WARNING
        )  # without messages about backends it did not find
        try:
            settings = from_flags(settings_class)
            with distributed.watching():
                prepare(settings)
                status = run(settings)
        except KeyboardInterrupt:
            signals.end(130, signals.INTERRUPTED)
        except (UsageError, SettingsMismatch) as error:
            _fail(error, 2)
        # Errors of the user print one line; internal errors keep their traceback.
        except (DataError, CheckpointError, TrainingError, ImportError, OSError) as error:
            _fail(error, 1)
        except MemoryError as error:
            _fail(
                f"memory ran out: {error}; use smaller images, fewer of them or fewer episodes.", 1
            )
        except RuntimeError as error:
            _fail_at_home(error)
        except Exception:
            distributed.leave(1, traceback.format_exc())
            raise
        distributed.over(status or 0)
        if status == 130 and not distributed.is_joined():
            signals.end(status)  # a thread may have been left amid compiling
        sys.exit(status or 0)

    app.run(main, flags_parser=parse)


def _fail_at_home(error: RuntimeError) -> typing.NoReturn:
    """Explains pathlib's error about the home of an unknown user; raises any other error again."""
    if "home directory" not in str(error):
        distributed.leave(1, traceback.format_exc())
        raise error
    _fail("a path begins with ~ and a user who is not known here; write the whole path.", 2)


def _fail(error: Exception | str, status: int) -> typing.NoReturn:
    line = f"error: {in_one_line(error).removeprefix('ERROR:: ')}"
    line = _NOT_BOOLEAN.sub("use true or false", line)
    distributed.leave(status, line)
    print(line, file=sys.stderr)
    sys.exit(status)
