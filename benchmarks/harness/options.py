"""What the options of the commands here share: errors in one line, lists of names, numbers above zero."""

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
    """Reads options; what is wrong with them is one line, and status 2.

    Args:
      module: what `python -m` runs.
      description: its docstring.
    """

    def __init__(self, module: str, description: str):
        super().__init__(
            prog=f"python -m {module}",
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        """Says what is wrong and exits with status 2."""
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
        sys.exit(2)


def add_measuring(parser: Parser, *, rounds: int, output: str) -> None:
    """Adds the options of every command that measures workers, with the defaults of this one."""
    parser.add_argument("--rounds", type=positive(int), default=rounds, help=f"[{rounds}]")
    parser.add_argument(
        "--timeout",
        type=positive(float),
        default=300.0,
        help="seconds a worker may work in all [300]",
    )
    parser.add_argument("--output", type=Path, default=Path(output), help=f"directory [{output}]")


def make_output(output: Path, parser: Parser) -> None:
    """Makes the directory of --output; an error of the parser where that cannot be."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--output={output} cannot be made ({error.strerror}).")


def check_adjoints(names: Iterable[str], parser: Parser) -> None:
    """Makes a name that is none of metajax's adjoints an error of the parser."""
    # In a process of its own: what this one holds in memory counts as the workers' at their start.
    code = "from metajax.inner.adjoints import ADJOINTS; print(*ADJOINTS)"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    known = found.stdout.split()
    for name in names:
        if name not in known:
            parser.error(f"adjoint {name!r} is unknown; {nearest(name, known)}")


def names(text: str, *, known: Mapping[str, Any]) -> tuple[str, ...]:
    """Reads names from between commas, each once and each known."""
    found = tuple(dict.fromkeys(name for name in text.split(",") if name))
    if not found:
        raise argparse.ArgumentTypeError(f"names nothing; use some of {', '.join(known)}.")
    for name in found:
        if name not in known:
            raise argparse.ArgumentTypeError(f"{name!r} is unknown; {nearest(name, list(known))}")
    return found


def counts(text: str) -> tuple[int, ...]:
    """Reads whole numbers above zero from between commas, each once, the smallest first."""
    return tuple(sorted({positive(int)(count) for count in text.split(",")}))


def nearest(name: str, known: Sequence[str]) -> str:
    """Says which known names are near to one that is unknown, or what is known if none is."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"use one of {', '.join(known)}."


def positive(kind: type) -> Callable[[str], Any]:
    """Makes a reader of numbers above zero: of whole ones if `kind` is int."""

    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if not 0 < value < math.inf:
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {what} above zero.")
        return value

    return read
