"""The page: its files, and, where there is a browser, its answers without a network."""

import base64
import io
import json
import os
import tarfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.browser import browsing, served
from metajax import deploy
from metajax.data.files.npm import read_npm
from metajax.deploy.pages import write_pages
from metajax.errors import DataError

SHAPE = (28, 28, 1)
FILES = {
    "package.json": json.dumps({"name": "onnxruntime-web", "version": "1.2.3"}).encode(),
    "dist/ort.wasm.bundle.min.mjs": b"export {}",
    "dist/ort-wasm-simd-threaded.wasm": b"\0asm",
}
# Archive of onnxruntime-web, as `npm pack onnxruntime-web` fetches it.
RUNTIME = os.environ.get("METAJAX_ONNXRUNTIME_WEB")


def archive(path, files):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def made(network="conv4_stride", learner="protonet"):
    options = {"filters": 16, "norm": "group"}
    spec = deploy.LearnerSpec(learner, network, 3, 6, network_options=options)
    meta = jax.jit(deploy.make_learner_of(spec).init)(jax.random.key(0), jnp.zeros((2, *SHAPE)))
    return deploy.Classifier(deploy.Bundle(spec, deploy.ImageForm(SHAPE, (0.1,), (0.3,)), meta))


def test_packages_of_npm_are_read_from_archives_and_folders(tmp_path):
    names = list(FILES)[1:]
    packed = archive(tmp_path / "a.tgz", FILES)
    for name, content in FILES.items():
        (tmp_path / "b" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "b" / name).write_bytes(content)
    for path in (packed, tmp_path / "b"):
        version, found = read_npm(path, "onnxruntime-web", names)
        assert version == "1.2.3" and found == {name: FILES[name] for name in names}
    with pytest.raises(DataError, match=r"is the package onnxruntime-web; give other"):
        read_npm(packed, "other", names)
    for path in (archive(tmp_path / "c.tgz", {**FILES, names[0]: b"x"}), tmp_path / "b"):
        with pytest.raises(DataError, match=r"has no file dist/nothing"):
            read_npm(path, "onnxruntime-web", ["dist/nothing"])
    (tmp_path / "d.tgz").write_bytes(b"hello")
    with pytest.raises(DataError, match="neither a folder nor an archive"):
        read_npm(tmp_path / "d.tgz", "onnxruntime-web", names)


def test_a_folder_has_the_page_the_programs_and_the_classes_so_far(tmp_path):
    pytest.importorskip("onnx")
    shades = {"dark": [np.full(SHAPE, 9, np.uint8)], "light": [np.full(SHAPE, 60, np.uint8)] * 2}
    model = made().learn(shades)
    packed = archive(tmp_path / "a.tgz", FILES)
    page = write_pages(model, tmp_path / "page", runtime=packed, ways=4)
    files = {path.name: path.read_bytes() for path in page.folder.iterdir()}
    assert page.size == sum(map(len, files.values())) and page.version == "1.2.3"
    facts = json.loads(files["model.json"])
    assert facts["parts"] == ["adapt", "predict", "features"]
    assert (facts["ways"], facts["dark_background"]) == (4, True)
    assert [(one["label"], len(one["pictures"])) for one in facts["examples"]] == [
        ("dark", 1),
        ("light", 2),
    ]
    # Nothing of the page comes from elsewhere.
    assert b"http:" not in files["index.html"] and b"https:" not in files["index.html"]
    with pytest.raises(DataError, match="2 classes are learned; use --ways=2 or more"):
        write_pages(model, tmp_path / "page", runtime=packed, ways=1)
    with pytest.raises(DataError, match="fetch it once by `npm pack onnxruntime-web`"):
        write_pages(model, tmp_path / "page", runtime=None)


@pytest.mark.skipif(
    not RUNTIME, reason="METAJAX_ONNXRUNTIME_WEB names no archive of onnxruntime-web"
)
def test_a_browser_without_network_learns_drawings_and_answers_as_the_classifier(tmp_path):
    pytest.importorskip("onnx")
    folder = write_pages(made(), tmp_path / "page", runtime=RUNTIME).folder
    strokes = [[(0.5, 0.1), (0.5, 0.9)], [(0.1, 0.5), (0.9, 0.5)]]
    with served(folder) as (address, asked), browsing(address, tmp_path / "profile") as browser:
        browser.send(
            "Emulation.setDeviceMetricsOverride",
            width=360,
            height=740,
            deviceScaleFactor=2,
            mobile=True,
        )
        browser.wait("window.page && window.page.ready")
        assert browser.run("document.documentElement.scrollWidth") <= 360
        for number, line in enumerate(strokes):
            for shift in (0, 0.08):
                card = f"document.querySelectorAll('#classes .card')[{number}]"
                browser.draw(
                    f"{card}.querySelector('canvas')", [(x + shift, y + shift) for x, y in line]
                )
                browser.run(f"{card}.querySelector('button').click()")
        browser.run("document.getElementById('learn').click()")
        browser.wait("document.getElementById('state').textContent.startsWith('Learned 2 classes')")
        browser.draw("document.querySelector('#query canvas')", [(0.45, 0.15), (0.45, 0.85)])
        browser.run("document.querySelector('#query button').click()")
        found = browser.wait(
            "window.page.last && (({pixels, ...rest}) => ({...rest, pixels: [...pixels], examples: "
            "window.page.classes.map(c => c.pictures.map(p => [...p]))}))(window.page.last)"
        )
        text = browser.run("document.getElementById('answer').innerText")
        if picture := os.environ.get("METAJAX_SCREENSHOT"):
            shot = browser.send("Page.captureScreenshot", captureBeyondViewport=True)
            Path(picture).write_bytes(base64.b64decode(shot["data"]))
    shots = {
        name: [np.array(p, np.uint8).reshape(SHAPE) for p in pictures]
        for name, pictures in zip(found["names"], found["examples"], strict=True)
    }
    query = np.array(found["pixels"], np.uint8).reshape(SHAPE)
    assert all(p.max() > 100 and p.min() == 0 for pictures in shots.values() for p in pictures)
    model = made().learn(shots)
    np.testing.assert_allclose(found["probabilities"], model.answer(query[None])[0], atol=1e-4)
    assert found["best"] == 0 and found["distances"][0] < found["distances"][1]
    reasons = model.explain(query)
    assert found["influence"]["value"] == pytest.approx(reasons.examples[0].influence, abs=1e-4)
    assert "class 1" in text and "Most influential" in text
    assert all(line.startswith("GET /") for line in asked)
