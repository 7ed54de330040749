"""Data sets of text: intents, relations, and intents in many languages."""

import functools
from collections.abc import Mapping
from pathlib import Path

from metajax.data import strict_json
from metajax.data.splits import shuffled
from metajax.data.tables import splitting
from metajax.data.tables.reading import read_table
from metajax.data.tables.recipe import Recipe
from metajax.data.tables.source import Source, find_file
from metajax.data.tables.splitting import Parts
from metajax.data.tables.table import Table, concatenate
from metajax.errors import DataError
from metajax.names import shown

FOLDS = ("1", "2", "3", "4", "5")
"""Names of the five class splits of ProtAugment, on which later papers report means."""

_INTENTS = Recipe(text=("sentence",), group="label")

# Dialects and languages of few speakers are for test; no language of these is trained on.
XSID_TEST = ("de-ba", "de-muc", "de-st", "gsw", "nap", "kk")
XSID_VALID = ("lt", "sr")

_FEWREL_DOMAINS = ("pubmed", "nyt", "semeval")
_FEWREL_VALID = 1 / 3  # share of validation relations where train_wiki.json is missing


def intents(data_dir: str | Path | None, *, name: str, folder: str) -> Source:
    """Reads intents with the five class splits of ProtAugment.

    Args:
      data_dir: Folder with `full.jsonl` and the splits `01` to `05` (or `few_shot/01`), or one above it.
      name: Name of the data set.
      folder: Name of the folder.

    Returns:
      The data set; splits are "1" to "5" and "random".

    Raises:
      DataError: If files are missing or broken.

    Reference: Dopierre et al., 2021 (https://arxiv.org/abs/2105.12995).
    """
    path = find_file(
        data_dir, name, "full.jsonl", f"{folder}/full.jsonl", f"intents/{folder}/full.jsonl"
    )
    table = read_table(path, columns=["sentence", "label"])
    return Source(name, table, _INTENTS, {**_folds(path.parent), "random": splitting.random()})


def clinc150_full(data_dir: str | Path | None) -> Source:
    """Reads CLINC150 with domains and out-of-scope questions.

    Args:
      data_dir: Folder with `data_full.json` and `domains.json`, or the one above it. The five class splits
        are there as well if it has a folder `OOS`, or `intents/OOS`, with them.

    Returns:
      The data set; its `unknown` rows are the out-of-scope questions of each split. Splits are "1" to "5"
      where there are lists, "random", and "domains", which divides the ten domains.

    Raises:
      DataError: If files are missing or broken.

    Reference: Larson et al., 2019 (https://aclanthology.org/D19-1131).
    """
    path = find_file(data_dir, "clinc150_oos", "data_full.json", "clinc150/data_full.json")
    stored = _json(path)
    domains = {
        intent: domain
        for domain, intents in _json(path.with_name("domains.json")).items()
        for intent in intents
    }
    rows = [pair for part in ("train", "val", "test") for pair in stored[part]]
    columns = {
        "sentence": [text for text, _ in rows],
        "label": [label for _, label in rows],
        "domain": [domains.get(label, "") for _, label in rows],
    }
    unknown = {
        split: Table.of({"sentence": [text for text, _ in stored[f"oos_{part}"]]}, source=path.name)
        for split, part in {"train": "train", "valid": "val", "test": "test"}.items()
    }
    folds = {}
    for folder in (path.parent, path.parent / "OOS", path.parent.parent / "intents" / "OOS"):
        folds = folds or _folds(folder)
    policies = {
        **folds,
        "random": splitting.random(),
        "domains": splitting.random(column="domain"),
    }
    table = Table.of(columns, source=path.name)
    return Source("clinc150_oos", table, _INTENTS, policies, unknown=unknown)


def _folds(folder: Path) -> dict[str, splitting.Policy]:
    """Reads the lists of classes of the five splits, as far as they are there."""
    policies = {}
    for name in FOLDS:
        for root in (folder / f"0{name}", folder / "few_shot" / f"0{name}"):
            if (root / "labels.train.txt").is_file():
                lists = {
                    split: (root / f"labels.{split}.txt").read_text(encoding="utf-8").splitlines()
                    for split in ("train", "valid", "test")
                }
                names = {split: [line for line in lines if line] for split, lines in lists.items()}
                policies[name] = splitting.by_names(names, column="label")
    return policies


def fewrel(data_dir: str | Path | None) -> Source:
    """Reads relations between two entities of a sentence, and their domains.

    The text marks the entities: `[ head ]` and `( tail )`.

    Args:
      data_dir: Folder with `val_wiki.json`, and some of `train_wiki.json`, `val_pubmed.json`, `val_nyt.json`
        and `val_semeval.json`; or the one above it.

    Returns:
      The data set. The splits "pubmed", "nyt" and "semeval" train on Wikipedia and test on that domain; the
      split "wiki" divides the relations of Wikipedia. Relations of a test domain are not trained on.

    Raises:
      DataError: If files are missing or broken.

    Reference: Gao et al., 2019 (https://aclanthology.org/D19-1649).
    """
    root = find_file(data_dir, "fewrel", "val_wiki.json", "fewrel/val_wiki.json").parent
    names = {"train": "train_wiki.json", "wiki": "val_wiki.json"}
    names |= {domain: f"val_{domain}.json" for domain in _FEWREL_DOMAINS}
    files = {name: root / file for name, file in names.items() if (root / file).is_file()}
    tables = [_relations(path, name) for name, path in files.items()]
    notes = ()
    if "train" not in files:
        notes = (
            "train_wiki.json is missing, so the relations of val_wiki.json are divided into training and "
            "validation",
        )
    policies = {
        domain: functools.partial(_to_domain, domain=domain)
        for domain in _FEWREL_DOMAINS
        if domain in files
    }
    policies |= {"wiki": _wiki, "random": splitting.random()}
    recipe = Recipe(text=("text",), group="relation")
    return Source("fewrel", concatenate(tables, source="fewrel"), recipe, policies, notes)


def _relations(path: Path, part: str) -> Table:
    """Reads the sentences of a file, with marked entities."""
    columns: dict[str, list[str]] = {"text": [], "relation": [], "part": []}
    for relation, rows in _json(path).items():
        for row in rows:
            words = list(row["tokens"])
            for key, (before, after) in {"h": "[]", "t": "()"}.items():
                places = row[key][2][0]  # the first mention
                words[places[0]] = f"{before} {words[places[0]]}"
                words[places[-1]] = f"{words[places[-1]]} {after}"
            columns["text"].append(" ".join(words))
            columns["relation"].append(relation)
            columns["part"].append(part)
    return Table.of(columns, source=path.name)


def _to_domain(table: Table, recipe: Recipe, seed: int, *, domain: str) -> Parts:
    """Trains on Wikipedia and tests on another domain, whose relations are not trained on."""
    test = _names(table, recipe, domain)
    wiki = sorted(_names(table, recipe, "wiki") - test)
    train = sorted(_names(table, recipe, "train") - test)
    if not train:
        drawn = shuffled(wiki, seed)
        held = round(_FEWREL_VALID * len(drawn))
        train, wiki = drawn[held:], drawn[:held]
    # A relation of several parts is read of the parts that its split trains or tests on.
    parts = table.text("part")
    relations = table.text(recipe.group)
    names = {"train": set(train), "valid": set(wiki), "test": test}
    sources = {"train": ("train", "wiki"), "valid": ("wiki",), "test": (domain,)}
    return splitting.of_masks(
        {
            split: [
                relation in names[split] and part in sources[split]
                for relation, part in zip(relations, parts, strict=True)
            ]
            for split in names
        }
    )


def _wiki(table: Table, recipe: Recipe, seed: int) -> Parts:
    """Divides the relations of Wikipedia; relations of train_wiki.json are all for training."""
    train = sorted(_names(table, recipe, "train"))
    held = shuffled(_names(table, recipe, "wiki"), seed)
    if not train:
        return _within(table, recipe, ("wiki",), _thirds(held))
    half = len(held) // 2
    return _within(
        table,
        recipe,
        ("train", "wiki"),
        {"train": train, "valid": held[:half], "test": held[half:]},
    )


def _thirds(names: list[str]) -> dict[str, list[str]]:
    """Divides names into half for training, and a quarter each for validation and test."""
    quarter = len(names) // 4
    return {
        "test": names[:quarter],
        "valid": names[quarter : 2 * quarter],
        "train": names[2 * quarter :],
    }


def _within(
    table: Table, recipe: Recipe, parts: tuple[str, ...], names: Mapping[str, list[str]]
) -> Parts:
    """Divides the rows of some parts by the names of their groups."""
    rows = list(zip(table.text(recipe.group), table.text("part"), strict=True))
    sets = {split: set(found) for split, found in names.items()}
    return splitting.of_masks(
        {
            split: [group in sets[split] and part in parts for group, part in rows]
            for split in ("train", "valid", "test")
        }
    )


def _names(table: Table, recipe: Recipe, part: str) -> set[str]:
    """Lists the groups of a part."""
    rows = zip(table.text(recipe.group), table.text("part"), strict=True)
    return {group for group, found in rows if found == part}


def xsid(data_dir: str | Path | None) -> Source:
    """Reads intents in many languages, whose sentences are translations of each other.

    Args:
      data_dir: Folder with files such as `de.valid.conll` and `de.test.conll`, or the one above it.

    Returns:
      The data set, whose parents are languages. The split "languages" trains on `*.valid.conll` of most
      languages and tests on `*.test.conll` of dialects and of languages of few speakers, so that no test
      sentence is a translation of a training sentence; "random" divides the languages at random.

    Raises:
      DataError: If files are missing or broken.

    Reference: van der Goot et al., 2021 (https://aclanthology.org/2021.naacl-main.197).
    """
    root = find_file(data_dir, "xsid", "en.test.conll", "xsid/en.test.conll").parent
    tables = []
    for path in sorted(root.glob("*.conll")):
        language, file, _ = path.name.split(".")
        if file in ("valid", "test"):
            part = read_table(path, columns=["text", "intent"])
            tables.append(
                part.with_columns({"language": [language] * len(part), "file": [file] * len(part)})
            )
    recipe = Recipe(text=("text",), group="intent", parent="language")
    policies = {"languages": _languages, "random": splitting.random()}
    return Source("xsid", concatenate(tables, source="xsid"), recipe, policies)


def _languages(table: Table, recipe: Recipe, seed: int) -> Parts:
    """Trains and validates on sentences of the files for validation, and tests on those for test."""
    del recipe, seed
    rows = list(zip(table.text("language"), table.text("file"), strict=True))
    held = {*XSID_TEST, *XSID_VALID}
    return splitting.of_masks(
        {
            "train": [language not in held and file == "valid" for language, file in rows],
            "valid": [language in XSID_VALID and file == "valid" for language, file in rows],
            "test": [language in XSID_TEST and file == "test" for language, file in rows],
        }
    )


def _json(path: Path) -> dict:
    """Parses a JSON file of an object; raises DataError if it is broken."""
    try:
        found = strict_json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{shown(path)} cannot be read as JSON: {shown(error)}.") from error
    if not isinstance(found, dict):
        raise DataError(f"{shown(path)} holds {type(found).__name__}; use the published file.")
    return found
