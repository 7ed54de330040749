"""CoNLL files of annotated sentences: blocks of token lines below comments `# key = value`."""

import re

from metajax.data.tables.lines import Lines
from metajax.errors import DataError

_COMMENT = re.compile(r"#\s*([^\s=:]+)\s*[=:]\s*(.*)")


def read(lines: Lines) -> tuple[dict[str, list], list[int]]:
    """Reads the comments of each block as a row; a block without a text has its tokens, joined by spaces.

    Args:
      lines: Lines of the file, blocks of which are divided by empty lines.

    Returns:
      Values by key, "" where a block lacks the key, and the numbers of the blocks.

    Raises:
      DataError: If no block has a comment.

    Example:
      >>> import io
      >>> file = io.BytesIO(b"# intent = set\\n1\\twake\\n2\\tme\\n\\n# intent: ask\\n# text: when?\\n")
      >>> read(Lines(file, "en.conll", "utf-8", 100))
      ({'intent': ['set', 'ask'], 'text': ['wake me', 'when?']}, [1, 2])
    """
    blocks, comments, tokens = [], {}, []
    for line in [*lines, ""]:  # the last block need not end in an empty line
        line = line.strip("\r\n ")
        if not line:
            if comments or tokens:
                blocks.append({**comments, "text": comments.get("text") or " ".join(tokens)})
            comments, tokens = {}, []
        elif line.startswith("#"):
            if match := _COMMENT.match(line):
                comments.setdefault(match[1], match[2])
        else:
            fields = line.split("\t")
            tokens.append(fields[min(1, len(fields) - 1)])
    keys = list(dict.fromkeys(key for block in blocks for key in block))
    if keys in ([], ["text"]):
        raise DataError(
            f"{lines.source} has no comments such as '# intent = set_alarm' above its sentences; add them, "
            "or use another format."
        )
    return {key: [block.get(key, "") for block in blocks] for key in keys}, list(
        range(1, len(blocks) + 1)
    )
