"""Command-line options that the benchmarks share: errors in one line, lists of names, positive numbers."""

import argparse
import difflib
import math
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[2]


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, with status 2.

    Args:
      module: Name of the module that `python -m` runs.
      description: Docstring of the module.
    """

    def __init__(self, module: str, description: str):
        super().__init__(
            prog=f"python -m {module}",
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        """Prints an error and exits with status 2.

        Args:
          message: Error message.

        Raises:
          SystemExit: Always.
        """
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
        sys.exit(2)


def add_measuring(parser: Parser, *, rounds: int, output: str) -> None:
    """Adds the options of every command that measures workers.

    Args:
      parser: Parser of the command.
      rounds: Default number of rounds.
      output: Default folder of results.
    """
    parser.add_argument(
        "--rounds", type=positive(int), default=rounds, help=f"rounds of measurements [{rounds}]"
    )
    parser.add_argument(
        "--timeout",
        type=positive(float),
        default=300.0,
        help="limit of a worker's time in seconds [300]",
    )
    parser.add_argument(
        "--output", type=Path, default=Path(output), help=f"folder of the results [{output}]"
    )


def make_output(output: Path, parser: Parser) -> None:
    """Makes the folder of --output; a failure is an error of the parser.

    Args:
      output: Folder.
      parser: Parser of the command.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--output={output} cannot be made ({error.strerror}).")


def check_adjoints(names: Iterable[str], parser: Parser) -> None:
    """Checks names of metajax's adjoints; an unknown one is an error of the parser.

    Args:
      names: Names to check.
      parser: Parser of the command.
    """
    # In a separate process: importing JAX here would count as memory of the workers that are forked.
    code = "from metajax.inner.adjoints import ADJOINTS; print(*ADJOINTS)"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    known = found.stdout.split()
    for name in names:
        if name not in known:
            parser.error(f"adjoint {name!r} is unknown; {nearest(name, known)}")


def names(text: str, *, known: Mapping[str, Any]) -> tuple[str, ...]:
    """Parses a list of names separated by commas, without repeats.

    Args:
      text: Text of the option.
      known: Known names, as keys.

    Returns:
      The names in their order.

    Raises:
      ArgumentTypeError: If a name is unknown, or there is none.
    """
    found = tuple(dict.fromkeys(name for name in text.split(",") if name))
    if not found:
        raise argparse.ArgumentTypeError(f"no name is given; use some of {', '.join(known)}.")
    for name in found:
        if name not in known:
            raise argparse.ArgumentTypeError(f"{name!r} is unknown; {nearest(name, list(known))}")
    return found


def counts(text: str) -> tuple[int, ...]:
    """Parses a list of positive integers separated by commas.

    Args:
      text: Text of the option.

    Returns:
      The integers without repeats, in ascending order.
    """
    return tuple(sorted({positive(int)(count) for count in text.split(",")}))


def nearest(name: str, known: Sequence[str]) -> str:
    """Suggests known names for an unknown one.

    Args:
      name: Unknown name.
      known: Known names.

    Returns:
      A sentence with similar names, or all known names.
    """
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"use one of {', '.join(known)}."


def positive(kind: type) -> Callable[[str], Any]:
    """Makes a parser of positive numbers.

    Args:
      kind: Type of the numbers, int or float.

    Returns:
      Function from text to a number.

    Raises:
      ArgumentTypeError: If the function's text is not a positive number of this type.
    """

    def read(text: str) -> Any:
        """Parses a positive number."""
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if not 0 < value < math.inf:
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {what} above zero.")
        return value

    return read
