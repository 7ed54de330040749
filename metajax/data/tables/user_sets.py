"""Data sets of users and students, who rate or answer."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from metajax.data.tables import splitting
from metajax.data.tables.reading import Layout, read_table
from metajax.data.tables.recipe import Recipe
from metajax.data.tables.source import Source, find_file
from metajax.data.tables.table import Table
from metajax.errors import DataError

# The protocol of MeLU: users with this many ratings.
_MELU_LEAST, _MELU_MOST = 13, 100

_PLACE_CATEGORIES = (
    "alcohol smoking_area dress_code accessibility price Rambience franchise area other_services cuisine"
).split()
_PERSON_CATEGORIES = (
    "smoker drink_level dress_preference ambience transport marital_status hijos interest personality "
    "religion activity color budget"
).split()
_PERSON_NUMBERS = ("birth_year", "weight", "height")


def restaurant(data_dir: str | Path | None) -> Source:
    """Reads ratings of restaurants with the features of places and of people.

    Args:
      data_dir: Folder with `rating_final.csv`, `userprofile.csv`, `geoplaces2.csv` and `chefmozcuisine.csv`,
        or one above it.

    Returns:
      The data set, whose tasks are users; a target is a rating of 0, 1 or 2.

    Raises:
      DataError: If files are missing or broken.

    Reference: Vargas-Govea et al., 2011 (https://archive.ics.uci.edu/dataset/232).
    """
    file = "rating_final.csv"
    root = find_file(data_dir, "restaurant", file, f"data/{file}", f"restaurant/data/{file}").parent
    ratings = read_table(root / file, columns=["userID", "placeID", "rating"])
    people = read_table(root / "userprofile.csv")
    places = read_table(root / "geoplaces2.csv")
    cuisines = read_table(root / "chefmozcuisine.csv").columns
    first = dict(zip(cuisines["placeID"][::-1], cuisines["Rcuisine"][::-1], strict=True))
    places = places.with_columns(
        {"cuisine": [first.get(key, "") for key in places.text("placeID")]}
    )
    person = [*_PERSON_CATEGORIES, *_PERSON_NUMBERS]
    table = joined(ratings, people, "userID", person)
    table = joined(table, places, "placeID", [*_PLACE_CATEGORIES, "latitude", "longitude"])
    recipe = Recipe(
        numbers=(*_PERSON_NUMBERS, "latitude", "longitude"),
        categories=(*_PERSON_CATEGORIES, *_PLACE_CATEGORIES),
        group="userID",
        target="rating",
        item="placeID",
    )
    return Source("restaurant", table, recipe, {"random": splitting.random()})


def movielens(data_dir: str | Path | None) -> Source:
    """Reads MovieLens 1M, 100K or latest-small, by the files that the folder has.

    Args:
      data_dir: Folder with `ratings.dat`, `u.data` or `ratings.csv` and the other files as published.

    Returns:
      The data set, whose tasks are users with 13 to 100 ratings, in order of time; a target is a rating in
      stars. Features are the year and genres of the film and, but for latest-small, sex, age and occupation
      of the user.

    Raises:
      DataError: If files are missing or broken.

    Reference: Lee et al., 2019 (https://arxiv.org/abs/1908.00413).
    """
    path = find_file(data_dir, "movielens", "ratings.dat", "u.data", "ratings.csv")
    columns = ("user", "film", "rating", "time")
    person: tuple[str, ...] = ("sex", "age", "occupation")
    if path.name == "ratings.dat":
        ratings = read_table(path, layout=_double_colons(*columns))
        people = read_table(
            path.with_name("users.dat"),
            layout=_double_colons("user", "sex", "age", "occupation", "zip"),
        )
        films = read_table(
            path.with_name("movies.dat"), layout=_double_colons("film", "title", "genres")
        )
        title = "movielens 1M"
    elif path.name == "u.data":
        ratings = read_table(path, layout=Layout("\t", names=columns))
        names = ("user", "age", "sex", "occupation", "zip")
        people = _bars(path.with_name("u.user"), names)
        films = _films_100k(path.parent)
        title = "movielens 100K"
    else:
        ratings = _renamed(read_table(path), dict(zip(_LATEST, columns, strict=True)))
        people, person, title = None, (), "movielens latest"
        films = _renamed(read_table(path.with_name("movies.csv")), {"movieId": "film"})
    table = ratings if people is None else joined(ratings, people, "user", person)
    films, genres = _with_genres(films)
    table = joined(table, films, "film", ["year", *genres])
    recipe = Recipe(
        numbers=("year", *genres),
        categories=person,
        group="user",
        target="rating",
        order="time",
        item="film",
    )
    policy = splitting.random(least=_MELU_LEAST, most=_MELU_MOST)
    return Source(title, table, recipe, {"random": policy}, (), _MELU_LEAST, _MELU_MOST)


_LATEST = ("userId", "movieId", "rating", "timestamp")


def _double_colons(*names: str) -> Layout:
    """Describes the files of MovieLens 1M."""
    return Layout("::", names=names, encoding="latin-1")


def _bars(path: Path, names: Sequence[str]) -> Table:
    """Reads a file of MovieLens 100K with bars, which has no suffix of its own."""
    return read_table(
        path, layout=Layout("|", quote=None, names=tuple(names), encoding="latin-1"), suffix=".csv"
    )


def _films_100k(root: Path) -> Table:
    """Reads the films of MovieLens 100K, whose genres are columns of 0 and 1."""
    genres = [line for line in _bars(root / "u.genre", ("name", "number")).text("name") if line]
    films = _bars(root / "u.item", ("film", "title", "release", "video", "url", *genres))
    flags = [films.text(genre) for genre in genres]
    words = [
        "|".join(genre for genre, flag in zip(genres, row, strict=True) if flag == "1")
        for row in zip(*flags, strict=True)
    ]
    return films.with_columns({"genres": words})


def _with_genres(films: Table) -> tuple[Table, list[str]]:
    """Adds the year, from the end of the title, and a column of 0 and 1 per genre."""
    titles = [title.strip() for title in films.text("title")]
    year = [title[-5:-1] if title[-5:-1].isdigit() and title[-1] == ")" else "" for title in titles]
    words = [genres.split("|") for genres in films.text("genres")]
    names = sorted(
        {word for each in words for word in each} - {"", "(no genres listed)", "unknown"}
    )
    flags = {f"genre {name}": [int(name in each) for each in words] for name in names}
    return films.with_columns({"year": year, **flags}), list(flags)


def assist(data_dir: str | Path | None) -> Source:
    """Reads answers of students, in the layout of ASSISTments 2009.

    Args:
      data_dir: Folder with `skill_builder_data_corrected.csv`, `skill_builder_data.csv`, or the same with
        `_collapsed`, or a CSV file of columns user_id, problem_id, skill_id, correct, order_id.

    Returns:
      The data set, whose tasks are students with their answers in order; a target is 1 for a right answer.
      An answer that is listed once per skill is one row, with its first skill.

    Raises:
      DataError: If the file is missing or broken.

    Reference: Feng et al., 2009 (https://doi.org/10.1007/s11257-009-9063-7).
    """
    if data_dir and Path(data_dir).is_file():
        path = Path(data_dir)
    else:
        base = "skill_builder_data"
        names = [f"{base}{end}.csv" for end in ("_corrected_collapsed", "_corrected", "")]
        path = find_file(data_dir, "assist", *names)
    columns = ["order_id", "user_id", "problem_id", "skill_id", "correct"]
    table = read_table(path, columns=columns, layout=Layout(encoding="latin-1"))
    first: dict[str, int] = {}
    for row, order in enumerate(table.text("order_id")):
        first.setdefault(order, row)
    notes = ()
    if len(first) < len(table):
        notes = (
            f"{len(table) - len(first):,} of {len(table):,} rows repeat an answer for another skill",
        )
    recipe = Recipe(
        categories=("problem_id", "skill_id"),
        group="user_id",
        target="correct",
        classes=("0", "1"),
        order="order_id",
        item="problem_id",
    )
    policies = {"random": splitting.random(least=2)}
    return Source("assist", table.select(list(first.values())), recipe, policies, notes, least=2)


def joined(table: Table, other: Table, key: str, columns: Sequence[str]) -> Table:
    """Adds columns of another table, by a key that both have.

    Args:
      table: Table of R rows.
      other: Table whose keys are unique.
      key: Column of both.
      columns: Columns of `other` to add.

    Returns:
      The table with the columns; they are missing where the other table lacks the key.

    Raises:
      DataError: If a column is missing, or a key is there twice in `other`.

    Example:
      >>> stars, films = Table.of({"film": [2, 3], "stars": [5, 1]}), Table.of({"film": [2], "year": [1995]})
      >>> joined(stars, films, "film", ["year"]).text("year")
      ['1995', '']
    """
    place = {}
    for row, value in enumerate(other.text(key)):
        if place.setdefault(value, row) != row:
            raise DataError(
                f"{other.where(row)}: '{value}' is there twice in column '{key}'; keep one."
            )
    rows = [place.get(value, -1) for value in table.text(key)]
    found = {}
    for name in columns:
        words = [*other.text(name), ""]
        found[name] = [words[row] for row in rows]
    return table.with_columns(found)


def _renamed(table: Table, names: Mapping[str, str]) -> Table:
    """Renames columns."""
    columns = {names.get(name, name): column for name, column in table.columns.items()}
    for name in names:
        table.column(name)
    return Table(columns, table.source, table.numbers)
