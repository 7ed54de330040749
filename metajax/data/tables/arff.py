"""ARFF, the files of OpenML and WEKA: declared attributes, then rows of comma-separated values."""

import csv
import re

from metajax.data.tables.lines import Lines
from metajax.errors import DataError
from metajax.names import shown

_ATTRIBUTE = re.compile(r"@attribute\s+('(?:[^'\\]|\\.)*'|\"[^\"]*\"|\S+)\s+(.+)", re.IGNORECASE)


def read(lines: Lines) -> tuple[dict[str, list], list[int]]:
    """Reads the rows of an ARFF file as text; a question mark is a missing value.

    Args:
      lines: Lines of the file.

    Returns:
      Values by attribute, and the numbers of the rows.

    Raises:
      DataError: If there is no attribute, a row has another number of values, or rows are sparse.

    Example:
      >>> import io
      >>> file = io.BytesIO(b"@attribute 'my age' real\\n@attribute job {a, b}\\n@data\\n30,?\\n")
      >>> read(Lines(file, "bank.arff", "utf-8", 100))
      ({'my age': ['30'], 'job': ['']}, [1])
    """
    source, rest = lines.source, iter(lines)
    values: dict[str, list] = {}
    for line in rest:
        line = line.strip()
        if line.lower().startswith("@data"):
            break
        if match := _ATTRIBUTE.match(line):
            values[match[1].strip("'\"").replace("\\'", "'")] = []
    if not values:
        raise DataError(
            f"{source} declares no attributes; an ARFF file has lines '@attribute name type'."
        )
    columns, number = list(values.values()), 0
    kept = (line for line in rest if line.strip() and not line.lstrip().startswith("%"))
    rows = csv.reader(kept, quotechar="'", skipinitialspace=True, escapechar="\\")
    while True:
        try:
            row = next(rows)
        except StopIteration:
            break
        except csv.Error as error:  # such as quotes that nothing closes
            raise DataError(
                f"{source} is broken after row {number:,}: {error}; close its quotes."
            ) from error
        number += 1
        if len(row) != len(columns):
            raise DataError(
                f"Row {number:,} of {source}, {shown(','.join(row), 40)}, has {len(row)} values for "
                f"{len(columns)} attributes; mend the row, or write sparse rows in full."
            )
        for column, word in zip(columns, row, strict=True):
            word = word.strip()
            column.append("" if word == "?" else word)
    return values, list(range(1, number + 1))
