"""The command line: learn, predict, evaluate and info, and one line for what does not serve."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from metajax import deploy
from metajax.deploy.command import main

pytest.importorskip("safetensors")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    options = {"filters": 8, "norm": "group"}
    spec = deploy.LearnerSpec("protonet", "conv4_stride", 3, 6, network_options=options)
    meta = jax.jit(deploy.make_learner_of(spec).init)(jax.random.key(0), jnp.zeros((2, 8, 8, 1)))
    form = deploy.ImageForm((8, 8, 1), (0.5,), (0.25,))
    root = tmp_path_factory.mktemp("trained")
    deploy.Bundle(spec, form, meta, training={"dataset": "shades"}).save(root / "model")
    for name, shade in (("dark", 40), ("light", 220)):
        (root / "pictures" / name).mkdir(parents=True)
        for i in range(2):
            Image.fromarray(np.full((9, 9), shade + i, np.uint8)).save(
                root / "pictures" / name / f"{i}.png"
            )
    return root


def test_three_commands_learn_and_answer(trained, tmp_path, capsys):
    assert (
        main(["learn", str(trained), str(trained / "pictures"), f"--save={tmp_path / 'shades'}"])
        == 0
    )
    assert "learned 2 classes: dark (2), light (2)" in capsys.readouterr().out
    picture = str(trained / "pictures" / "light" / "0.png")
    assert main(["predict", str(tmp_path / "shades"), picture, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    model = deploy.load(trained).learn(trained / "pictures")
    assert answer["label"] == model.predict([picture])[0].label
    assert answer["probabilities"] == dict(model.predict([picture])[0].probabilities)
    assert main(["evaluate", str(tmp_path / "shades"), str(trained / "pictures")]) == 0
    assert "over 4 pictures" in capsys.readouterr().out
    assert main(["export", str(trained), "--ways=2", f"--save={tmp_path / 'p.jaxexport'}"]) == 0
    assert (tmp_path / "p.jaxexport").stat().st_size > 1000
    assert "bytes in" in capsys.readouterr().out
    page = tmp_path / "why.html"
    assert main(["explain", str(tmp_path / "shades"), picture, f"--save={page}"]) == 0
    assert page.exists() and "example 1" in capsys.readouterr().out
    assert main(["info", str(tmp_path / "shades")]) == 0
    said = capsys.readouterr().out
    assert (
        "protonet, any number of classes" in said and "'dark', 'light'" in said and "shades" in said
    )


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["predict", "nowhere", "a.png"], "nowhere is no bundle: it has no model.json"),
        (["predict", "MODEL", "missing.png"], "missing.png is not a readable image"),
        (["learn", "MODEL", "nowhere", "--save=x"], "nowhere does not exist or is not a folder"),
        (["evaluate", "MODEL", "PICTURES"], "were not learned"),
        (["serve", "MODEL", "--port=99999"], "port is 99999; use one up to 65535"),
        (["serve", "MODEL", "--most_sessions=0"], "sessions is 0; use a number above 0"),
        (["pages", "MODEL", "--save=x"], "fetch it once by `npm pack onnxruntime-web`"),
        (["pages", "MODEL", "--save=x", "--runtime=nowhere"], "nowhere is neither a folder nor"),
    ],
)
def test_what_does_not_serve_is_one_line(trained, capsys, command, message):
    names = {"MODEL": str(trained), "PICTURES": str(trained / "pictures")}
    assert main([names.get(word, word) for word in command]) == 1
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and said.startswith("error: ")


def test_wrong_words_end_with_status_2(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["lern", "x"])
    assert ended.value.code == 2
    assert "invalid choice" in capsys.readouterr().err


def test_a_part_is_exported_as_onnx(trained, tmp_path, capsys):
    onnx = pytest.importorskip("onnx")
    file = tmp_path / "adapt.onnx"
    words = ["export", str(trained), "--format=onnx", "--part=adapt", f"--save={file}"]
    assert main(words) == 0
    assert f"{file.stat().st_size:,} bytes in {file}" in capsys.readouterr().out
    names = [value.name for value in onnx.load(file).graph.output]
    assert names == ["state0", "state1", "present"]
