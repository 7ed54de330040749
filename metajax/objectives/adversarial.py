"""Adversarial examples in tasks: training on attacked inputs, and metrics under attack."""

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

# Folded into keys; a small number would repeat a key of `split(key)`.
_ATTACK, _LEAF = 0x41545441, 0x4C454146


class Attack(NamedTuple):
    """Options of an attack that moves inputs within a box around them to raise a loss.

    Each of `epsilon`, `low` and `high` is a number, an array that broadcasts against inputs, such as [C], or,
    for a tree of inputs, a tree of them that is a prefix of it.

    Attributes:
      epsilon: Half the side of the box, in the units of the inputs.
      steps: Number of gradient steps. One step goes to the edge of the box along the sign of the gradient
        (FGSM); several start at a random point of the box and are projected back into it (PGD).
      rate: Length of a PGD step in multiples of epsilon; None is 2.5 / steps.
      low: Least value of an input, such as black.
      high: Largest value of an input, such as white.

    Example:
      >>> metajax.objectives.Attack(epsilon=8 / 255, steps=10, low=0.0, high=1.0).steps
      10

    Reference: Goodfellow et al., 2015 (https://arxiv.org/abs/1412.6572), section 4; Madry et al., 2018
    (https://arxiv.org/abs/1706.06083), section 2.1.
    """

    epsilon: Tree
    steps: int = 1
    rate: float | None = None
    low: Tree = -math.inf
    high: Tree = math.inf


def perturb(attack: Attack, loss: Callable[[Tree], Array], inputs: Tree, key: Key) -> Tree:
    """Moves inputs within the box of an attack so that a loss rises; gradients do not flow through.

    All floating-point leaves of the inputs are attacked together; the other leaves stay as they are.

    Args:
      attack: Attack.
      loss: Function from inputs [B, ...] to a scalar.
      inputs: Tree of arrays [B, ...].
      key: Random key of the start of PGD; consumed.

    Returns:
      Attacked inputs, shaped like `inputs`.

    Raises:
      ValueError: If `attack.steps` is below 1, no leaf of the inputs is a floating-point array, or the tree
        of `epsilon`, `low` or `high` is not a prefix of the inputs, such as a list of numbers for one array.

    Example:
      >>> attack = metajax.objectives.Attack(epsilon=0.5)
      >>> perturb(attack, lambda x: jnp.sum(x**2), jnp.array([[1.0, -2.0]]), jax.random.key(0)).tolist()
      [[1.5, -2.5]]
    """
    if attack.steps < 1:
        raise ValueError(f"attack.steps is {attack.steps}; use 1 or more.")
    floats, rest = trees.split_floats(inputs)
    if not jax.tree.leaves(floats):
        kinds = sorted({str(jnp.result_type(leaf)) for leaf in jax.tree.leaves(inputs)})
        raise ValueError(
            f"inputs are of type {' and '.join(kinds) or 'None'}; an attack needs gradients: use "
            "floating-point arrays [B, ...]."
        )
    epsilon, low, high = (
        _for_each(name, getattr(attack, name), floats) for name in ("epsilon", "low", "high")
    )
    once = attack.steps == 1
    rate = 1.0 if once else attack.rate or 2.5 / attack.steps

    def within(x: Array, changed: Array, epsilon: Array, low: Array, high: Array) -> Array:
        return jnp.clip(x + jnp.clip(changed - x, -epsilon, epsilon), low, high)

    # x + alpha sign(grad), projected into the box and into [low, high] (Madry et al., section 2.1).
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
    """Adapts and scores like `query_objective`, with attacked support or query inputs.

    Queries are attacked after adapting, with the adapted fast state. Support examples are attacked with the
    fast state adapted to the clean ones; then the learner starts again and adapts to the attacked ones.

    Args:
      learner: Learner to train or test.
      scoring: Scoring or loss, as in `query_objective`; the attack raises the loss. `loss` and the metrics
        are reported for clean queries, and with the prefix `robust_` for attacked ones.
      attack: Attack.
      attack_support: Whether support inputs are attacked, so that the inner loss sees attacked inputs.
      attack_query: Whether the outer loss is the loss of attacked queries.
      evidence: Source of examples, as in `query_objective`.

    Returns:
      `(meta, key, task) -> (loss, metrics)`; the loss of attacked queries if `attack_query`, else of clean
      ones. The key is consumed.

    Example:
      >>> from metajax.toys import toy_episode, toy_model
      >>> learner = metajax.maml(toy_model(3), metajax.cross_entropy, rule=optax.sgd(0.1))
      >>> task = toy_episode(jax.random.key(0))
      >>> meta = learner.init(jax.random.key(1), task.support.inputs)
      >>> attack = metajax.objectives.Attack(epsilon=0.1)
      >>> objective = adversarial_objective(learner, metajax.cross_entropy, attack)
      >>> sorted(jax.eval_shape(objective, meta, jax.random.key(2), task)[1])
      ['loss', 'robust_loss']

    Reference: adversarial querying, Goldblum et al., 2020 (https://arxiv.org/abs/1910.00982), algorithm 2;
    attacks on the inner loss too, Yin et al., 2018 (https://arxiv.org/abs/1806.03316).
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
        values = scoring.penalize(values, meta, fast)
        chosen = {**values, "loss": (robust if attack_query else clean)["loss"]}
        return scoring.total(chosen), values

    return objective


def _for_each(name: str, value: Tree, floats: Tree) -> Tree:
    """Broadcasts an option of an attack to the floating-point leaves, each in the leaf's type."""
    try:
        each = jax.tree.broadcast(value, floats)
    except ValueError:
        raise ValueError(
            f"attack.{name} is {names.shown(value)}, which is not a prefix of the tree of inputs; use a "
            "number, an array such as [C], or a tree like the inputs."
        ) from None
    return jax.tree.map(lambda x, of_leaf: jnp.asarray(of_leaf, x.dtype), floats, each)


def _noise(key: Key, floats: Tree) -> Tree:
    """Draws from U(-1, 1) for every leaf; the first leaf uses the key itself, further leaves a folded one."""
    leaves, treedef = jax.tree.flatten(floats)
    keys = [key, *(jax.random.fold_in(key, _LEAF + i) for i in range(1, len(leaves)))]
    return treedef.unflatten(
        jax.random.uniform(key, leaf.shape, leaf.dtype, -1, 1)
        for key, leaf in zip(keys, leaves, strict=True)
    )
