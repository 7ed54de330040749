"""The commands `python -m metajax learn | predict | evaluate | explain | export | pages | serve | info`."""

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from metajax.data import bundles
from metajax.deploy.classifier import Classifier, load
from metajax.deploy.export import PARTS, export_onnx, export_program
from metajax.deploy.pages import PAGE_MODEL, RUNTIME, write_pages
from metajax.deploy.pictures import ImageForm
from metajax.deploy.runs import LABELS, evaluate_runs, is_runs
from metajax.deploy.serve import add_limits, limits_of, serve
from metajax.deploy.shipped import shipped_names
from metajax.errors import DataError
from metajax.names import listed

_LONG = ("versions", "reliability")  # facts of a training that `info` leaves out
_EXAMPLES = """\
examples:
  python -m metajax learn runs/mine pictures/ --save=pets     pictures/<class>/*.jpg
  python -m metajax predict pets new.jpg other.jpg
  python -m metajax evaluate pets more_pictures/
  python -m metajax evaluate glyphs all_runs/                 runs of one-shot classification, as Lake's
  python -m metajax explain pets new.jpg --save=why.html
  python -m metajax export pets --format=onnx --save=pets.onnx
  python -m metajax pages --save=page --runtime=onnxruntime-web-1.30.0.tgz     draw symbols in a browser
  python -m metajax serve pets --port=8000
  python -m metajax info pets
  python -m metajax learn runs/desk tickets.csv --label=topic --save=desk     texts, or rows of a table
  python -m metajax predict desk new.csv "Where is my card?"
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
      argv: Arguments; None is the command line.

    Returns:
      Exit status: 0, 1 for examples or bundles that do not serve, 2 for arguments that make no sense.

    Example:
      >>> main(["info", "nowhere"])
      1
    """
    arguments = _parser().parse_args(argv)
    with warnings.catch_warnings():
        warnings.showwarning = _say_warning
        try:
            return arguments.run(arguments)
        except (DataError, ImportError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1


def _say_warning(message: object, *rest: object) -> None:
    del rest
    print(f"warning: {message}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m metajax",
        description="Learns classes from a few examples of each, with a trained learner, and names the "
        "classes of others: of pictures, of texts, or of rows of a table.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(
        required=True,
        metavar="learn | predict | evaluate | explain | export | pages | serve | info",
    )
    learn = _command(commands, "learn", _learn, "learn classes, and save what was learned")
    _add_examples(learn)
    learn.add_argument("--save", required=True, metavar="DIR", help="folder to save to")
    learn.add_argument(
        "--forget", action="append", default=[], metavar="CLASS", help="class to forget"
    )
    predict = _command(commands, "predict", _predict, "name the class of each example")
    predict.add_argument(
        "examples",
        nargs="+",
        help="image files; or files of rows (.csv, .tsv, .jsonl, ...), or texts",
    )
    predict.add_argument("--json", action="store_true", help="print one JSON object per example")
    evaluate = _command(commands, "evaluate", _evaluate, "count right answers")
    _add_examples(
        evaluate, f"; or folder of runs of one-shot classification, each with its {LABELS}"
    )
    explain = _command(commands, "explain", _explain, "show why an example is answered as it is")
    explain.add_argument(
        "example", help="image file, or text, or file of rows, of which the first is meant"
    )
    explain.add_argument("--save", default="why.html", metavar="FILE", help="page to write")
    export = _command(
        commands, "export", _export, "write a program that needs JAX, or onnxruntime, alone"
    )
    export.add_argument(
        "--ways", type=int, help="number of classes; by default that of the training"
    )
    export.add_argument("--save", required=True, metavar="FILE", help="file to write")
    export.add_argument(
        "--format", choices=("jax", "onnx"), default="jax", help="kind of program; by default jax"
    )
    export.add_argument("--part", choices=PARTS, default="whole", help="function; by default whole")
    _command(commands, "info", _info, "describe a bundle")
    pages = _command(
        commands, "pages", _pages, "write a page that learns in the browser", usual=PAGE_MODEL
    )
    pages.add_argument("--save", required=True, metavar="DIR", help="folder to write")
    pages.add_argument(
        "--runtime", metavar="FILE", help=f"archive of {RUNTIME}, fetched by npm pack"
    )
    pages.add_argument(
        "--ways", type=int, help="most classes; by default 10 where any number serves"
    )
    add_limits(_command(commands, "serve", _serve, "answer over HTTP until interrupted"))
    return parser


# Of argparse, whose types have no public names.
def _command(commands, name, run, help, *, usual=None):
    command = commands.add_parser(name, help=help, description=f"{help.capitalize()}.")
    command.add_argument(
        "model",
        nargs=None if usual is None else "?",
        default=usual,
        help="work directory of a run, a folder that learn has saved, or a bundle that comes with metajax: "
        + ", ".join(shipped_names())
        + (f"; by default {usual}" if usual else ""),
    )
    command.add_argument(
        "--invert",
        action="store_true",
        help="exchange black and white, compared with the files of the training",
    )
    command.set_defaults(run=run)
    return command


def _add_examples(command: argparse.ArgumentParser, more: str = "") -> None:
    command.add_argument(
        "examples",
        help="folder with a folder of pictures per class, or file of rows with a column of the class"
        + more,
    )
    command.add_argument(
        "--label", metavar="COLUMN", help="column of the class; by default that of the training"
    )


def _learn(arguments: argparse.Namespace) -> int:
    model = _load(arguments)
    for label in arguments.forget:
        model = model.forget(label)
    model = model.learn(arguments.examples, label=arguments.label)
    model.save(arguments.save)
    counts = ", ".join(f"{name} ({len(pixels)})" for name, pixels in model.examples.items())
    print(f"learned {len(model.labels)} classes: {counts}")
    print(f"saved in {arguments.save}")
    return 0


def _predict(arguments: argparse.Namespace) -> int:
    model = _load(arguments)
    form = model.bundle.form
    named = form.named(arguments.examples)
    answers = model.predict([example for _, example in named])
    widest = max(len(name) for name, _ in named)
    for (name, _), answer in zip(named, answers, strict=True):
        if arguments.json:
            fields = {form.noun: name, **answer._asdict()}
            print(json.dumps({**fields, "probabilities": dict(answer.probabilities)}))
        else:
            doubt = "" if answer.known else "  (unknown)"
            print(f"{name:<{widest}}  {answer.label}  {answer.probability:.3f}{doubt}")
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    model = _load(arguments)
    if isinstance(model.bundle.form, ImageForm) and is_runs(arguments.examples):
        return _evaluate_runs(model, arguments.examples)
    found = model.evaluate(arguments.examples, label=arguments.label)
    for name, share in found.by_class.items():
        print(f"{name}  {share:.1%}")
    print(
        f"accuracy  {found.accuracy:.2%} +- {100 * found.ci95:.2f} over {found.examples:,} "
        f"{model.bundle.form.noun}s"
    )
    return 0


def _evaluate_runs(model: Classifier, folder: str) -> int:
    found = evaluate_runs(model, folder)
    for name, share in found.by_run.items():
        print(f"{name}  {share:.1%}")
    print(
        f"accuracy  {found.accuracy:.2%} +- {100 * found.ci95:.2f} over {len(found.by_run)} runs of "
        f"{found.questions:,} questions"
    )
    return 0


def _explain(arguments: argparse.Namespace) -> int:
    from metajax.deploy.row_reasons import RowExample, in_words

    model = _load(arguments)
    name, asked = model.bundle.form.named([arguments.example])[0]
    reasons = model.explain(asked)
    print(f"{name}  {reasons.label}  {reasons.probability:.3f}")
    for example in reasons.examples[:5]:
        words = f"  {in_words(example.row)}" if isinstance(example, RowExample) else ""
        print(f"  {example.influence:+.3f}  {example.label}, example {example.number + 1}{words}")
    print(f"page  {reasons.save(arguments.save)}")
    return 0


def _export(arguments: argparse.Namespace) -> int:
    model, options = _load(arguments), {"ways": arguments.ways, "part": arguments.part}
    if arguments.format == "onnx":
        program = export_onnx(model.bundle, labels=model.labels, **options)
    else:
        program = bytes(export_program(model.bundle, **options).serialize())
    print(f"{len(program):,} bytes in {bundles.write_file(arguments.save, program)}")
    return 0


def _pages(arguments: argparse.Namespace) -> int:
    page = write_pages(
        _load(arguments), arguments.save, runtime=arguments.runtime, ways=arguments.ways
    )
    print(f"{page.size:,} bytes in {page.folder}, with {RUNTIME} {page.version}")
    print(f"python -m http.server --directory {page.folder}")
    return 0


def _serve(arguments: argparse.Namespace) -> int:
    model = _load(arguments)
    print(f"http://{arguments.host}:{arguments.port}", flush=True)
    serve(model, host=arguments.host, port=arguments.port, limits=limits_of(arguments))
    return 0


def _info(arguments: argparse.Namespace) -> int:
    model = _load(arguments)
    bundle = model.bundle
    spec = bundle.spec
    ways = "any number of classes" if spec.any_ways else f"up to {spec.ways} classes"
    together = (
        "; its network normalizes by the batch, so that each query is answered next to the support set alone"
        if spec.sees_the_batch
        else ""
    )
    rows = [
        ("learner", f"{spec.learner}, {ways}{together}"),
        ("network", spec.network + (f", {spec.norm} norm" if spec.norm != "none" else "")),
        (f"{bundle.form.noun}s", bundle.form.in_words()),
        ("temperature", f"{bundle.temperature:g}"),
        ("threshold", "none" if bundle.threshold is None else f"{bundle.threshold:.3f}"),
        ("classes", listed(model.labels, few=20) if model.labels else "none learned yet"),
        *((name, _said(value)) for name, value in bundle.training.items() if name not in _LONG),
    ]
    widest = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{widest}}  {value}")
    return 0


def _said(value: object) -> str:
    """Writes a fact of the training."""
    if not isinstance(value, dict):
        return str(value)
    numbers = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in value.items()}
    return ", ".join(f"{name} {number}" for name, number in numbers.items())


def _load(arguments: argparse.Namespace):
    return load(Path(arguments.model), invert=arguments.invert)
