"""Recipes by name, which users of an installed wheel have no path of."""

import pytest

from experiments.flags.settings import UsageError
from experiments.runtime.recipes import RECIPES, with_recipes

NAME = "omniglot_5way_1shot_maml"


@pytest.mark.parametrize(
    "value", [NAME, f"{NAME}.flags", f"experiments/recipes/{NAME}.flags", f"elsewhere/{NAME}"]
)
def test_a_recipe_is_found_by_its_name_from_any_folder(value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = str(RECIPES / f"{NAME}.flags")
    assert with_recipes(["driver", f"--flagfile={value}", "--ways=3"]) == [
        "driver",
        f"--flagfile={path}",
        "--ways=3",
    ]
    assert with_recipes(["driver", "--flagfile", value]) == ["driver", f"--flagfile={path}"]


def test_a_file_comes_before_a_recipe_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME).write_text("--ways=3\n")
    assert with_recipes(["driver", f"--flagfile={NAME}"]) == ["driver", f"--flagfile={NAME}"]


def test_a_file_may_name_a_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = str(RECIPES / f"{NAME}.flags")
    (tmp_path / "mine.flags").write_text(f"# mine\n--ways=3\n\n--flagfile={NAME}\n--seed=7\n")
    (tmp_path / "outer.flags").write_text("--flagfile=mine.flags\n--steps=2\n")
    mine = ["--ways=3", f"--flagfile={path}", "--seed=7"]
    assert with_recipes(["driver", "--flagfile=mine.flags", "--shots=2"]) == [
        "driver",
        *mine,
        "--shots=2",
    ]
    assert with_recipes(["driver", "--flagfile=outer.flags"]) == ["driver", *mine, "--steps=2"]
    (tmp_path / "wrong.flags").write_text("--flagfile=omniglot_5way_1shot_mamll\n")
    with pytest.raises(UsageError, match=f"did you mean {NAME}"):
        with_recipes(["driver", "--flagfile=wrong.flags"])


def test_a_circle_of_files_is_left_to_the_reader_of_flags(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.flags").write_text("--flagfile=b.flags\n")
    (tmp_path / "b.flags").write_text("--flagfile=a.flags\n")
    assert with_recipes(["driver", "--flagfile=a.flags"]) == ["driver", "--flagfile=a.flags"]


def test_recipes_in_folders_have_names_of_their_own():
    names = [path.stem for path in RECIPES.rglob("*.flags")]
    assert len(set(names)) == len(names)
    assert with_recipes(["driver", "--flagfile=navigation_promp"])[1].endswith(
        "rl/navigation_promp.flags"
    )


def test_an_unknown_name_is_told_with_the_nearest():
    with pytest.raises(UsageError, match="neither a file nor a recipe; did you mean mdp_10_rl2"):
        with_recipes(["driver", "--flagfile=mdp_10_rl"])
    with pytest.raises(UsageError, match="recipes are in"):
        with_recipes(["driver", "--flagfile=zzz"])
