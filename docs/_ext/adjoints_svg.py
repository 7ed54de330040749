"""Draws docs/adjoints.svg: what each adjoint keeps of nine inner steps for the backward pass.

python docs/_ext/adjoints_svg.py
"""

import math
from pathlib import Path

STEPS = 9
LEFT, STEP, ROW, TOP = 130, 62, 58, 56
INK, DEVICE, HOST, PALE = "#444444", "#1b7f79", "#d9822b", "#c8c8c8"
LENGTH = math.isqrt(STEPS)

# Adjoint -> what is kept: of step i its state, its inner gradient, its intermediate results.
ROWS = {
    "reverse": lambda i: (DEVICE, DEVICE, DEVICE),
    "remat": lambda i: (DEVICE, None, None),
    "mixed": lambda i: (DEVICE, DEVICE, None),
    "recursive": lambda i: (DEVICE if i % LENGTH == 0 else None, None, None),
    "offload": lambda i: (HOST, HOST, None),
    "truncated": lambda i: (DEVICE, DEVICE, None) if i >= STEPS - 5 else (None, None, None),
    "first_order": lambda i: (None, None, None),
}
NOTES = {
    "reverse": "everything",
    "remat": "states; the rest again",
    "mixed": "states and gradients",
    "recursive": "one state in √S",
    "offload": "as mixed, on the host",
    "truncated": "the last 5 steps",
    "first_order": "no inner gradient",
}


def main() -> None:
    """Writes the drawing."""
    width, height = LEFT + STEPS * STEP + 190, TOP + len(ROWS) * ROW + 44
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="14" role="img">',
        "<title>What each adjoint keeps for the backward pass</title>",
        f'<rect width="{width}" height="{height}" fill="white"/>',
        *_legend(width),
    ]
    for row, (name, kept) in enumerate(ROWS.items()):
        y = TOP + row * ROW + ROW / 2
        parts.append(f'<text x="8" y="{y + 5}" font-family="monospace" fill="{INK}">{name}</text>')
        for i in range(STEPS):
            parts += _step(LEFT + i * STEP, y, kept(i), cut=_is_cut(name, i))
        parts.append(_circle(LEFT + STEPS * STEP, y, None))
        parts.append(
            f'<text x="{LEFT + STEPS * STEP + 22}" y="{y + 5}" fill="{INK}">{NOTES[name]}</text>'
        )
    y = height - 20
    parts.append(
        f'<text x="{LEFT}" y="{y}" fill="{INK}">{STEPS} inner steps, from left to right; dashed: '
        "the derivative is taken to be the identity</text>"
    )
    path = Path(__file__).resolve().parents[1] / "adjoints.svg"
    path.write_text("\n".join([*parts, "</svg>"]) + "\n", encoding="utf-8")


def _is_cut(name: str, i: int) -> bool:
    return name == "first_order" or (name == "truncated" and i < STEPS - 5)


def _step(x: float, y: float, kept: tuple, *, cut: bool) -> list[str]:
    """Draws a state, the step behind it with its intermediate results, and its inner gradient."""
    state, gradient, results = kept
    dash = ' stroke-dasharray="4 3"' if cut else ""
    line = f'<line x1="{x}" y1="{y}" x2="{x + STEP}" y2="{y}" stroke="{INK}"{dash}/>'
    box = _box(x + 16, y, 30, results or "white")
    diamond = _diamond(x + 31, y, gradient or "white")
    return [line, box, diamond, _circle(x, y, state)]


def _circle(x: float, y: float, color: str | None) -> str:
    return f'<circle cx="{x}" cy="{y}" r="8" stroke="{INK}" fill="{color or "white"}"/>'


def _diamond(x: float, y: float, color: str) -> str:
    return f'<path d="M{x} {y - 7} L{x + 7} {y} L{x} {y + 7} L{x - 7} {y} Z" stroke="{INK}" fill="{color}"/>'


def _box(x: float, y: float, width: float, color: str) -> str:
    size = f'width="{width}" height="24" rx="3"'
    opacity = 1 if color == "white" else 0.5  # a gradient stands out on results
    style = f'stroke="{INK}" fill="{color}" fill-opacity="{opacity}"'
    return f'<rect x="{x}" y="{y - 12}" {size} {style}/>'


def _legend(width: float) -> list[str]:
    y, parts, x = 26, [], 20
    for mark, text in (
        (_circle(x, y, PALE), "state"),
        (None, "inner gradient"),
        (None, "intermediate results"),
        (None, "kept on the device"),
        (None, "kept on the host"),
        (None, "computed again"),
    ):
        if text == "inner gradient":
            mark = _diamond(x, y, PALE)
        elif text == "intermediate results":
            mark = _box(x - 10, y, 22, PALE)
        elif mark is None:
            color = {"kept on the device": DEVICE, "kept on the host": HOST}.get(text, "white")
            mark = _box(x - 8, y, 16, color)
        parts += [mark, f'<text x="{x + 18}" y="{y + 5}" fill="{INK}">{text}</text>']
        x += 40 + 6.6 * len(text)
    return parts


if __name__ == "__main__":
    main()
