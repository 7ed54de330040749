"""What is compared: the cases, and the parameters and tasks that every peer is given.

Nothing here needs more than numpy, and all of it is a function of the case alone: peers of any framework
start from the same numbers, so `python -m benchmarks.compare --check` may compare their gradients.
"""

from typing import Any, NamedTuple, Protocol

import numpy as np

OUTER_LR = 1e-3  # of Adam
INNER_LR = {"conv": 0.4, "transformer": 1e-3}  # of SGD; of Adam
NORM_EPSILON = {"conv": 1e-3, "transformer": 1e-5}
BLOCKS = 4  # of conv4
WIDTH, HEADS, LAYERS, HIDDEN = 64, 4, 2, 256  # of the transformer


class Case(NamedTuple):
    """A meta-step to be timed.

    Attributes:
      name: what `--cases` calls it.
      kind: "maml", "anil" or "supervised" (prototypical networks) of conv4; "transformer".
      filters: channels of each block of conv4; None where there are none.
      shape: of an example, [H, W, C] or [length, D].
      inner_steps: steps of the inner loop.
      tasks: T.
      adapts: what moves in the inner loop: "everything", "head" or "nothing".
      ways: N.
      shots: K, support examples a class.
      queries: Q, query examples a class.
    """

    name: str
    kind: str
    filters: int | None
    shape: tuple[int, ...]
    inner_steps: int
    tasks: int
    adapts: str
    ways: int = 5
    shots: int = 1
    queries: int = 15

    @property
    def network(self) -> str:
        """The key of this case in INNER_LR and NORM_EPSILON."""
        return "transformer" if self.kind == "transformer" else "conv"

    def describe(self) -> str:
        """Says in one line what a meta-step of this case is."""
        net = f"conv4-{self.filters}" if self.filters else f"transformer {LAYERS}x{WIDTH}"
        inner = {"everything": "all adapts", "head": "the head adapts", "nothing": "no inner loop"}
        steps = f", {self.inner_steps} steps" if self.inner_steps else ""
        return (
            f"{self.kind}: {net} on {'x'.join(map(str, self.shape))}, {inner[self.adapts]}{steps}, "
            f"{self.ways}-way {self.shots}-shot, {self.queries} queries a class, {self.tasks} tasks"
        )


class Tasks(NamedTuple):
    """Tasks in numpy: inputs [T, B, ...] float32 and class labels [B] int32, the same in all of them."""

    support: np.ndarray
    support_labels: np.ndarray
    query: np.ndarray
    query_labels: np.ndarray


class Peer(Protocol):
    """One implementation of one case, on one machine."""

    device: str

    def prepare(self) -> float:
        """Compiles what there is to compile; returns the seconds it took."""

    def steps(self, count: int) -> None:
        """Takes meta-steps and waits for the last to be done."""

    def check(self) -> tuple[float, float]:
        """The mean query loss and the norm of the meta-gradient, at the initial parameters."""

    def device_bytes(self) -> int:
        """The most device memory used so far; 0 where it is the process's own."""

    def program_bytes(self) -> int | None:
        """What the prepared meta-step holds while it runs, its arguments included; None if not compiled."""


CASES = {
    case.name: case
    for case in (
        Case("maml_1", "maml", 64, (28, 28, 1), 1, 16, "everything"),
        Case("maml_5", "maml", 64, (28, 28, 1), 5, 16, "everything"),
        Case("maml_84", "maml", 32, (84, 84, 3), 5, 4, "everything"),
        Case("anil_5", "anil", 64, (28, 28, 1), 5, 16, "head"),
        Case("supervised", "supervised", 64, (28, 28, 1), 0, 16, "nothing"),
        # As prototypical networks are trained.
        Case("protonet_60", "supervised", 64, (28, 28, 1), 0, 2, "nothing", ways=60, queries=5),
        # A class has five examples, lest the batches be too small to be worth a measurement.
        Case("transformer_adam", "transformer", None, (32, 16), 8, 4, "everything", shots=5),
    )
}


def make_tasks(case: Case) -> Tasks:
    """Makes the tasks of a case: a pattern a class, and noise on every example."""
    rng = np.random.default_rng(1)
    patterns = rng.standard_normal((case.tasks, case.ways, *case.shape))

    def examples(count):
        clean = np.repeat(patterns, count, axis=1)
        return (clean + 0.5 * rng.standard_normal(clean.shape)).astype(np.float32)

    def labels(count):
        return np.repeat(np.arange(case.ways, dtype=np.int32), count)

    support, query = examples(case.shots), examples(case.queries)
    return Tasks(support, labels(case.shots), query, labels(case.queries))


def make_parameters(case: Case) -> dict[str, Any]:
    """Makes the parameters that every peer starts from, as nested dictionaries of float32 arrays.

    Kernels are [h, w, C, filters] and [inputs, outputs]; the head of conv4 reads positions in the order
    (H, W, C). No bias is zero and no scale one, or a mistaken layout could pass the check.
    """
    rng = np.random.default_rng(0)
    parameters = _transformer(case, rng) if case.kind == "transformer" else _conv4(case, rng)
    return _map(lambda array: array.astype(np.float32), parameters)


def final_side(case: Case) -> int:
    """Height and width that conv4 leaves after its four poolings."""
    return case.shape[0] // 2**BLOCKS


def _conv4(case: Case, rng: np.random.Generator) -> dict[str, Any]:
    parameters, channels = {}, case.shape[-1]
    for index in range(BLOCKS):
        shape = (3, 3, channels, case.filters)
        kernel = rng.standard_normal(shape) * np.sqrt(2 / (9 * channels))
        parameters[f"conv{index}"] = {"kernel": kernel}
        parameters[f"norm{index}"] = _norm(rng, case.filters)
        channels = case.filters
    if case.kind != "supervised":
        parameters["head"] = _dense(rng, final_side(case) ** 2 * channels, case.ways)
    return parameters


def _transformer(case: Case, rng: np.random.Generator) -> dict[str, Any]:
    length, features = case.shape
    blocks = {
        f"block{index}": {
            "attention_norm": _norm(rng, WIDTH),
            "qkv": _dense(rng, WIDTH, 3 * WIDTH),
            "out": _dense(rng, WIDTH, WIDTH),
            "mlp_norm": _norm(rng, WIDTH),
            "up": _dense(rng, WIDTH, HIDDEN),
            "down": _dense(rng, HIDDEN, WIDTH),
        }
        for index in range(LAYERS)
    }
    return {
        "embed": _dense(rng, features, WIDTH),
        "positions": 0.1 * rng.standard_normal((length, WIDTH)),
        **blocks,
        "norm": _norm(rng, WIDTH),
        "head": _dense(rng, WIDTH, case.ways),
    }


def _dense(rng: np.random.Generator, inputs: int, outputs: int) -> dict[str, np.ndarray]:
    kernel = rng.standard_normal((inputs, outputs)) / np.sqrt(inputs)
    return {"kernel": kernel, "bias": 0.1 * rng.standard_normal(outputs)}


def _norm(rng: np.random.Generator, channels: int) -> dict[str, np.ndarray]:
    scale = 1 + 0.1 * rng.standard_normal(channels)
    return {"scale": scale, "bias": 0.1 * rng.standard_normal(channels)}


def _map(function, tree):
    if isinstance(tree, dict):
        return {name: _map(function, branch) for name, branch in tree.items()}
    return function(tree)
