"""The peer higher on PyTorch: a loop over tasks, each differentiated through its inner loop.

On a GPU matrix products may use TF32, as JAX's do by default; `check` turns that off.
"""

from typing import Any

import higher
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.harness import cases
from experiments.runtime.devices import cores


def make(case: cases.Case) -> "HigherPeer":
    """Makes the peer, on a GPU if there is one.

    Args:
      case: Case.

    Returns:
      The peer.
    """
    torch.set_num_threads(cores())
    return HigherPeer(case, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


class HigherPeer:
    """A case in PyTorch.

    Args:
      case: Case.
      device: Device of PyTorch.

    Attributes:
      device: Kind of device: "cpu", or the name of the GPU.
    """

    def __init__(self, case: cases.Case, device: torch.device):
        self.device = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        self._case, self._torch_device = case, device
        self._set_tf32(True)
        self._restart()
        tasks = cases.make_tasks(case)
        self._support, self._query = (self._inputs(x) for x in (tasks.support, tasks.query))
        self._labels = [
            torch.from_numpy(labels).long().to(device)
            for labels in (tasks.support_labels, tasks.query_labels)
        ]

    def prepare(self) -> float:
        """Prepares nothing: PyTorch does not compile here.

        Returns:
          0 seconds.
        """
        return 0.0

    def steps(self, count: int) -> None:
        """Takes meta-steps, and waits until the last is done.

        Args:
          count: Number of meta-steps.
        """
        for _ in range(count):
            self._gradient()
            self._outer.step()
        if self._torch_device.type == "cuda":
            torch.cuda.synchronize()

    def check(self) -> tuple[float, float]:
        """Computes loss and meta-gradient at the initial parameters, in full precision.

        Returns:
          The mean query loss, and the norm of the meta-gradient.
        """
        self._restart()
        self._set_tf32(False)
        loss = self._gradient()
        self._set_tf32(True)
        squares = sum(p.grad.double().square().sum() for p in self._net.parameters())
        return float(loss), float(squares.sqrt())

    def device_bytes(self) -> int:
        """Measures the peak memory of the GPU.

        Returns:
          Bytes; 0 on a CPU.
        """
        return torch.cuda.max_memory_allocated() if self._torch_device.type == "cuda" else 0

    def program_bytes(self) -> None:
        """Returns None: there is no compiled program."""

    def _restart(self) -> None:
        """Makes the network and optimizers anew, with the initial parameters."""
        net = Transformer(self._case) if self._case.kind == "transformer" else Conv4(self._case)
        net.load(cases.make_parameters(self._case))
        self._net = net.to(self._torch_device)
        adapted = net.head if self._case.adapts == "head" else net
        rate = cases.INNER_LR[self._case.network]
        self._outer = torch.optim.Adam(net.parameters(), cases.OUTER_LR)
        if self._case.kind == "transformer":
            self._inner = torch.optim.Adam(adapted.parameters(), rate)
        elif adapted is not None and self._case.adapts != "nothing":
            self._inner = torch.optim.SGD(adapted.parameters(), rate)

    def _gradient(self) -> torch.Tensor:
        """Accumulates the gradient of the mean loss over tasks; returns that loss."""
        task_loss = {
            "everything": self._adapt_everything,
            "head": self._adapt_head,
            "nothing": self._prototypes,
        }[self._case.adapts]
        self._outer.zero_grad()
        total = torch.zeros((), device=self._torch_device)
        for support, query in zip(self._support, self._query, strict=True):
            total += task_loss(support, query)
        return total

    def _adapt_everything(self, support: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
        """Backpropagates a task's loss through an inner loop on all parameters."""
        with self._innerloop(self._net) as (net, optimizer):
            for _ in range(self._case.inner_steps):
                optimizer.step(F.cross_entropy(net(support), self._labels[0]))
            return self._backward(net(query))

    def _adapt_head(self, support: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
        """Backpropagates a task's loss through an inner loop on the head alone."""
        features = self._net.features(support)  # once: no inner step changes them
        with self._innerloop(self._net.head) as (head, optimizer):
            for _ in range(self._case.inner_steps):
                optimizer.step(F.cross_entropy(head(features), self._labels[0]))
            return self._backward(head(self._net.features(query)))

    def _prototypes(self, support: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
        """Backpropagates a task's loss by prototypes, without an inner loop."""
        embedded = self._net.features(support)
        prototypes = embedded.reshape(self._case.ways, self._case.shots, -1).mean(1)
        differences = self._net.features(query)[:, None] - prototypes
        return self._backward(-differences.square().sum(-1))

    def _innerloop(self, module: nn.Module) -> Any:
        """Opens an inner loop that is differentiable in the initial parameters."""
        return higher.innerloop_ctx(module, self._inner, copy_initial_weights=False)

    def _backward(self, logits: torch.Tensor) -> torch.Tensor:
        """Backpropagates a task's share of the mean loss; returns that share."""
        loss = F.cross_entropy(logits, self._labels[1]) / self._case.tasks
        loss.backward()
        return loss.detach()

    def _inputs(self, inputs: np.ndarray) -> torch.Tensor:
        """Moves inputs to the device, images as [T, B, C, H, W]."""
        images = self._case.kind != "transformer"
        tensor = torch.from_numpy(np.moveaxis(inputs, -1, 2).copy() if images else inputs)
        return tensor.to(self._torch_device)

    @staticmethod
    def _set_tf32(allowed: bool) -> None:
        """Allows or forbids TF32."""
        torch.backends.cuda.matmul.allow_tf32 = allowed
        torch.backends.cudnn.allow_tf32 = allowed


class Conv4(nn.Module):
    """Four blocks of 3 x 3 convolution, batch norm, ReLU and 2 x 2 max-pool, then a linear head."""

    def __init__(self, case: cases.Case):
        super().__init__()
        layers, channels = [], case.shape[-1]
        for _ in range(cases.BLOCKS):
            layers += [
                nn.Conv2d(channels, case.filters, 3, padding=1, bias=False),
                nn.BatchNorm2d(
                    case.filters, eps=cases.NORM_EPSILON["conv"], track_running_stats=False
                ),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
            channels = case.filters
        self._side = cases.final_side(case)
        self.features = nn.Sequential(*layers, nn.Flatten())
        with_head = case.adapts != "nothing"
        self.head = nn.Linear(channels * self._side**2, case.ways) if with_head else None

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Computes logits.

        Args:
          inputs: Images [B, C, H, W].

        Returns:
          Logits [B, N].
        """
        return self.head(self.features(inputs))

    def load(self, parameters: dict[str, Any]) -> None:
        """Copies the parameters that the peers share.

        Args:
          parameters: Parameters of `cases.make_parameters`.
        """
        for index in range(cases.BLOCKS):
            conv, norm = self.features[4 * index], self.features[4 * index + 1]
            _copy(conv.weight, parameters[f"conv{index}"]["kernel"].transpose(3, 2, 0, 1))
            _load_norm(norm, parameters[f"norm{index}"])
        if self.head is not None:
            # Flattened here are (C, H, W), and (H, W, C) there.
            kernel, bias = (parameters["head"][name] for name in ("kernel", "bias"))
            side, outputs = self._side, kernel.shape[1]
            kernel = kernel.reshape(side, side, -1, outputs).transpose(2, 0, 1, 3)
            _load_dense(self.head, {"kernel": kernel.reshape(-1, outputs), "bias": bias})


class Block(nn.Module):
    """Attention, then a perceptron, each behind a layer norm and around a residual."""

    def __init__(self):
        super().__init__()
        self.attention_norm, self.mlp_norm = _layer_norm(), _layer_norm()
        self.qkv = nn.Linear(cases.WIDTH, 3 * cases.WIDTH)
        self.out = nn.Linear(cases.WIDTH, cases.WIDTH)
        self.up = nn.Linear(cases.WIDTH, cases.HIDDEN)
        self.down = nn.Linear(cases.HIDDEN, cases.WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Computes attention, then the perceptron.

        Args:
          x: Features [B, L, D].

        Returns:
          Features [B, L, D].
        """
        batch, length, width = x.shape
        # Written out: the fused attention of PyTorch has no second derivative.
        qkv = self.qkv(self.attention_norm(x)).reshape(batch, length, 3, cases.HEADS, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        scores = query @ key.transpose(-1, -2) / (width // cases.HEADS) ** 0.5
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).reshape(batch, length, width)
        x = x + self.out(mixed)
        return x + self.down(F.gelu(self.up(self.mlp_norm(x)), approximate="tanh"))


class Transformer(nn.Module):
    """The network of `benchmarks.peers.transformer`."""

    def __init__(self, case: cases.Case):
        super().__init__()
        length, features = case.shape
        self.embed = nn.Linear(features, cases.WIDTH)
        self.positions = nn.Parameter(torch.zeros(length, cases.WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(cases.LAYERS))
        self.norm = _layer_norm()
        self.head = nn.Linear(cases.WIDTH, case.ways)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Computes logits.

        Args:
          inputs: Sequences [B, L, D].

        Returns:
          Logits [B, N].
        """
        x = self.embed(inputs) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))

    def load(self, parameters: dict[str, Any]) -> None:
        """Copies the parameters that the peers share.

        Args:
          parameters: Parameters of `cases.make_parameters`.
        """
        _copy(self.positions, parameters["positions"])
        _load_dense(self.embed, parameters["embed"])
        _load_dense(self.head, parameters["head"])
        _load_norm(self.norm, parameters["norm"])
        for index, block in enumerate(self.blocks):
            for name, values in parameters[f"block{index}"].items():
                load = _load_norm if name.endswith("norm") else _load_dense
                load(getattr(block, name), values)


def _layer_norm() -> nn.LayerNorm:
    """Makes a layer norm with the peers' epsilon."""
    return nn.LayerNorm(cases.WIDTH, eps=cases.NORM_EPSILON["transformer"])


def _load_dense(layer: nn.Linear, values: dict[str, np.ndarray]) -> None:
    """Copies a kernel and a bias."""
    _copy(layer.weight, values["kernel"].T)
    _copy(layer.bias, values["bias"])


def _load_norm(layer: nn.Module, values: dict[str, np.ndarray]) -> None:
    """Copies a scale and a bias."""
    _copy(layer.weight, values["scale"])
    _copy(layer.bias, values["bias"])


def _copy(parameter: torch.Tensor, values: np.ndarray) -> None:
    """Copies values into a parameter; raises ValueError for another shape."""
    if parameter.shape != values.shape:
        raise ValueError(f"a parameter is {tuple(parameter.shape)} here and {values.shape} there")
    with torch.no_grad():
        parameter.copy_(torch.from_numpy(np.ascontiguousarray(values)))
