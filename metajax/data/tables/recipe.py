"""Recipes: which column of a table is text, which the target, and what is a task."""

from collections.abc import Iterable
from typing import NamedTuple

from metajax.data.tables.table import Table
from metajax.data.tables.values import missing_among, parse_number
from metajax.errors import DataError
from metajax.names import listed, shown


class Recipe(NamedTuple):
    """The parts that columns of a table play in tasks.

    Without a target, a group is a class: a task has the rows of N groups, of one parent if there are any,
    and the group of a row is its label. With a target, a task is one group, or one parent, and its rows have
    targets. Targets of classes divide a parent into groups, such as inactive and active molecules, so that
    `SplitSampler(order="stratified")` knows the classes; the rows of a group keep their order, which
    `SplitSampler(order="first", by_group=True)` treats as time.

    | tasks | recipe |
    |---|---|
    | N intents of a domain | `Recipe(text=("message",), group="intent", parent="domain")` |
    | a user with ratings | `Recipe(group="user", target="rating", order="time", item="film", ...)` |
    | an assay | `Recipe(smiles="smiles", parent="assay", target="active", classes=("0", "1"))` |
    | a segment of customers | `Recipe(numbers=("age",), parent="job", target="y", classes=("no", "yes"))` |
    | the whole table | the same without a parent |

    Attributes:
      text: Columns of text, which are joined by spaces.
      smiles: Column of molecules as SMILES; "" for none.
      numbers: Columns of numbers.
      categories: Columns of categories.
      target: Column of the target; "" if the group of a row is its label.
      classes: Values of the target that are classes 0, 1, and so on; () if targets are numbers.
      group: Column of the group, such as a class, a user or a student; "" for none.
      parent: Column of the parent, such as a domain, a language or an assay; "" for none.
      order: Column of numbers or times by which the rows of a group are sorted; "" keeps their order.
      item: Column of what is rated or answered, such as a film; "" for none. It is no feature.

    Example:
      >>> Recipe(text=("message",), group="topic").columns()
      ('message', 'topic')
    """

    text: tuple[str, ...] = ()
    smiles: str = ""
    numbers: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    target: str = ""
    classes: tuple[str, ...] = ()
    group: str = ""
    parent: str = ""
    order: str = ""
    item: str = ""

    def columns(self) -> tuple[str, ...]:
        """Lists the columns that the recipe reads.

        Returns:
          Names of columns, each once.

        Example:
          >>> Recipe(numbers=("age",), target="y").columns()
          ('age', 'y')
        """
        many = (*self.text, self.smiles, *self.numbers, *self.categories)
        names = (*many, self.target, self.group, self.parent, self.order, self.item)
        return tuple(dict.fromkeys(name for name in names if name))

    def task(self) -> str:
        """Finds the column whose values are split into training, validation and test tasks.

        Returns:
          The parent if there is one, else the group; "" if the whole table is one task.

        Example:
          >>> Recipe(group="intent", parent="domain").task()
          'domain'
        """
        return self.parent or self.group

    def check(self, table: Table) -> None:
        """Checks that a table has the columns, and that they make tasks.

        Args:
          table: Table.

        Raises:
          DataError: If a column is missing, there are no features, or neither a target nor a group.

        Example:
          >>> Recipe(text=("message",), group="topic").check(Table.of({"message": ["hi"], "topic": ["a"]}))
        """
        for name in self.columns():
            table.column(name)
        if not (self.text or self.smiles or self.numbers or self.categories):
            known = [name for name in table.columns if name not in self.columns()]
            more = f", such as {listed(known)}" if known else ", of which it has none yet"
            raise DataError(
                f"No column of {table.source} is a feature; name columns of text, smiles, numbers or "
                f"categories{more}."
            )
        if not (self.target or self.group):
            raise DataError(
                f"The rows of {table.source} have neither a target nor a group; name the column of one."
            )
        if self.classes and not self.target:
            raise DataError(
                f"The classes {listed(self.classes)} have no target; name its column, or leave them out."
            )

    def texts(self, table: Table) -> list[str]:
        """Reads the text of each row.

        Args:
          table: Table with the columns.

        Returns:
          Texts [R]; several columns are joined by spaces.

        Raises:
          DataError: If a column is missing.

        Example:
          >>> table = Table.of({"title": ["Card", ""], "body": ["lost", "help"]})
          >>> Recipe(text=("title", "body")).texts(table)
          ['Card lost', 'help']
        """
        columns = [table.text(name) for name in self.text]
        return [" ".join(words).strip() for words in zip(*columns, strict=True)]


def classes_of(
    table: Table, column: str, *, most: int = 100, remedy: str = "treat it as a number"
) -> tuple[str, ...]:
    """Lists the values of a column that are classes of a target, numbers in numerical order.

    Args:
      table: Table.
      column: Name of the target.
      most: Largest number of classes.
      remedy: End of the message about too many.

    Returns:
      The values as text, without missing ones.

    Raises:
      DataError: If there are less than two, or more than `most`.

    Example:
      >>> from metajax.data.tables import Table
      >>> classes_of(Table.of({"grade": [10, 9, 10]}), "grade")
      ('9', '10')
    """
    words = set(table.text(column))
    missing = missing_among(words)
    values = sorted(word for word in words if word.strip().lower() not in missing)
    if len(values) < 2:
        found = f"only '{shown(values[0])}'" if values else "no values"
        raise DataError(
            f"Column '{shown(column)}' of {table.source} has {found}; a target needs two classes or more."
        )
    if len(values) > most:
        raise DataError(
            f"Column '{shown(column)}' of {table.source} has {len(values):,} values, and {most} classes are "
            f"the most; {remedy}."
        )
    return tuple(in_order(values))


def in_order(values: Iterable[str]) -> list[str]:
    """Sorts texts, by number if all are numbers.

    Args:
      values: Texts.

    Returns:
      The sorted texts.

    Example:
      >>> in_order(["10", "9"]), in_order(["10", "9", "a"])
      (['9', '10'], ['10', '9', 'a'])
    """
    values = list(values)
    try:
        return sorted(values, key=lambda value: (parse_number(value), value))
    except ValueError:
        return sorted(values)
