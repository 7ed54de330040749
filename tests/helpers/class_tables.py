"""Tables of classes on disk for the driver of few-shot classification."""

import csv
import random

TOPICS, ROWS, UNKNOWN = 12, 9, 8
COMMON = ("please", "my", "the", "help", "now", "it")


def write_tickets(path):
    """Writes messages of twelve topics, which have words of their own; returns the path.

    Rows of the topic `oos` have common words alone. Every topic is in each of three shops.
    """
    rng = random.Random(0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["message", "topic", "shop", "age", "color", "smiles"])
        for topic in range(TOPICS):
            own = [f"word{topic}x{number}" for number in range(5)]
            for row in range(ROWS):
                text = [*rng.sample(own, 2), *rng.sample(COMMON, 3)]
                fields = [f"topic{topic}", f"shop{row % 3}", 3 * topic + rng.randint(0, 5)]
                smiles = "C" * (topic + 1) + "O" * (row % 3)
                writer.writerow([" ".join(text), *fields, rng.choice("rgb"), smiles])
        for _ in range(UNKNOWN):
            writer.writerow([" ".join(rng.sample(COMMON, 4)), "oos", "shop0", 1, "r", "C"])
    return path


def write_languages(folder, languages=("en", "de", "da", "lt")):
    """Writes files of the layout of xSID, whose sentences name language and file; returns the folder."""
    for language in languages:
        for file in ("valid", "test"):
            blocks = [
                f"# text: {language} {file} intent{intent} word{row}\n# intent: intent{intent}\n1\tx\n"
                for intent in range(4)
                for row in range(5)
            ]
            (folder / f"{language}.{file}.conll").write_text("\n".join(blocks))
    return folder
