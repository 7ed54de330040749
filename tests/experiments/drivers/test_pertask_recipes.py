"""Recipes of users and students, on small files of the published layouts."""

import json

import numpy as np
import pytest

from experiments.pertask import driver as pertask
from experiments.pertask.options import PertaskSettings
from helpers.driver_runs import drive, unlock

RECIPES = "experiments/recipes/pertask"


def measured(recipe, folder, workdir, *flags):
    """Measures the baselines of a recipe; returns the comparison of its first size."""
    flags = [f"--flagfile={RECIPES}/{recipe}.flags", f"--data_dir={folder}", *flags]
    flags += ["--baselines_only", f"--workdir={workdir}"]
    assert drive(*flags, driver=pertask, settings_class=PertaskSettings) == 0
    unlock()
    result = json.loads((workdir / "result.json").read_text())
    return result, next(iter(result["comparison"].values()))


def test_ratings_of_movielens_are_asked_for_after_ten(tmp_path):
    # Ten users of 14 ratings: a film has the number of its stars, less one for users of even number.
    stars = {film: film % 4 + 2 for film in range(1, 15)}
    ratings = [
        f"{user}::{film}::{stars[film] - (user + 1) % 2}::{100 - film}\n"
        for user in range(1, 11)
        for film in stars
    ]
    (tmp_path / "ratings.dat").write_text("".join(ratings))
    people = "".join(f"{i}::F::25::{i}::48067\n" for i in range(1, 11))
    (tmp_path / "users.dat").write_text(people)
    films = "".join(f"{i}::Film {i} (19{i + 10})::Drama|War\n" for i in stars)
    (tmp_path / "movies.dat").write_text(films)
    baselines = "--baselines=item_bias,support_constant"
    result, found = measured("coldstart_movielens", tmp_path, tmp_path / "run", baselines)
    assert result["kind"] == "values" and result["tasks"] == {"10": 2}
    # The means of films and the offset of a user are all that made the ratings.
    assert found["item_bias"]["mae"] < 0.5 * found["support_constant"]["mae"]


def test_answers_of_students_are_measured_in_windows(tmp_path):
    rng, lines = np.random.default_rng(0), ["order_id,user_id,problem_id,skill_id,correct"]
    rights = {}
    for student in range(10):
        rights[student] = rng.integers(0, 2, 15)
        lines += [
            f"{100 * student + place},s{student},p{place},k1,{right}"
            for place, right in enumerate(rights[student].tolist())
        ]
    (tmp_path / "skill_builder_data.csv").write_text("\n".join(lines) + "\n")
    baselines = "--baselines=support_constant"
    result, found = measured("students_assist", tmp_path, tmp_path / "run", baselines)
    assert result["order"] == "first" and result["tasks"] == {"2": 2}
    task_csv = (tmp_path / "run" / "tasks.csv").read_text().splitlines()
    students = [int(line.split(",")[0][1:]) for line in task_csv[1:]]
    # The share of the first two answers; of one right, ties, the first class is predicted.
    means = [rights[s][:2].mean() > 0.5 for s in students]
    for first, last in ((3, 10), (11, 15)):
        expected = [
            (rights[s][first - 1 : last] == mean).mean()
            for s, mean in zip(students, means, strict=True)
        ]
        row = found["support_constant"]
        assert row[f"accuracy_{first}_{last}"] == pytest.approx(np.mean(expected), abs=1e-6)
