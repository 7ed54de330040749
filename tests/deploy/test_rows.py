"""Bundles of texts and rows answer as the learner does, from values and from files, and survive the disk."""

import json
import shutil

import jax
import numpy as np
import pytest

from metajax import deploy
from metajax.data.features import fit_featurizer
from metajax.data.tables import Encoding, Recipe, Table, fit
from metajax.deploy.command import main
from metajax.errors import DataError
from metajax.objectives import query_outputs
from metajax.types import Batch, Episode
from metajax.zoo import LEARNERS
from metajax.zoo.row_models import ROW_MODELS

pytest.importorskip("safetensors")

TRAIN = ["my card is lost", "send money abroad", "the card was eaten", "change my address"]
TABLE = Table.of({"age": [20.0, 31.5, None], "job": ["cook", "smith", "cook"]})
FIELDS = Recipe(numbers=("age",), categories=("job",), group="class")
TEXTS = {"card": ["lost card", "card eaten"], "money": ["send money", "money abroad"]}
ROWS = {
    "young": [{"age": 20, "job": "cook"}, {"age": 19, "job": None}],
    "old": [[70, "smith"], [66.5, "x"]],
}


def form_of(network, **options):
    """Makes the form of rows that a network reads."""
    if network == "mlp":
        features = {"text": deploy.Features("ngrams", {}, fit_featurizer("ngrams", TRAIN))}
        recipe = FIELDS._replace(text=("message",))
        return deploy.RowForm(recipe, fit(TABLE, recipe), features, flat=True)
    entry = ROW_MODELS[network]
    if entry.reads == "fields":
        return deploy.RowForm(FIELDS, fit(TABLE, FIELDS))
    train, kind = (["CCO", "CCC"], "smiles") if entry.reads == "smiles" else (TRAIN, "text")
    fitted = fit_featurizer(entry.featurizer, train, **options)
    recipe = Recipe(smiles="mol") if kind == "smiles" else Recipe(text=("message",), group="topic")
    features = {kind: deploy.Features(entry.featurizer, options, fitted)}
    return deploy.RowForm(recipe, Encoding(np.zeros(0), np.ones(0)), features)


def made(
    network="ngrams", learner="protonet", *, ways=2, network_options=None, form=None, **options
):
    """Makes a bundle of rows with fresh meta-parameters."""
    usual = {"ngrams": {"hidden": "8"}, "word_cnn": {"filters": 4}}.get(network, {})
    form = form or form_of(network, **({"size": 64} if network == "ngrams" else {}))
    classes = 7 if LEARNERS[learner].objective else None
    spec = deploy.LearnerSpec(
        learner, network, ways, 8, options, network_options or usual, classes, steps=2, rows=2
    )
    learner = deploy.make_learner_of(spec, about=form.about)
    meta = jax.jit(learner.init)(jax.random.key(0), zeros(form.example))
    return deploy.Bundle(spec, form, meta)


def zeros(tree):
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), tree)


@pytest.fixture(scope="module")
def texts():
    return deploy.Classifier(made()).learn(TEXTS)


def agrees(bundle, examples, queries):
    """Compares a classifier with the functions of its learner."""
    model = deploy.Classifier(bundle).learn(examples)
    form = bundle.form
    kept = np.concatenate(list(model.examples.values()))
    labels = np.repeat(np.arange(2), 2)
    query = form.inputs(form.features(form.read(queries)))
    count = len(queries)
    episode = Episode(
        Batch(form.inputs(form.features(kept)), labels), Batch(query, np.zeros(count, int))
    )
    learner = deploy.make_learner_of(bundle.spec, about=form.about)
    run = jax.jit(lambda meta: query_outputs(learner, meta, jax.random.key(0), episode))
    found = model.probabilities(queries)
    np.testing.assert_allclose(found, jax.nn.softmax(run(bundle.meta))[:, :2], atol=2e-6)
    alone = np.concatenate([model.probabilities([query]) for query in queries])
    np.testing.assert_allclose(alone, found, atol=2e-6)
    return model


@pytest.mark.parametrize("learner", ["protonet", "maml", "relation", "metaoptnet"])
def test_answers_to_texts_are_those_of_the_learner(learner):
    agrees(made(learner=learner), TEXTS, ["my card", "lost money", "?"])


@pytest.mark.parametrize(
    ("network", "learner"), [("fields", "anil"), ("cells", "in_context_tables")]
)
def test_answers_to_rows_are_those_of_the_learner(network, learner):
    queries = [[25, "smith"], {"age": None, "job": "cook", "more": 1}, {"age": "30", "job": ""}]
    small = {"width": 8, "layers": 1} if learner == "in_context_tables" else {}
    model = agrees(made(network, learner, **small), ROWS, queries)
    assert model.examples["young"][1] == {"age": 19.0, "job": ""}
    if learner == "in_context_tables":
        assert model.most_ways == 10


def test_a_row_of_numbers_of_all_columns_is_read_by_an_mlp(tmp_path):
    rows = {name: [{"message": name, "age": a, "job": "cook"} for a in (1, 2)] for name in "ab"}
    model = agrees(made("mlp"), rows, [{"message": "b", "age": 3, "job": "smith"}])
    again = deploy.load(model.save(tmp_path / "saved"))
    query = [{"message": "b a", "age": None, "job": "?"}]
    np.testing.assert_array_equal(again.probabilities(query), model.probabilities(query))


@pytest.mark.parametrize(
    ("network", "options"),
    [
        ("ngrams", {"size": 64, "idf": True, "word_bins": 8}),
        ("word_cnn", {"length": 4}),
        ("fingerprints", {"size": 32, "descriptors": True}),
    ],
)
def test_what_is_saved_answers_the_same_bit_for_bit(network, options, tmp_path):
    examples, queries = TEXTS, ["lost", "money"]
    if network == "fingerprints":
        pytest.importorskip("rdkit")
        examples, queries = {"a": ["CCO"], "b": ["c1ccccc1"]}, ["CCN", "C1CC1"]
    model = deploy.Classifier(made(network, form=form_of(network, **options))).learn(examples)
    again = deploy.load(model.save(tmp_path / "saved"))
    assert again.labels == model.labels and again.bundle.form == model.bundle.form
    np.testing.assert_array_equal(again.probabilities(queries), model.probabilities(queries))
    if network == "fingerprints":
        with pytest.raises(DataError, match="the molecule no does not parse"):
            again.predict(["CCO", "no"])


@pytest.mark.parametrize("network", ["frozen_sentences"])
def test_an_encoder_is_named_by_its_hash_and_another_is_refused(network, tmp_path):
    pytest.importorskip("tokenizers")
    pytest.importorskip("all_minilm_l6_v2")
    bundle = made(network, form=form_of(network, length=8))
    folder = deploy.Classifier(bundle).learn(TEXTS).save(tmp_path / "saved")
    again = deploy.load(folder)
    assert again.predict(["a lost card"])[0].label == "card"
    described(folder, lambda found: found["rows"]["features"]["text"]["state"].update(sha256="00"))
    with pytest.raises(DataError, match="has the SHA-256"):
        deploy.load(folder)


def test_a_file_gives_its_rows_to_their_classes(tmp_path):
    (tmp_path / "rows.csv").write_text(
        "message,topic,kind\nlost card,card,x\nsend money,money,y\nhm,,x\n"
    )
    empty = deploy.Classifier(made())
    with pytest.warns(UserWarning, match="1 of 3 rows of rows.csv have no topic"):
        model = empty.learn(tmp_path / "rows.csv")
    assert model.labels == ("card", "money") and len(model.examples["card"]) == 1
    assert empty.learn(tmp_path / "rows.csv", label="kind").labels == ("x", "y")
    with pytest.warns(UserWarning):
        assert model.evaluate(tmp_path / "rows.csv").accuracy == 1.0


class Frame(list):
    """Rows with the one method of a data frame that is asked for."""

    def to_dict(self, orient):
        return {"records": list(self)}[orient]


def test_the_estimator_of_scikit_learn_takes_texts_and_frames(texts):
    pytest.importorskip("sklearn")
    import metajax

    few = metajax.FewShotClassifier(texts).fit([*TEXTS["card"], *TEXTS["money"]], [7, 7, 3, 3])
    found = few.predict_proba(["my card", "money"])
    expected = deploy.Classifier(texts.bundle).learn({"3": TEXTS["money"], "7": TEXTS["card"]})
    np.testing.assert_array_equal(found, expected.probabilities(["my card", "money"]))
    frame = Frame({"message": text, "more": 1} for text in ["my card", "money"])
    np.testing.assert_array_equal(few.predict_proba(frame), found)


def test_reasons_are_exact(texts, tmp_path):
    reasons = texts.explain("my lost  card")
    answer = texts.predict(["my lost  card"])[0]
    assert reasons.label == answer.label == "card"
    assert [part.value for part in reasons.parts] == ["my", "lost", "card"]
    for part, rest in zip(reasons.parts, ["lost card", "my card", "my lost"], strict=True):
        without = texts.predict([rest])[0].probabilities["card"]
        np.testing.assert_allclose(part.share, answer.probability - without, atol=1e-6)
    assert len(reasons.examples) == 4
    for example in reasons.examples:
        others = {name: list(rows) for name, rows in texts.examples.items()}
        del others[example.label][example.number]
        left = deploy.Classifier(texts.bundle).learn(others).predict(["my lost  card"])[0]
        expected = answer.probability - left.probabilities["card"]
        np.testing.assert_allclose(example.influence, expected, atol=1e-5)
    page = reasons.save(tmp_path / "why.html").read_text()
    assert page.count("<mark") == 3 and "lost card" in page
    rows = deploy.Classifier(made("fields")).learn(ROWS)
    missing = rows.explain({"age": 40, "job": None}).parts
    assert [(part.column, part.value) for part in missing] == [("age", 40.0)]


@pytest.mark.parametrize(
    ("bundle", "ask", "message"),
    [
        ("ngrams", lambda m: m.predict("lost card"), "the rows are one string, 'lost card'"),
        ("ngrams", lambda m: m.predict(["a", " "]), "row 1 of the rows has nothing in 'message'"),
        ("ngrams", lambda m: m.predict([{"text": "a"}]), "row 0 has no 'message'"),
        ("ngrams", lambda m: m.predict([["a", "b"]]), "row 0 has 2 values, and this model reads 1"),
        ("ngrams", lambda m: m.predict([{"message": ["a"]}]), "column 'message': .* is list"),
        (
            "fields",
            lambda m: m.predict(["young"]),
            "row 0 is a text, and this model reads the columns",
        ),
        (
            "fields",
            lambda m: m.predict([[1, "a"], ["x", "a"]]),
            "row 1 of the rows, column 'age': 'x'",
        ),
        ("ngrams", lambda m: m.learn("nowhere.csv"), "There is no file nowhere.csv"),
        ("ngrams", lambda m: m.explain("a " * 501), "the text has 501 words, and 500 are the most"),
        ("ngrams", lambda m: deploy.export_program(m.bundle), "here pictures are needed"),
        (
            "ngrams",
            lambda m: m.learn({"a": ["b"]}, label="topic"),
            "label=topic is a column of files",
        ),
    ],
)
def test_rows_that_do_not_serve_are_refused(bundle, ask, message):
    model = deploy.Classifier(made(bundle)).learn(TEXTS if bundle == "ngrams" else ROWS)
    with pytest.raises(DataError, match=message):
        ask(model)


@pytest.fixture(scope="module")
def folder(texts, tmp_path_factory):
    return texts.save(tmp_path_factory.mktemp("bundle"))


def described(folder, change):
    path = folder / "model.json"
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


def features_of(found):
    return found["rows"]["features"]["text"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.update(images={}), "the field images is unknown"),
        (lambda f: f["rows"].update(text=[]), "the features are of 'text', and the columns of"),
        (lambda f: f["rows"].update(text=["a", "a"]), "text names one thing twice"),
        (lambda f: f["rows"].update(means=[1.0]), "means has to be 0 numbers"),
        (lambda f: f["rows"].update(numbers=["age"]), "means has to be 1 numbers"),
        (lambda f: f["rows"].update(vocabularies=[["a"]]), "0 categories and 1 vocabularies"),
        (lambda f: features_of(f).update(name="os.system"), "os.system are unknown"),
        (lambda f: features_of(f)["options"].update(size=10**12), "size is 1000000000000"),
        (lambda f: features_of(f)["options"].update(size=128), "numbers"),
        (lambda f: features_of(f)["options"].update(size="64"), "has to be of type int"),
        (lambda f: features_of(f)["options"].update(shell="x"), "has no option shell"),
        (lambda f: features_of(f)["options"].update(encoder_dir="/etc"), "names no folder"),
        (lambda f: features_of(f)["options"].update(idf=True), "is damaged"),
        (lambda f: f.update(examples=[["card", []]]), "the class card has no rows"),
        (lambda f: f.update(examples=[["card", [{"message": ["x"]}]]]), "is list"),
        (lambda f: f["learner"].update(network="conv4"), "conv4|rank|shape"),
    ],
)
def test_a_hostile_bundle_of_rows_is_one_line(folder, tmp_path, change, message):
    shutil.copytree(folder, tmp_path / "copy")
    described(tmp_path / "copy", change)
    with pytest.raises(DataError, match=message) as caught:
        deploy.load(tmp_path / "copy")
    assert "\n" not in str(caught.value)


def test_the_commands_take_files_and_texts(tmp_path, capsys):
    deploy.Classifier(made()).save(tmp_path / "run" / "model")
    lines = ["message\ttopic", "lost card\tcard", "card eaten\tcard", "send money\tmoney"]
    (tmp_path / "rows.tsv").write_text("\n".join(lines) + "\n")
    (tmp_path / "new.jsonl").write_text('{"message": "lost card"}\n{"message": "money"}\n')
    run, rows, desk = (str(tmp_path / name) for name in ("run", "rows.tsv", "desk"))
    assert main(["learn", run, rows, f"--save={desk}"]) == 0
    assert "learned 2 classes: card (2), money (1)" in capsys.readouterr().out
    assert main(["predict", desk, str(tmp_path / "new.jsonl"), "eaten card", "--json"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    expected = deploy.load(desk).predict(["lost card", "money", "eaten card"])
    assert [answer["label"] for answer in answers] == [each.label for each in expected]
    new = tmp_path / "new.jsonl"
    assert [answer["row"] for answer in answers] == [f"{new}:1", f"{new}:2", "eaten card"]
    assert main(["predict", desk, "eaten card"]) == 0
    assert capsys.readouterr().out.startswith("eaten card  card  0.")
    assert main(["evaluate", desk, rows]) == 0
    assert "accuracy  100.00% +- 0.00 over 3 rows" in capsys.readouterr().out
    assert main(["explain", desk, "eaten card", f"--save={tmp_path / 'why.html'}"]) == 0
    assert "card, example 2  card eaten" in capsys.readouterr().out
    assert main(["info", desk]) == 0
    assert "texts in 'message'" in capsys.readouterr().out
    assert main(["learn", run, rows, "--label=tpoic", f"--save={desk}"]) == 1
    assert "did you mean 'topic'" in capsys.readouterr().err
