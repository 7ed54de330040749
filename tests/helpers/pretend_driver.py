"""A pretended driver for tests of searches: a process that validates, stops and resumes as a run does.

Its score is an error that depends on --inner_lr, (log10 inner_lr)^2 + 1 / step on average. It takes
$PRETEND_PAUSE seconds a step where --inner_lr is below 1, fails if it is above 1.5, and records its starts.
"""

import json
import math
import os
import signal
import sys
import time
from pathlib import Path

EPISODES = 8


def main() -> int:
    """Runs on the command line's flags; returns the exit status."""
    flags = dict(flag.removeprefix("--").partition("=")[::2] for flag in sys.argv[1:])
    folder, rate = Path(flags["workdir"]), float(flags.get("inner_lr", 0.1))
    steps, every = int(flags["steps"]), int(flags.get("eval_every", 1))
    stopping: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: stopping.append(number))
    with (folder / "starts.txt").open("a") as file:
        file.write(f"{os.getpid()}\n")
    if flags.get("shots") == "7":
        print("error: shots=7 are more than there are; use fewer.", file=sys.stderr)
        return 2
    facts = {"score": "mse", "higher_is_better": False, "valid_episodes": EPISODES}
    facts["episodes_sha256"] = flags.get("queries", "")
    write(folder / "validation.json", facts)
    if rate > 1.5:
        print("error: The loss or its gradient is not finite at step 1.", file=sys.stderr)
        return 1
    table = folder / "metrics.csv"
    if not table.exists():
        table.write_text("step,split,mse\n")
    begun = len(table.read_text().splitlines()) - 1
    for i in range(begun, steps // every):
        step = (i + 1) * every
        time.sleep(float(os.environ.get("PRETEND_PAUSE", 0)) if rate < 1 else 0)
        if stopping:
            return 130
        with table.open("a") as file:
            file.write(f"{step},valid,{math.log10(rate) ** 2 + 1 / step}\n")
    seed, error = int(flags.get("seed", 0)), math.log10(rate) ** 2 + 1 / steps
    scores = [error + 0.1 * (i % 2) - 0.05 for i in range(EPISODES)]
    lines = ["episode,mse", *(f"{i},{score!r}" for i, score in enumerate(scores))]
    kind = "valid" if "skip_test" in flags else "test"
    (folder / f"{kind}_scores.csv").write_text("\n".join(lines) + "\n")
    found = {**facts, "best_valid_mse": error, "ci95": 0.01, "steps": steps, "seed": seed}
    if kind == "valid":
        write(folder / "validation.json", found)
    else:
        tested = {"test_mse": error + seed, "ci95": 0.02, "episodes": EPISODES}
        write(folder / "result.json", {**tested, "best_valid_mse": error, "seed": seed})
    return 0


def write(path: Path, facts: dict) -> None:
    """Writes JSON whole."""
    partial = path.with_suffix(".tmp")
    partial.write_text(json.dumps(facts))
    partial.replace(path)


if __name__ == "__main__":
    sys.exit(main())
