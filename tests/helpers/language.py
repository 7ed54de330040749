"""Checks the language of docstrings and comments; run it on files or folders.

    python tests/helpers/language.py metajax/learners experiments/flags

The rules: a function's summary starts with a verb in the third person; an entry of Args, Returns, Attributes
or Raises is a noun phrase that starts with a capital letter, a shape or a literal; words of no field are not
used; everything that a room exports has its arguments, its result and an example.
"""

import ast
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

# Words that stand for no thing, each with what to write instead.
DIALECT = {
    r"\bbeside\b": "besides, next to, with",
    r"\btold\b": "given, reported, named",
    r"\bsays?\b": "gives, names, states",
    r"\btaken for\b": "treated as, assumed",
    r"\bthose of\b": "the noun again",
    r"\bas of\b": "as in, like",
}
NO_NOUN = re.compile(
    r"(of|how|which|what|where|when|as|is|are|was|it|its|that|those|these|they|to|by|from|in|at|with|for|"
    r"if|and|or|so|because|until|since)\b",
    re.IGNORECASE,
)
STARTS = re.compile(r"[A-Z\[`(\"'0-9{+-]")
SECTION = re.compile(r"^(Args|Returns|Attributes|Raises|Yields):$")
VERB = re.compile(r"[A-Z][a-z]+s(, |$|\b)")
# Words that end in s and are no verbs.
NOUNS = set(
    "This Classes Images Meta Metas Losses Was Has Is Does Tasks Rows Always Plus Less Its".split()
)


def docstrings(tree: ast.AST) -> Iterator[tuple[ast.AST, str, int]]:
    """Yields definitions, their docstrings and the line of the docstring's first line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield node, text, node.body[0].lineno


def check_docstring(node: ast.AST, text: str) -> Iterator[tuple[int, str]]:
    """Yields offsets of lines and complaints about a docstring."""
    lines = text.split("\n")
    if isinstance(node, ast.FunctionDef) and not node.name.startswith("__"):
        decorators = {getattr(d, "id", getattr(d, "attr", "")) for d in node.decorator_list}
        word = re.split(r"[\s,.;:]", lines[0])[0]
        if not decorators & {"property", "cached_property"} and (
            not VERB.match(lines[0]) or word in NOUNS
        ):
            yield 0, f"summary starts with {word!r}; start with a verb, such as Computes"
    section = None
    for number, line in enumerate(lines):
        if match := SECTION.match(line):
            section = match[1]
            continue
        if line and not line.startswith(" "):
            section = None
        if not section or not line.startswith("  ") or line.startswith("   "):
            continue
        entry = line.strip()
        if section != "Returns" and section != "Yields":
            _, colon, rest = entry.partition(": ")
            if not colon:
                continue
            entry = rest
        elif number and not SECTION.match(lines[number - 1]):
            continue
        if not STARTS.match(entry):
            yield number, f"entry starts with {entry[:20]!r}; start with a capital letter"
        elif NO_NOUN.match(entry) and section != "Raises":
            yield number, f"entry starts with {entry.split()[0]!r}; start with a noun phrase"


def check_dialect(text: str) -> Iterator[tuple[int, str]]:
    """Yields offsets of lines and complaints about words of no field."""
    for number, line in enumerate(text.split("\n")):
        for pattern, instead in DIALECT.items():
            if match := re.search(pattern, line):
                yield number, f"{match[0]!r}: write {instead}"


def check_file(path: Path) -> list[str]:
    """Checks the docstrings and comments of a program, or the words of a text; returns complaints."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return [f"{path}:{offset + 1}: {complaint}" for offset, complaint in check_dialect(text)]
    found = []
    for node, docstring, start in docstrings(ast.parse(text)):
        for offset, complaint in [*check_docstring(node, docstring), *check_dialect(docstring)]:
            found.append((start + offset, complaint))
    with tokenize.open(path) as file:
        for token in tokenize.generate_tokens(file.readline):
            if token.type == tokenize.COMMENT:
                found += [
                    (token.start[0], complaint) for _, complaint in check_dialect(token.string)
                ]
    return [f"{path}:{line}: {complaint}" for line, complaint in sorted(found)]


def check_export(name: str, value: object) -> list[str]:
    """Checks the docstring of an exported function; returns complaints."""
    import inspect

    if not inspect.isfunction(inspect.unwrap(value)) if callable(value) else True:
        return []
    function = inspect.unwrap(value)
    text = inspect.getdoc(function) or ""
    tree = ast.parse(inspect.cleandoc("\n" + inspect.getsource(function)))
    raises = any(isinstance(node, ast.Raise) for node in ast.walk(tree))
    wanted = {
        "Args:": bool(inspect.signature(function).parameters),
        "Returns:": inspect.signature(function).return_annotation not in (None, "None"),
        "Raises:": raises,
        ">>>": True,
    }
    return [
        f"{name} has no {part}" for part, needed in wanted.items() if needed and part not in text
    ]


def main(arguments: list[str]) -> int:
    """Checks files and folders; returns the number of complaints, at most 1."""
    paths = []
    for argument in map(Path, arguments):
        paths += sorted(argument.rglob("*.py")) if argument.is_dir() else [argument]
    complaints = [complaint for path in paths for complaint in check_file(path)]
    print("\n".join(complaints) or "no complaints")
    return min(1, len(complaints))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
