"""Measures a trained learner on symbols of unseen alphabets, each picture answered alone, and its times.

    python -m benchmarks.symbols --data_dir=DIR [--model=glyphs] [--tasks=20] [--runs=FOLDER]
    python -m metajax evaluate glyphs FOLDER

Tasks have five characters of Omniglot's evaluation alphabets, one or five examples and fifteen questions of
each. The runs of `--runs` are of the kind of Lake's one-shot classification: twenty characters of one
alphabet with one example and one question each. They are drawn here, as his own are no part of the data set.
The times are of a new process, from its start to the answers: load, learn five classes of five pictures,
predict fifteen; and of further sessions in that process. `--tasks=0` measures the times alone.
"""

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

import metajax
from metajax import data
from metajax.data import LabelledImages
from metajax.deploy import Classifier, evaluate_runs

WAYS, QUESTIONS, RUN_WAYS, RUNS = 5, 15, 20, 20
_PROCESS = """
import sys, time
import numpy as np
import metajax

def session(model, seed):
    random = np.random.default_rng(seed)
    pictures = lambda count: list(random.integers(0, 256, (count, 40, 40), dtype=np.uint8))
    learned = model.learn({str(label): pictures(5) for label in range(5)})
    return learned.predict(pictures(15))

model = metajax.load(sys.argv[1])
session(model, 0)
print(time.time())
for seed in range(1, 6):
    begin = time.perf_counter()
    session(model, seed)
    print(time.perf_counter() - begin)
"""


def draw_tasks(
    images: LabelledImages, *, shots: int, tasks: int, seed: int
) -> list[tuple[dict[str, list[np.ndarray]], list[tuple[str, np.ndarray]]]]:
    """Draws tasks of characters.

    Args:
      images: Images of the characters.
      shots: Number of examples of each class.
      tasks: Number of tasks.
      seed: Seed of the choice.

    Returns:
      Pairs of examples by name and questions with their names, one per task.
    """
    random, found = np.random.default_rng(seed), []
    for _ in range(tasks):
        examples, questions = {}, []
        for place in random.choice(len(images.names), WAYS, replace=False):
            name, drawn = images.names[place], images.select([int(place)]).images
            drawn = drawn[random.permutation(len(drawn))]
            examples[name] = list(drawn[:shots])
            questions += [(name, picture) for picture in drawn[shots : shots + QUESTIONS]]
        found.append((examples, questions))
    return found


def accuracies(
    model: Classifier, images: LabelledImages, *, shots: int, tasks: int, seed: int
) -> np.ndarray:
    """Answers the questions of tasks, each by itself.

    Args:
      model: Trained learner.
      images: Images of the characters, in the form of its files.
      shots: Number of examples of each class.
      tasks: Number of tasks.
      seed: Seed of the tasks.

    Returns:
      Share of right answers of each task.
    """
    shares = []
    for examples, questions in draw_tasks(images, shots=shots, tasks=tasks, seed=seed):
        learned = model.learn(examples)
        right = [learned.predict([picture])[0].label == name for name, picture in questions]
        shares.append(np.mean(right))
    return np.asarray(shares)


def write_runs(images: LabelledImages, folder: Path, *, seed: int) -> Path:
    """Writes runs of one-shot classification in Lake's layout.

    Args:
      images: Images of the characters, in the form of files.
      folder: Folder to write.
      seed: Seed of the characters.

    Returns:
      The folder.
    """
    random, alphabets = np.random.default_rng(seed), sorted(set(images.groups))
    members = {a: [i for i, g in enumerate(images.groups) if g == a] for a in alphabets}
    large = [alphabet for alphabet in alphabets if len(members[alphabet]) >= RUN_WAYS]
    for number in range(RUNS):
        run = folder / f"run{number + 1:02}"
        for part in ("training", "test"):
            (run / part).mkdir(parents=True, exist_ok=True)
        chosen = random.choice(members[large[number % len(large)]], RUN_WAYS, replace=False)
        lines = []
        for item, place in enumerate(random.permutation(RUN_WAYS), 1):
            drawn = images.select([int(chosen[place])]).images[..., 0]
            example, question = drawn[random.choice(len(drawn), 2, replace=False)]
            names = (
                f"{run.name}/test/item{item:02}.png",
                f"{run.name}/training/class{place + 1:02}.png",
            )
            for name, pixels in zip(names, (question, example), strict=True):
                Image.fromarray(pixels).save(folder / name)
            lines.append(" ".join(names))
        (run / "class_labels.txt").write_text("\n".join(lines) + "\n")
    return folder


def times(model: str) -> tuple[float, float, list[float]]:
    """Measures a new process.

    Args:
      model: Name or path of the trained learner.

    Returns:
      Seconds from the start of the process to its first answers, seconds of computing in the whole process,
      and seconds of each further session.
    """
    begin, before = time.time(), _computed()
    command = [sys.executable, "-c", _PROCESS, model]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    first, *others = map(float, said)
    return first - begin, _computed() - before, others


def _computed() -> float:
    """Returns the seconds that processes of this one have computed."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the measurements.

    Args:
      argv: Arguments; None is the command line.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data_dir", help="folder of TFDS data sets, with Omniglot")
    parser.add_argument("--model", default="glyphs", help="name or path of a trained learner")
    parser.add_argument("--tasks", type=int, default=20, help="number of tasks")
    parser.add_argument("--runs", type=Path, help="folder to write runs of one-shot classification")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    if options.tasks or options.runs:
        model = metajax.load(options.model)
        invert = "no" if model.bundle.images.invert else "yes"
        # As in the files, or in the form of the training where that is not turned over.
        images = data.load("symbols", data_dir=options.data_dir, invert=invert).test
        for shots in (1, 5) if options.tasks else ():
            found = accuracies(model, images, shots=shots, tasks=options.tasks, seed=options.seed)
            mean, ci95 = metajax.confidence_interval(found)
            print(
                f"{WAYS}-way {shots}-shot, one by one: {mean:.2%} +- {100 * ci95:.2f} over {len(found)} tasks"
            )
    if options.runs:
        found = evaluate_runs(model, write_runs(images, options.runs, seed=options.seed))
        print(
            f"{RUN_WAYS}-way one-shot within alphabets: {found.accuracy:.2%} +- {100 * found.ci95:.2f} over "
            f"{len(found.by_run)} runs"
        )
    cold, computed, warm = times(options.model)
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    print(
        f"load, learn 5 x 5, predict 15: {cold:.2f} s in a new process, then {1000 * np.median(warm):.0f} ms"
        f"; {computed:.2f} s of computing in all; load average {load} on {os.cpu_count()} cores"
    )


if __name__ == "__main__":
    main()
