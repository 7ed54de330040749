"""Adversarial examples in tasks: what training sees, and how accuracy holds against them."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from metajax import names, trees
from metajax.objectives.evidence import EPISODE, TaskEvidence
from metajax.objectives.scoring import Scoring, as_scoring
from metajax.types import (
    Array,
    Batch,
    Fast,
    Key,
    Learner,
    LossFn,
    Meta,
    Metrics,
    Objective,
    Task,
    Tree,
)

# Folded into keys; a small number would give a key of `split(key)` again.
_ATTACK, _LEAF = 0x41545441, 0x4C454146


class Attack(NamedTuple):
    """How inputs are changed within a box around them to raise a loss.

    Each of `epsilon`, `low` and `high` is a number or an array that broadcasts against inputs, such as [C],
    or a tree of them for a tree of inputs, of which it is a prefix.

    Attributes:
      epsilon: Half the side of the box, in the units of the inputs.
      steps: Number of steps: 1 is one to the edge of the box along the sign of the gradient (FGSM); more are
        steps of `rate` from a random point of the box, each brought back into it (PGD).
      rate: Length of a step in multiples of epsilon; None is 2.5 / steps.
      low: Least value that inputs may take, such as that of black.
      high: Largest value that inputs may take, such as that of white.

    Reference: Goodfellow et al., 2015 (https://arxiv.org/abs/1412.6572), section 4; Madry et al., 2018
    (https://arxiv.org/abs/1706.06083), section 2.1.
    """

    epsilon: Tree
    steps: int = 1
    rate: float | None = None
    low: Tree = -math.inf
    high: Tree = math.inf


def perturb(attack: Attack, loss: Callable[[Tree], Array], inputs: Tree, key: Key) -> Tree:
    """Changes inputs [B, ...] so that a scalar loss of them rises; nothing flows through the change.

    Every floating-point leaf of a tree of inputs is attacked, all of them together; the others stay.

    Raises:
      ValueError: for less than one step, for inputs without a floating-point array, and for a box whose tree
        is no prefix of the inputs', such as a list of numbers for one array.
    """
    if attack.steps < 1:
        raise ValueError(f"attack.steps is {attack.steps}; use 1 or more.")
    floats, rest = trees.split_floats(inputs)
    if not jax.tree.leaves(floats):
        kinds = sorted({str(jnp.result_type(leaf)) for leaf in jax.tree.leaves(inputs)})
        raise ValueError(
            f"inputs are of {' and '.join(kinds) or 'no array'}; an attack moves along gradients of "
            "floating-point arrays [B, ...]."
        )
    epsilon, low, high = (
        _for_each(name, getattr(attack, name), floats) for name in ("epsilon", "low", "high")
    )
    once = attack.steps == 1
    rate = 1.0 if once else attack.rate or 2.5 / attack.steps

    def within(x: Array, changed: Array, epsilon: Array, low: Array, high: Array) -> Array:
        return jnp.clip(x + jnp.clip(changed - x, -epsilon, epsilon), low, high)

    def moved(directions: Tree, changed: Tree, rate: float) -> Tree:
        changed = jax.tree.map(lambda x, e, d: x + rate * e * d, changed, epsilon, directions)
        return jax.tree.map(within, floats, changed, epsilon, low, high)

    def step(changed: Tree, _) -> tuple[Tree, None]:
        grads = jax.grad(lambda floats: loss(trees.merge(floats, rest)))(changed)
        return moved(jax.tree.map(jnp.sign, grads), changed, rate), None

    start = floats if once else moved(_noise(key, floats), floats, 1.0)
    changed, _ = jax.lax.scan(step, start, length=attack.steps)
    return jax.lax.stop_gradient(trees.merge(changed, rest))


def adversarial_objective(
    learner: Learner,
    scoring: Scoring | LossFn,
    attack: Attack,
    *,
    attack_support: bool = False,
    attack_query: bool = True,
    evidence: TaskEvidence = EPISODE,
) -> Objective:
    """Adapts and scores as `query_objective`, on support or query evidence that is attacked.

    Queries are attacked once the task has been adapted to. Support examples are attacked where the task has
    been adapted to them as they are; then it starts anew and adapts to them as they have become.

    Args:
      learner: The learner that is trained.
      scoring: As in `query_objective`; the attack raises the loss. `loss` and metrics are reported of the
        queries as they are, and with `robust_` before their names of attacked ones.
      attack: How inputs are changed.
      attack_support: Whether support examples are attacked (the inner loss sees them).
      attack_query: Whether queries are (the outer loss sees them).
      evidence: As in `query_objective`.

    Returns:
      `(meta, key, task) -> (loss, metrics)`; the loss is that of attacked queries if `attack_query`, else of
      queries as they are.

    Reference: adversarial querying, Goldblum et al., 2020 (https://arxiv.org/abs/1910.00982), algorithm 2; of
    the inner loss too, Yin et al., 2018 (https://arxiv.org/abs/1806.03316).
    """
    scoring = as_scoring(scoring)

    def attacked(meta: Meta, fast: Fast, batch: Batch, key: Key) -> Batch:
        meta, fast = jax.lax.stop_gradient((meta, fast))

        def loss(inputs: Tree) -> Array:
            outputs = scoring.predict(learner, meta, fast, inputs)
            return scoring.loss(outputs, batch._replace(inputs=inputs))

        return batch._replace(inputs=perturb(attack, loss, batch.inputs, key))

    def objective(meta: Meta, key: Key, task: Task) -> tuple[Array, Metrics]:
        start_key, adapt_key = jax.random.split(key)
        support_key, query_key = jax.random.split(jax.random.fold_in(key, _ATTACK))
        begin = learner.start(meta, start_key, evidence.room(task))
        batch = evidence.to_adapt(meta, begin, key, task)
        if attack_support:
            clean = learner.adapt(meta, begin, adapt_key, batch)
            batch = attacked(meta, clean, batch, support_key)
        fast = learner.adapt(meta, begin, adapt_key, batch)
        batch = evidence.to_score(meta, fast, key, task)
        worse = attacked(meta, fast, batch, query_key)

        def measured(batch: Batch) -> Metrics:
            return scoring.measure(scoring.predict(learner, meta, fast, batch.inputs), batch)

        clean, robust = measured(batch), measured(worse)
        values = {**clean, **{f"robust_{name}": value for name, value in robust.items()}}
        values = scoring.penalise(values, meta, fast)
        chosen = {**values, "loss": (robust if attack_query else clean)["loss"]}
        return scoring.total(chosen), values

    return objective


def _for_each(name: str, value: Tree, floats: Tree) -> Tree:
    """Gives each leaf of a tree its number or array, of its type."""
    try:
        each = jax.tree.broadcast(value, floats)
    except ValueError:
        raise ValueError(
            f"attack.{name} is {names.shown(value)}, which is no prefix of the tree of inputs; use a number, "
            "an array such as [C], or a tree like that of the inputs."
        ) from None
    return jax.tree.map(lambda x, of_leaf: jnp.asarray(of_leaf, x.dtype), floats, each)


def _noise(key: Key, floats: Tree) -> Tree:
    """Draws from a box around zero, of side two; the first leaf takes the key as it is."""
    leaves, treedef = jax.tree.flatten(floats)
    keys = [key, *(jax.random.fold_in(key, _LEAF + i) for i in range(1, len(leaves)))]
    return treedef.unflatten(
        jax.random.uniform(key, leaf.shape, leaf.dtype, -1, 1)
        for key, leaf in zip(keys, leaves, strict=True)
    )
