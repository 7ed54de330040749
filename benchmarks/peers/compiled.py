"""The compiled meta-step that peers in JAX share, around their meta-gradients."""

import time
from collections.abc import Callable
from typing import Any

import jax
import optax

from benchmarks.harness import cases
from experiments.runtime.devices import program_bytes, release_memory

MetaGrad = Callable[[Any, Any], tuple[Any, jax.Array]]


class CompiledPeer:
    """Applies Adam to a meta-gradient, in one compiled program.

    Args:
      meta_grad: Function (meta, data) -> gradient of the mean loss over tasks, and that loss.
      meta: Initial meta-parameters in numpy.
      data: Tasks, on their devices.
      placement: Device or sharding of the meta-parameters.

    Attributes:
      device: Kind of device: "cpu", or the name of the GPU.
    """

    def __init__(self, meta_grad: MetaGrad, meta: Any, data: Any, placement: Any = None):
        self._meta_grad, self._meta = meta_grad, meta
        self._data, self._placement = data, placement
        self._optimizer = optax.adam(cases.OUTER_LR)
        device = jax.devices()[0]
        self.device = "cpu" if device.platform == "cpu" else device.device_kind

    def prepare(self) -> float:
        """Compiles the meta-step.

        Returns:
          Seconds.
        """

        def step(state, data):
            meta, opt_state = state
            grads, _ = self._meta_grad(meta, data)
            updates, opt_state = self._optimizer.update(grads, opt_state, meta)
            return optax.apply_updates(meta, updates), opt_state

        meta = jax.device_put(self._meta, self._placement)
        self._state = jax.device_put((meta, self._optimizer.init(meta)), self._placement)
        start = time.perf_counter()
        self._step = jax.jit(step, donate_argnums=0).lower(self._state, self._data).compile()
        seconds = time.perf_counter() - start
        release_memory()  # as the drivers do
        return seconds

    def steps(self, count: int) -> None:
        """Takes meta-steps, and waits until the last is done.

        Args:
          count: Number of meta-steps.
        """
        for _ in range(count):
            self._state = self._step(self._state, self._data)
        jax.block_until_ready(self._state)

    def check(self) -> tuple[float, float]:
        """Computes loss and meta-gradient at the initial parameters, in full precision.

        Returns:
          The mean query loss, and the norm of the meta-gradient.
        """
        with jax.default_matmul_precision("highest"):
            meta = jax.device_put(self._meta, self._placement)
            grads, loss = jax.jit(self._meta_grad)(meta, self._data)
        return float(loss), float(optax.tree.norm(grads))

    def device_bytes(self) -> int:
        """Measures the peak memory of the fullest device.

        Returns:
          Bytes; 0 on a CPU.
        """
        stats = [device.memory_stats() or {} for device in jax.local_devices()]
        return max(int(stat.get("peak_bytes_in_use", 0)) for stat in stats)

    def program_bytes(self) -> int | None:
        """Computes the memory of arguments, results and temporaries of the meta-step.

        Returns:
          Bytes of one GPU, or of all CPU devices together; None if unknown.
        """
        return program_bytes(self._step, jax.tree.leaves(self._data)[0].devices())
