"""Measures the error of implicit meta-gradients by number of inner steps and by linear solver.

    python -m benchmarks.implicit_error
    python -m benchmarks.implicit_error --counts=1,4,16,64 --strength=0.5 --output=runs/error.png

A two-layer tanh network learns three classes, in float64, by gradient descent with a proximal term, as in
implicit MAML. The exact meta-gradient is taken at the true minimum, found by Newton's method to machine
precision, with an equally precise linear solution. All other gradients, including the one through all inner
steps ("unrolled"), have an error because they stop earlier. The command prints a table of relative errors
and draws them, within a minute on one core.
"""

import argparse
import functools
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

import metajax
from benchmarks.harness import options as shared
from benchmarks.harness.outcomes import aligned
from benchmarks.harness.worker import in_words
from metajax.inner import conjugate_gradient, hessian_free, neumann
from metajax.inner.linear_solvers import LinearSolver
from metajax.learners.gradient.implicit import imaml

RATE = 0.2  # step size of the inner loop
COUNTS = (1, 2, 4, 8, 16, 32, 64)
SOLVERS: dict[str, LinearSolver] = {
    **{f"conjugate gradients, {steps}": conjugate_gradient(steps) for steps in (1, 2, 5, 10, 20)},
    **{f"Neumann series, {steps}": neumann(steps, rate=0.8) for steps in (5, 20)},
}
UNROLLED = "unrolled"
FEATURES, HIDDEN, WAYS, SHOTS, QUERIES = 8, 10, 3, 4, 8

Array = jax.Array
Tree = Any


def errors(counts: Sequence[int], *, strength: float) -> dict[str, list[float]]:
    """Measures the relative error of each meta-gradient at each number of inner steps.

    Args:
      counts: Numbers of inner steps.
      strength: Strength of the proximal term.

    Returns:
      Errors, one per count, by name of the gradient.
    """
    with jax.enable_x64(True):
        start, episode = _task(jax.random.key(0))
        implicit = functools.partial(_implicit, start, episode, strength=strength)
        (exact,) = implicit([30], rule=hessian_free(100), solver=conjugate_gradient(200))
        found = {
            name: implicit(counts, rule=optax.sgd(RATE), solver=solver)
            for name, solver in SOLVERS.items()
        }
        found[UNROLLED] = _unrolled(start, episode, counts, strength=strength)
        size = jnp.linalg.norm(exact)
        return {
            name: [float(jnp.linalg.norm(gradient - exact) / size) for gradient in gradients]
            for name, gradients in found.items()
        }


def table(counts: Sequence[int], found: dict[str, list[float]]) -> str:
    """Formats relative errors, a row per gradient and a column per number of steps.

    Args:
      counts: Numbers of inner steps.
      found: Errors by name of the gradient.

    Returns:
      Lines of a table.
    """
    rows = [("relative error at inner steps", *(f"{count:,}" for count in counts))]
    rows += [(name, *(f"{value:.1e}" for value in values)) for name, values in found.items()]
    return aligned(rows)


def draw(
    counts: Sequence[int], found: dict[str, list[float]], path: Path, *, strength: float
) -> None:
    """Draws relative errors against inner steps, as PNG.

    Args:
      counts: Numbers of inner steps.
      found: Errors by name of the gradient.
      path: File to write.
      strength: Strength of the proximal term, for the title.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    styles = {"conjugate": "o-", "Neumann": "s--", UNROLLED: "k^:"}
    for name, values in found.items():
        axes.plot(counts, values, styles[name.split()[0]], markersize=4, label=name)
    axes.set(xscale="log", yscale="log", xlabel="inner steps", ylabel="relative error")
    axes.set_xticks(counts, [f"{count:,}" for count in counts])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small", loc="lower left")
    axes.set_title(f"Meta-gradients of a proximal strength of {strength:g}", fontsize="medium")
    figure.savefig(path, dpi=100)


def parse(args: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the options; an invalid one is an error of one line, with status 2.

    Args:
      args: Words of the command line; None for the process's.

    Returns:
      The options.
    """
    parser = shared.Parser("benchmarks.implicit_error", __doc__)
    default = ",".join(map(str, COUNTS))
    parser.add_argument(
        "--counts", type=shared.counts, default=COUNTS, help=f"numbers of inner steps [{default}]"
    )
    parser.add_argument(
        "--strength", type=shared.positive(float), default=2.0, help="of the proximal term [2]"
    )
    output = shared.ROOT / "docs" / "implicit_error.png"
    parser.add_argument(
        "--output", type=Path, default=output, help="PNG file [docs/implicit_error.png]"
    )
    options = parser.parse_args(args)
    if importlib.util.find_spec("matplotlib") is None:
        parser.error(in_words(ModuleNotFoundError(name="matplotlib")))
    if options.output.suffix != ".png":
        parser.error(f"--output={options.output} is not a PNG file; use a name ending in .png.")
    shared.make_output(options.output.parent, parser)
    return options


def main(args: Sequence[str] | None = None) -> int:
    """Measures, prints and draws.

    Args:
      args: Words of the command line; None for the process's.

    Returns:
      Exit status.
    """
    options = parse(args)
    found = errors(options.counts, strength=options.strength)
    print(table(options.counts, found))
    draw(options.counts, found, options.output, strength=options.strength)
    print(f"Drawn in {options.output}.")
    return 0


def _network() -> metajax.Model:
    """Makes the two-layer network."""

    def init(key, inputs):
        body_key, head_key = jax.random.split(key)
        shapes = {"body": (inputs.shape[-1], HIDDEN), "head": (HIDDEN, WAYS)}
        keys = {"body": body_key, "head": head_key}
        return {
            name: jax.random.normal(keys[name], shape, inputs.dtype) / jnp.sqrt(shape[0])
            for name, shape in shapes.items()
        }

    return metajax.Model(init, lambda params, x: jnp.tanh(x @ params["body"]) @ params["head"])


def _task(key: Array) -> tuple[Tree, metajax.Episode]:
    """Draws initial parameters, and a task of Gaussian clusters, one per class."""
    start_key, center_key, noise_key = jax.random.split(key, 3)
    centers = jax.random.normal(center_key, (WAYS, 1, FEATURES), jnp.float64)
    noise = jax.random.normal(noise_key, (WAYS, SHOTS + QUERIES, FEATURES), jnp.float64)
    inputs, labels = centers + noise, jnp.arange(WAYS)[:, None]

    def batch(part):
        some = inputs[:, part]
        targets = jnp.broadcast_to(labels, some.shape[:2])
        return metajax.Batch(some.reshape(-1, FEATURES), targets.reshape(-1))

    episode = metajax.Episode(batch(slice(SHOTS)), batch(slice(SHOTS, None)))
    return _network().init(start_key, episode.support.inputs), episode


def _implicit(
    start: Tree,
    episode: metajax.Episode,
    counts: Sequence[int],
    *,
    strength: float,
    rule: optax.GradientTransformation,
    solver: LinearSolver,
) -> list[Array]:
    """Computes implicit gradients after each number of inner steps, as vectors."""
    options = {"rule": rule, "strength": strength, "solver": solver}
    step, stay = (
        imaml(_network(), metajax.cross_entropy, steps=steps, **options) for steps in (1, 0)
    )
    key, support = jax.random.key(0), episode.support
    meta = step.init(key, support.inputs)._replace(params=start)

    # The implicit gradient depends on the adapted parameters alone, so a learner of zero further steps
    # gives it at any number of steps with a single compilation.
    @jax.jit
    @jax.grad
    def gradient(start, fast):
        at = meta._replace(params=start)
        fast = stay.adapt(at, fast, key, support)
        outputs = stay.predict(at, fast, episode.query.inputs)
        return metajax.cross_entropy(outputs, episode.query)

    adapt = jax.jit(lambda fast: step.adapt(meta, fast, key, support))
    fast, found = step.start(meta, key), []
    for count in range(1, max(counts) + 1):
        fast = adapt(fast)
        if count in counts:
            found.append(_vector(gradient(start, fast)))
    return found


def _unrolled(
    start: Tree, episode: metajax.Episode, counts: Sequence[int], *, strength: float
) -> list[Array]:
    """Computes gradients through the inner steps of the same problem, as vectors."""

    def loss_on(params, batch):
        return metajax.cross_entropy(_network().apply(params, batch.inputs), batch)

    def losses(start):
        def inner(params):
            differences = jax.tree.map(jnp.subtract, params, start)
            pull = 0.5 * strength * optax.tree.norm(differences, squared=True)
            return loss_on(params, episode.support) + pull

        def step(params, _):
            params = jax.tree.map(lambda p, g: p - RATE * g, params, jax.grad(inner)(params))
            return params, loss_on(params, episode.query)

        _, values = jax.lax.scan(step, start, length=max(counts))
        return values[jnp.array(counts) - 1]

    gradients = jax.jit(jax.jacrev(losses))(start)
    return [
        _vector(jax.tree.map(lambda leaf, row=row: leaf[row], gradients))
        for row in range(len(counts))
    ]


def _vector(tree: Tree) -> Array:
    """Concatenates all leaves."""
    return jax.flatten_util.ravel_pytree(tree)[0]


if __name__ == "__main__":
    sys.exit(main())
