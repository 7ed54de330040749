"""Measures metajax's overheads: time to import, to print --help, and to draw episodes.

    python -m benchmarks.overheads

Start-up times are medians of five fresh processes. The sampling share is the time to draw a step's episodes
over the time of a whole second-order MAML step (conv4-64 by strides, 28x28x1, 5-way 1-shot, 5 queries per
class, 16 tasks), both inside a compiled scan, medians of seven rounds taken in turn.
"""

import statistics
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax
from experiments.reports import report
from experiments.runtime.devices import use_every_core
from metajax.data.images import LabelledImages
from metajax.episodes.store import EpisodeSampler, class_store
from metajax.sharding import replicated
from metajax.zoo import models

TASKS, STEPS, ROUNDS = 16, 10, 7


def seconds(function, *args):
    """Measures the time of a call until its result is computed.

    Args:
      function: Function that returns arrays.
      *args: Arguments of the function.

    Returns:
      Seconds.
    """
    start = time.perf_counter()
    jax.block_until_ready(function(*args))
    return time.perf_counter() - start


def fresh_process(*args):
    """Measures the time of a Python process.

    Args:
      *args: Arguments of the interpreter.

    Returns:
      Seconds, the median of five processes.
    """

    def once():
        start = time.perf_counter()
        subprocess.run([sys.executable, *args], check=True, capture_output=True)
        return time.perf_counter() - start

    once()  # the first one fills the disk cache
    return statistics.median(once() for _ in range(5))


def sampling_share():
    """Measures the time to draw a step's episodes, and the time of the whole step.

    Returns:
      Seconds per step for drawing, and for everything.
    """
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (1000 * 20, 28, 28, 1)).astype(np.uint8)
    names = [str(name) for name in range(1000)]
    store = class_store(LabelledImages.from_labels(pixels, np.repeat(np.arange(1000), 20), names))
    sampler = EpisodeSampler(ways=5, shots=1, queries=5, rotations=True)
    model = models.build_model("conv4_stride", outputs=5)
    learner = metajax.maml(model, metajax.cross_entropy, rule=optax.sgd(0.4))
    objective = metajax.query_objective(learner, metajax.cross_entropy)
    mesh = metajax.task_mesh()
    at_once = 1 if jax.default_backend() == "cpu" else None
    meta_grad = metajax.over_tasks(mesh, metajax.backprop(objective, tasks_at_once=at_once))
    optimizer, key = optax.adam(1e-3), jax.random.key(0)
    step = metajax.make_step(meta_grad, optimizer, sampler, num_tasks=TASKS)
    meta = learner.init(key, jnp.zeros((5, 28, 28, 1)))
    state = metajax.init_state(meta, optimizer, key)

    def draw(state, store):
        def one(total, step):
            episodes = metajax.draw_tasks(sampler, store, key, step, jnp.arange(TASKS))[1]
            # The sum depends on every pixel; otherwise the compiler would skip the look-ups.
            return total + episodes.support.inputs.sum() + episodes.query.inputs.sum(), None

        return jax.lax.scan(one, 0.0, state.step + jnp.arange(STEPS))[0]

    args = jax.device_put((state, store), replicated(mesh))
    drawing, whole = (jax.jit(f) for f in (draw, metajax.many_steps(step, STEPS)))
    times = [(seconds(drawing, *args), seconds(whole, *args)) for _ in range(ROUNDS + 1)][1:]
    return [statistics.median(column) / STEPS for column in zip(*times, strict=True)]


def main():
    """Measures, and prints a table."""
    use_every_core(TASKS)
    importing = fresh_process("-c", "import metajax")
    helping = fresh_process("-m", "experiments.fewshot", "--help")
    drawing, whole = sampling_share()
    versions = report.versions()
    rows = [
        ("import metajax", f"{importing:.2f} s"),
        ("fewshot --help", f"{helping:.2f} s"),
        ("meta-step", f"{1000 * whole:.1f} ms"),
        (
            "drawing its episodes",
            f"{1000 * drawing:.2f} ms, {100 * drawing / whole:.2f}% of the step",
        ),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
    ]
    print(report.table(rows))


if __name__ == "__main__":
    main()
