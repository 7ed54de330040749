"""Sphinx extension of this site: generated pages, pages from the root, and links to the API."""

import re
from pathlib import Path
from typing import Any

import api
import flag_pages

_NAME = re.compile(r"metajax(?:\.\w+)+")


def setup(app: Any) -> dict[str, Any]:
    """Writes the generated pages before the sources are looked for, and links names of the API."""
    write_pages(Path(app.srcdir))
    app.connect("doctree-resolved", _link_names)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def write_pages(docs: Path) -> None:
    """Writes docs/generated; files that stay the same keep their time, and are not read again."""
    folder, written = docs / "generated", set()
    for part, pages in (("api", api.pages()), ("flags", flag_pages.pages())):
        for name, text in pages.items():
            written.add(_write(folder / part / f"{name}.md", text))
    for name, missing in (
        ("contributing", "CONTRIBUTING.md is not in this checkout."),
        ("changelog", "CHANGELOG.md is not in this checkout."),
    ):
        written.add(_write(folder / f"{name}.md", _from_root(docs, name, missing)))
    for path in folder.rglob("*.md"):
        if path not in written:
            path.unlink()


def _from_root(docs: Path, name: str, missing: str) -> str:
    """Takes a page from the root of the repository, whose links are relative to there, if it is there."""
    path = docs.parent / f"{name.upper()}.md"
    if not path.is_file():
        return f"# {name.capitalize()}\n\n{missing}\n"
    text = path.read_text(encoding="utf-8")

    def link(match: re.Match) -> str:
        target = match[2]
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        file, _, anchor = target.partition("#")
        if file.startswith("docs/") and (docs.parent / file).is_file():
            return f"{match[1]}(../{file.removeprefix('docs/')}{'#' + anchor if anchor else ''})"
        if file in ("CONTRIBUTING.md", "CHANGELOG.md"):
            return f"{match[1]}({file.lower()}{'#' + anchor if anchor else ''})"
        return f"{match[1][1:-1]} (`{file}`)"

    return re.sub(r"(\[[^\]]*\])\(([^)\s]+)\)", link, text)


def _write(path: Path, text: str) -> Path:
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return path


def _link_names(app: Any, doctree: Any, docname: str) -> None:
    """Makes links of code spans that are names of the API, such as `metajax.unroll`."""
    from docutils import nodes
    from sphinx.util.nodes import make_refnode

    objects = app.env.domains["py"].objects
    homes = api.homes()
    for literal in list(doctree.findall(nodes.literal)):
        text = literal.astext().removesuffix("()")
        if not _NAME.fullmatch(text) or isinstance(literal.parent, nodes.reference | nodes.title):
            continue
        if any(isinstance(node, nodes.title) for node in _parents(literal)):
            continue
        found = objects.get(homes.get(text.removeprefix("metajax."), text))
        if found:
            inner = literal.deepcopy()
            literal.replace_self(
                make_refnode(app.builder, docname, found.docname, found.node_id, inner)
            )


def _parents(node: Any) -> Any:
    while node.parent is not None:
        node = node.parent
        yield node
