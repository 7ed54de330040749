"""Data sets by name: hand-made rows of their published layouts, and the real files where there are any."""

import gzip
import json
import os

import numpy as np
import pytest

from metajax.data.tables import cached, load_table
from metajax.data.tables.sets import SETS
from metajax.errors import DataError

SPLITS = ("train", "valid", "test")
SHARED = os.environ.get("METAJAX_SHARED_DATA", "")
real = pytest.mark.skipif(not SHARED, reason="METAJAX_SHARED_DATA is not set")


def _write(root, files):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = content.encode() if isinstance(content, str) else content
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return root


def _values(found, column):
    return {split: sorted(set(getattr(found, split).text(column))) for split in SPLITS}


def _all(parts):
    return [value for values in parts.values() for value in values]


def _ones(texts):
    return np.ones((len(texts), 1))


LABELS = "abcdef"
INTENTS = "".join(
    json.dumps({"sentence": f"say {label} {i}", "label": label}) + "\n"
    for label in LABELS
    for i in range(2)
)


@pytest.mark.parametrize(("above", "between"), [("", ""), ("BANKING77/", "few_shot/")])
def test_intents_have_the_published_class_splits(tmp_path, above, between):
    lists = {"train": "b\nd\n", "valid": "a\nc\n", "test": "f\ne\n"}
    folds = {f"{above}{between}02/labels.{name}.txt": lines for name, lines in lists.items()}
    root = _write(tmp_path, {f"{above}full.jsonl": INTENTS, **folds})
    found = load_table("banking77", data_dir=root, split="2")
    assert _values(found, "label") == {"train": ["b", "d"], "valid": ["a", "c"], "test": ["e", "f"]}
    assert len(load_table("banking77", data_dir=root, split="random").train) == 8
    with pytest.raises(DataError, match=r"'1' does not fit banking77; .*'2'"):
        load_table("banking77", data_dir=root, split="1")
    store = found.stores(featurize={"text": _ones})["test"]
    assert store.groups == ("e", "f") and store.rows.targets is None


def test_out_of_scope_questions_are_apart(tmp_path):
    domains = {"bank": ["a", "b", "c"], "home": ["d"], "work": ["e", "f"]}
    stored = {
        "train": [[f"{label} 1", label] for label in LABELS],
        "val": [[f"{label} 2", label] for label in LABELS],
        "test": [[f"{label} 3", label] for label in LABELS],
        "oos_train": [["x", "oos"]],
        "oos_val": [["y", "oos"], ["z", "oos"]],
        "oos_test": [["u", "oos"]] * 3,
    }
    _write(tmp_path, {"data_full.json": json.dumps(stored), "domains.json": json.dumps(domains)})
    found = load_table("clinc150_oos", data_dir=tmp_path)
    assert {split: len(table) for split, table in found.unknown.items()} == {
        "train": 1,
        "valid": 2,
        "test": 3,
    }
    assert sum(len(getattr(found, split)) for split in SPLITS) == 18  # three of each intent
    assert "oos" not in _all(_values(found, "label"))
    by_domain = load_table("clinc150_oos", data_dir=tmp_path, split="domains")
    parts = _values(by_domain, "domain")
    assert sorted(_all(parts)) == ["bank", "home", "work"]
    assert by_domain.fingerprint() != found.fingerprint()


def _relation(name, rows):
    return {
        name: [
            {
                "tokens": ["A", "b", "met", "C"],
                "h": ["a b", "Q1", [[0, 1]]],
                "t": ["c", "Q2", [[3]]],
            }
        ]
        * rows
    }


def _relations(names):
    return json.dumps({key: value for name in names for key, value in _relation(name, 2).items()})


def test_relations_mark_their_entities_and_are_split_by_domain(tmp_path):
    wiki = [f"P{i}" for i in range(8)]
    _write(
        tmp_path,
        {"val_wiki.json": _relations(wiki), "val_nyt.json": _relations(["P0", "N"])},
    )
    found = load_table("fewrel", data_dir=tmp_path, split="nyt")
    assert found.train.text("text")[0] == "[ A b ] met ( C )"
    parts = _values(found, "relation")
    assert parts["test"] == ["N", "P0"] and len(found.test) == 4
    assert sorted(parts["train"] + parts["valid"]) == wiki[1:]  # without P0, which is tested
    assert "train_wiki.json is missing" in found.notes[0]
    wiki_parts = _values(load_table("fewrel", data_dir=tmp_path, split="wiki"), "relation")
    assert sorted(_all(wiki_parts)) == wiki
    assert [len(wiki_parts[split]) for split in SPLITS] == [4, 2, 2]
    _write(tmp_path, {"train_wiki.json": _relations(["T1", "P0", "T2"])})
    parts = _values(load_table("fewrel", data_dir=tmp_path, split="nyt"), "relation")
    assert parts == {"train": ["T1", "T2"], "valid": wiki[1:], "test": ["N", "P0"]}
    with pytest.raises(DataError, match="'pubmed' does not fit fewrel"):
        load_table("fewrel", data_dir=tmp_path, split="pubmed")


def _conll(sentences):
    return "\n".join(
        f"# text = {text}\n# intent = {intent}\n1\tx\ty\tO\n" for text, intent in sentences
    )


def test_languages_are_parents_and_test_sentences_are_no_translations(tmp_path):
    files = {}
    for language in ("en", "de", "sr", "gsw"):
        for part in ("valid", "test"):
            files[f"{language}.{part}.conll"] = _conll(
                [(f"{language} {part}", "ask"), ("b", "set")]
            )
    found = load_table("xsid", data_dir=_write(tmp_path, files))
    assert _values(found, "language") == {"train": ["de", "en"], "valid": ["sr"], "test": ["gsw"]}
    assert _values(found, "file") == {"train": ["valid"], "valid": ["valid"], "test": ["test"]}
    store = found.stores(featurize={"text": _ones})["train"]
    assert store.parents == ("de", "en") and store.groups == ("ask", "set", "ask", "set")


FSMOL = [
    ("train", "A1", "CC", "0", "1.5"),
    ("train", "A1", "CO", "1", ""),
    ("valid", "A2", "CC", "1", "2"),
    ("valid", "A2", "CO", "0", "2"),
    ("test", "A3", "CN", "0", "3"),
    ("test", "A3", "CC", "1", "4"),
]


def _fsmol_table():
    header = ("fold", "assay", "smiles", "active", "log_activity")
    return "\n".join("\t".join(row) for row in (header, *FSMOL)) + "\n"


def _fsmol_folders():
    files = {}
    for fold, assay, smiles, active, value in FSMOL:
        row = {
            "SMILES": smiles,
            "Property": f"{active}.0",
            "Assay_ID": assay,
            "LogRegressionProperty": value or "None",
            "fingerprints": [0, 1],
            "graph": {"nodes": []},
        }
        name = f"{fold}/{assay}.jsonl.gz"
        files[name] = files.get(name, "") + json.dumps(row) + "\n"
    return files


def test_assays_have_the_published_folds_in_either_layout(tmp_path, monkeypatch):
    monkeypatch.setenv("METAJAX_CACHE_DIR", str(tmp_path / "cache"))
    one = load_table("fsmol", data_dir=_write(tmp_path / "one", {"fsmol.tsv.gz": _fsmol_table()}))
    many = _write(tmp_path / "many", _fsmol_folders())
    for found in (one, load_table("fsmol", data_dir=many), load_table("fsmol", data_dir=many)):
        assert _values(found, "assay") == {"train": ["A1"], "valid": ["A2"], "test": ["A3"]}
        store = found.stores(featurize={"smiles": _ones})["test"] if found is one else None
        assert found.test.floats("active").tolist() == [0, 1]
        np.testing.assert_array_equal(found.train.floats("log_activity"), [1.5, np.nan])
        assert store is None or store.rows.targets.tolist() == [0, 1]
    assert len(list((tmp_path / "cache").glob("table-fsmol*.npz"))) == 1


def test_columns_of_molecules_are_assays(tmp_path):
    assays = [f"T{i}" for i in range(12)]
    rows = [
        ["1" if i % 2 else "0" for i in range(12)],
        ["0" if i % 2 else "1" for i in range(12)],
        [""] * 11 + ["1.0"],
    ]
    lines = [",".join([*assays, "mol_id", "smiles"])]
    lines += [",".join([*row, f"M{i}", "C" * (i + 1)]) for i, row in enumerate(rows)]
    found = load_table(
        "tox21", data_dir=_write(tmp_path, {"tox21.csv.gz": "\n".join(lines) + "\n"})
    )
    parts = _values(found, "assay")
    assert parts["test"] == ["T10", "T11", "T9"] and parts["train"] == parts["valid"]
    assert len(found.train) == 18 and len(found.test) == 7
    store = found.stores(featurize={"smiles": _ones})["test"]
    assert store.parents == ("T10", "T11", "T9") and store.groups == ("0", "1") * 3
    assert store.rows.counts.tolist() == [1, 1, 1, 2, 1, 1]


def test_restaurants_have_the_features_of_people_and_places(tmp_path):
    person = (
        "userID,latitude,longitude,smoker,drink_level,dress_preference,ambience,transport,marital_status,hijos,"
        "birth_year,interest,personality,religion,activity,color,weight,budget,height\n"
    )
    people = "".join(
        f"U{i},1,2,false,casual,?,family,public,single,kids,{1980 + i},none,a,none,student,red,60,low,1.7\n"
        for i in range(4)
    )
    place = (
        "placeID,latitude,longitude,the_geom_meter,name,address,city,state,country,fax,zip,alcohol,smoking_area,"
        "dress_code,accessibility,price,url,Rambience,franchise,area,other_services\n"
    )
    places = "".join(
        f"{i},2{i},-9{i},0,n,a,c,s,m,?,1,none,none,informal,no,low,?,quiet,f,open,none\n"
        for i in (1, 2)
    )
    ratings = "".join(f"U{i},{j},{(i + j) % 3},1,1\n" for i in range(4) for j in (1, 2))
    files = {
        "userprofile.csv": person + people,
        "geoplaces2.csv": place + places,
        "chefmozcuisine.csv": "placeID,Rcuisine\n1,Thai\n1,Bar\n",
        "rating_final.csv": f"userID,placeID,rating,food_rating,service_rating\n{ratings}",
    }
    found = load_table("restaurant", data_dir=_write(tmp_path, files))
    assert sorted(_all(_values(found, "userID"))) == ["U0", "U1", "U2", "U3"]
    assert found.test.text("cuisine") == ["Thai", ""]
    store = found.stores()["train"]
    assert len(store.groups) == 2 and store.items.tolist() == [1, 2, 1, 2]
    categories = store.rows.take(np.arange(4))["categories"]
    assert categories[:, -1].tolist() == [1, 0, 1, 0]  # the second place has no cuisine
    assert categories[:, 2].tolist() == [0] * 4  # a question mark is missing


def _ratings(line):
    lines = [
        line(user, film, film % 5 + 1, 100 - film) for user in (1, 2, 3) for film in range(1, 14)
    ]
    return "".join([*lines, line(4, 1, 5, 0)])  # user 4 has too few


def _movielens(kind):
    if kind == "1M":
        films = "".join(f"{i}::Caf\xe9 {i} (19{i + 10})::Drama|War\n" for i in range(1, 13))
        return {
            "ratings.dat": _ratings(lambda *row: "::".join(map(str, row)) + "\n"),
            "users.dat": "".join(f"{i}::F::25::{i}::48067\n" for i in range(1, 5)),
            "movies.dat": (films + "13::No year::Comedy\n").encode("latin-1"),
        }
    if kind == "100K":
        film = "{0}|Caf\xe9 {0} (19{1})|01-Jan-1995||http://x|0|0|1|1\n"
        films = "".join(film.format(i, i + 10) for i in range(1, 13))
        return {
            "u.data": _ratings(lambda *row: "\t".join(map(str, row)) + "\n"),
            "u.user": "".join(f"{i}|25|F|job{i}|48067\n" for i in range(1, 5)),
            "u.genre": "unknown|0\nComedy|1\nDrama|2\nWar|3\n\n",
            "u.item": (films + "13|No year|||http://x|0|1|0|0\n").encode("latin-1"),
        }
    films = "".join(f'{i},"Caf\xe9, {i} (19{i + 10})",Drama|War\n' for i in range(1, 13))
    return {
        "ratings.csv": "userId,movieId,rating,timestamp\n"
        + _ratings(lambda *row: ",".join(map(str, row)) + "\n"),
        "movies.csv": f"movieId,title,genres\n{films}13,No year,Comedy\n",
    }


@pytest.mark.parametrize("kind", ["1M", "100K", "latest"])
def test_users_of_movielens_rate_in_order_of_time(tmp_path, kind):
    found = load_table("movielens", data_dir=_write(tmp_path, _movielens(kind)))
    assert sorted(_all(_values(found, "user"))) == ["1", "2", "3"]
    assert found.recipe.numbers == ("year", "genre Comedy", "genre Drama", "genre War")
    assert bool(found.recipe.categories) == (kind != "latest")
    store = found.stores()["train"]
    assert store.rows.counts.tolist() == [13]
    assert store.rows.targets.tolist() == [
        film % 5 + 1.0 for film in range(13, 0, -1)
    ]  # 13 is the first
    rows = store.rows.take(np.arange(13))
    assert rows["missing"][:, 0].tolist() == [True] + [False] * 12
    years = 1910 + np.arange(12.0, 0, -1)
    np.testing.assert_allclose(
        rows["numbers"][1:, 0], (years - years.mean()) / years.std(), rtol=1e-5
    )
    np.testing.assert_allclose(rows["numbers"][0, 1] > 0, True)
    assert len(load_table("movielens", data_dir=tmp_path, least=1, split="all").test) == 40


def test_answers_of_students_are_in_order_and_listed_once(tmp_path):
    rows = [
        ("3", "s1", "p1", "k1", "1"),
        ("1", "s1", "p2", "k1", "0"),
        ("1", "s1", "p2", "k2", "0"),
    ]
    rows += [(str(10 + i), f"s{2 + i // 2}", f"p{i}", "", str(i % 2)) for i in range(6)]
    lines = "".join(
        f"{order},{user},x\xe9,{problem},{skill},{right}\n"
        for order, user, problem, skill, right in rows
    )
    text = "order_id,user_id,name,problem_id,skill_id,correct\n" + lines
    _write(tmp_path, {"skill_builder_data_corrected.csv": text.encode("latin-1")})
    found = load_table("assist", data_dir=tmp_path)
    assert found.notes == ("1 of 9 rows repeat an answer for another skill",)
    assert sorted(_all(_values(found, "user_id"))) == ["s1", "s2", "s3", "s4"]
    store = load_table(
        "assist", data_dir=tmp_path / "skill_builder_data_corrected.csv", split="all"
    ).stores()
    first = store["test"].numbers[:2].tolist()
    assert store["test"].groups[0] == "s1" and first == [2, 1]  # by order_id
    assert store["test"].rows.targets[:2].tolist() == [0, 1]


def test_segments_of_borrowers_are_tasks(tmp_path):
    header = "ID,LIMIT_BAL,SEX,EDUCATION,MARRIAGE,AGE,PAY_0,default.payment.next.month\n"
    rows = [(age, education) for age in (21, 29, 30, 49, 50, 75) for education in (1, 2)]
    lines = "".join(
        f"{i},{i}00,1,{education},2,{age},0,{i % 2}\n"
        for i, (age, education) in enumerate(rows * 2)
    )
    found = load_table("taiwan", data_dir=_write(tmp_path, {"UCI_Credit_Card.csv": header + lines}))
    segments = _all(_values(found, "segment"))
    assert sorted(segments) == [f"from {age} {e}" for age in (20, 30, 40, 50) for e in (1, 2)]
    assert found.recipe.numbers == ("LIMIT_BAL", "AGE", "PAY_0")
    whole = load_table("taiwan", data_dir=tmp_path, split="whole")
    assert whole.recipe.parent == "" and len(whole.test) == 24
    assert whole.stores()["test"].parents == ("",)


def test_the_duration_of_a_call_is_no_feature_of_the_bank(tmp_path):
    header = "".join(f"@ATTRIBUTE V{i + 1} STRING\n" for i in range(17))
    jobs, months = ("cook", "smith"), ("may", "june", "july")
    rows = [
        f"3{i},{job},single,none,no,1{i},no,no,cell,{i},{month},{99 * i},1,-1,0,none,{i % 2 + 1}"
        for i, (job, month) in enumerate([(job, month) for job in jobs for month in months] * 2)
    ]
    text = f"@RELATION bank\n{header}@DATA\n" + "\n".join(rows) + "\n"
    found = load_table("bank", data_dir=_write(tmp_path, {"phpkIxskf.arff": text}))
    assert "duration" in found.train.columns and "duration" not in found.recipe.columns()
    assert len(found.recipe.numbers) + len(found.recipe.categories) == 15
    assert "known only after it, is no feature" in found.notes[0]
    assert len(_all(_values(found, "segment"))) == 6


def test_a_missing_data_set_is_named(tmp_path):
    with pytest.raises(DataError, match=r"fsmol is not in .*: there is no fsmol.tsv.gz"):
        load_table("fsmol", data_dir=tmp_path)
    with pytest.raises(DataError, match=r"creditg is read from your disk; set data_dir"):
        load_table("creditg")


def test_features_are_kept_by_the_content_of_the_texts(tmp_path, monkeypatch):
    monkeypatch.setenv("METAJAX_CACHE_DIR", str(tmp_path))
    calls = []

    def lengths(texts):
        calls.append(list(texts))
        return {
            "a": {"b": np.array([len(text) for text in texts])},
            "c": np.ones((len(texts), 2), np.uint8),
        }

    featurize = cached(lengths, key="lengths")
    for _ in range(2):
        made = featurize(["ab", "c"])
        assert made["a"]["b"].tolist() == [2, 1] and made["c"].dtype == np.uint8
    assert calls == [["ab", "c"]]
    featurize(["a", "bc"])
    cached(lengths, key="other")(["ab", "c"])
    assert calls == [["ab", "c"], ["a", "bc"], ["ab", "c"]]


def test_kept_features_remember_which_texts_have_none(tmp_path, monkeypatch):
    from metajax.data.tables import Featurized

    monkeypatch.setenv("METAJAX_CACHE_DIR", str(tmp_path))
    notes = ("1 has none.", "2 are cut.")
    made = Featurized(np.ones((2, 1)), np.array([False, True]), notes)
    featurize = cached(lambda texts: made, key="valid")
    for _ in range(2):
        found = featurize(["x", "y"])
        assert found.valid.tolist() == [False, True] and found.values.shape == (2, 1)
        assert found.notes == notes


# Tasks and rows of each split, counted by other means in the published files.
REAL = {
    ("banking77", "1"): ((25, 25, 27), 13_083),
    ("hwu64", "1"): ((16, 23, 25), 11_036),
    ("liu", "5"): ((18, 18, 18), 25_478),
    ("clinc150", "2"): ((50, 50, 50), 22_500),
    ("clinc150_oos", "1"): ((50, 50, 50), 22_500),
    ("fewrel", "pubmed"): ((11, 5, 10), 16 * 700 + 10 * 100),
    ("xsid", None): ((10, 2, 6), 19 * 150 + 2 * 300 + 6 * 500),
    ("fsmol", None): ((4_935, 39, 157), 482_933),
    ("tox21", None): ((9, 9, 3), None),
    ("restaurant", None): ((88, 22, 28), 1_161),
    ("bank", None): ((91, 23, 29), None),
    ("creditg", "whole"): (None, 1_000),
    ("taiwan", "whole"): (None, 30_000),
    ("blood", None): (None, 748),
    ("diabetes", None): (None, 768),
}


@real
@pytest.mark.parametrize(("name", "split"), REAL)
def test_published_files_have_their_tasks(name, split):
    tasks, rows = REAL[name, split]
    found = load_table(name, data_dir=SHARED, split=split)
    assert rows is None or sum(len(getattr(found, part)) for part in SPLITS) == rows
    if tasks is not None:
        column = found.recipe.task()
        assert tuple(len(values) for values in _values(found, column).values()) == tasks


def test_every_data_set_names_itself_when_it_is_missing(tmp_path):
    for name in SETS:
        with pytest.raises(DataError, match=f"{name} is not in"):
            load_table(name, data_dir=tmp_path)
