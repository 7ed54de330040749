"""The cases to compare, with the parameters and tasks that every peer receives.

This module needs numpy alone, and everything is a function of the case: peers of any framework start from
the same numbers, so that `python -m benchmarks.compare --check` can compare their gradients.
"""

from typing import Any, NamedTuple, Protocol

import numpy as np

OUTER_LR = 1e-3  # step size of Adam
INNER_LR = {"conv": 0.4, "transformer": 1e-3}  # step sizes of SGD and of Adam
NORM_EPSILON = {"conv": 1e-3, "transformer": 1e-5}
BLOCKS = 4  # blocks of conv4
WIDTH, HEADS, LAYERS, HIDDEN = 64, 4, 2, 256  # sizes of the transformer


class Case(NamedTuple):
    """A meta-step to measure.

    Attributes:
      name: Name in `--cases`.
      kind: Algorithm, "maml", "anil" or "supervised" (prototypical networks) on conv4, or "transformer".
      filters: Channels of each block of conv4; None for other networks.
      shape: Shape of an example, [H, W, C] or [L, D].
      inner_steps: Number of steps of the inner loop.
      tasks: Number of tasks T.
      adapts: Parameters that the inner loop adapts: "everything", "head" or "nothing".
      ways: Number of classes N.
      shots: Support examples K per class.
      queries: Query examples Q per class.
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
        """Key of the case's network in INNER_LR and NORM_EPSILON."""
        return "transformer" if self.kind == "transformer" else "conv"

    def describe(self) -> str:
        """Describes a meta-step of this case in one line.

        Returns:
          A text such as "maml: conv4-64 on 28x28x1, all adapts, 1 steps, 5-way 1-shot, ...".
        """
        net = f"conv4-{self.filters}" if self.filters else f"transformer {LAYERS}x{WIDTH}"
        inner = {"everything": "all adapts", "head": "the head adapts", "nothing": "no inner loop"}
        steps = f", {self.inner_steps} steps" if self.inner_steps else ""
        return (
            f"{self.kind}: {net} on {'x'.join(map(str, self.shape))}, {inner[self.adapts]}{steps}, "
            f"{self.ways}-way {self.shots}-shot, {self.queries} queries per class, {self.tasks} tasks"
        )


class Tasks(NamedTuple):
    """Tasks in numpy.

    Attributes:
      support: Support inputs [T, N K, ...], float32.
      support_labels: Labels [N K], int32, the same in all tasks.
      query: Query inputs [T, N Q, ...], float32.
      query_labels: Labels [N Q], int32, the same in all tasks.
    """

    support: np.ndarray
    support_labels: np.ndarray
    query: np.ndarray
    query_labels: np.ndarray


class Peer(Protocol):
    """An implementation of a case on this machine.

    Attributes:
      device: Kind of device: "cpu", or the name of the GPU.
    """

    device: str

    def prepare(self) -> float:
        """Compiles the meta-step, if the peer compiles at all.

        Returns:
          Seconds.
        """

    def steps(self, count: int) -> None:
        """Takes meta-steps, and waits until the last is done.

        Args:
          count: Number of meta-steps.
        """

    def check(self) -> tuple[float, float]:
        """Computes loss and meta-gradient at the initial parameters.

        Returns:
          The mean query loss, and the norm of the meta-gradient.
        """

    def device_bytes(self) -> int:
        """Measures the peak memory of the device so far.

        Returns:
          Bytes; 0 if the device uses the process's memory.
        """

    def program_bytes(self) -> int | None:
        """Computes the memory that the prepared meta-step holds while it runs, arguments included.

        Returns:
          Bytes; None if it is not compiled.
        """


CASES = {
    case.name: case
    for case in (
        Case("maml_1", "maml", 64, (28, 28, 1), 1, 16, "everything"),
        Case("maml_5", "maml", 64, (28, 28, 1), 5, 16, "everything"),
        Case("maml_84", "maml", 32, (84, 84, 3), 5, 4, "everything"),
        Case("anil_5", "anil", 64, (28, 28, 1), 5, 16, "head"),
        Case("supervised", "supervised", 64, (28, 28, 1), 0, 16, "nothing"),
        # Prototypical networks are trained with 60 ways.
        Case("protonet_60", "supervised", 64, (28, 28, 1), 0, 2, "nothing", ways=60, queries=5),
        # Five shots, because smaller batches would measure overheads rather than the network.
        Case("transformer_adam", "transformer", None, (32, 16), 8, 4, "everything", shots=5),
    )
}


def make_tasks(case: Case) -> Tasks:
    """Draws the tasks of a case: a pattern per class, and noise on every example.

    Args:
      case: Case.

    Returns:
      The tasks.
    """
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
    """Draws the parameters that every peer starts from.

    Kernels are [h, w, C, filters] and [inputs, outputs]; the head of conv4 reads positions in the order
    (H, W, C). No bias is zero and no scale one, so that the check finds a mistaken layout.

    Args:
      case: Case.

    Returns:
      Nested dictionaries of float32 arrays.
    """
    rng = np.random.default_rng(0)
    parameters = _transformer(case, rng) if case.kind == "transformer" else _conv4(case, rng)
    return _map(lambda array: array.astype(np.float32), parameters)


def final_side(case: Case) -> int:
    """Computes the height and width of conv4's features, after four poolings.

    Args:
      case: Case with images.

    Returns:
      Number of positions along a side.
    """
    return case.shape[0] // 2**BLOCKS


def _conv4(case: Case, rng: np.random.Generator) -> dict[str, Any]:
    """Draws the parameters of conv4."""
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
    """Draws the parameters of the transformer."""
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
    """Draws a kernel and a bias."""
    kernel = rng.standard_normal((inputs, outputs)) / np.sqrt(inputs)
    return {"kernel": kernel, "bias": 0.1 * rng.standard_normal(outputs)}


def _norm(rng: np.random.Generator, channels: int) -> dict[str, np.ndarray]:
    """Draws the scale and bias of a norm layer."""
    scale = 1 + 0.1 * rng.standard_normal(channels)
    return {"scale": scale, "bias": 0.1 * rng.standard_normal(channels)}


def _map(function, tree):
    """Applies a function to the leaves of nested dictionaries."""
    if isinstance(tree, dict):
        return {name: _map(function, branch) for name, branch in tree.items()}
    return function(tree)
