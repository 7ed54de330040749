"""What contract tests share: every registered learner, made of toys, and tasks that suit it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax
from helpers.toys import classification_episode, normed_model
from metajax.inner.adjoints import ADJOINTS
from metajax.types import Model
from metajax.zoo.ingredients import Ingredients
from metajax.zoo.learners import LEARNERS, make_learner

# Learners of examples with a right answer, and those that can act.
OF_EXAMPLES = sorted(name for name, e in LEARNERS.items() if e.predicts != ("decisions",))
POLICIES = sorted(name for name, e in LEARNERS.items() if "decisions" in e.predicts)
# First-order learners and adjoints leave terms out of their meta-gradient on purpose.
FIRST_ORDER = {
    *("fomaml", "truncated", "first_order", "meta_lstm", "metanet"),
    *("baseline", "baseline_plus_plus"),
}
# Of few steps, a truncated adjoint with its five last would not be one.
EVERY_ADJOINT = ADJOINTS | {"truncated": ADJOINTS["truncated"]._replace(last=1)}


# Options that suit the toys where the defaults are for networks.
OPTIONS = {
    "cavia": {"context_size": 6},
    "lora": {"rank": 2},
    "imaml": {"solver_steps": 60},
    "leo": {"latent": 3, "finetune_steps": 1, "finetune_rate": 0.1},
    "matching": {"scale": 3.0},
    "metanet": {"units": 3},
    "meta_lstm": {"units": 3},
    "anp": {"heads": 1},
    "baseline": {"finetune_steps": 5, "finetune_rate": 0.4},
    "baseline_plus_plus": {"finetune_steps": 5, "finetune_rate": 0.4},
    "recurrent": {"units": 6},
    # As many slots as both heads write to in the longest of these tasks.
    "mann": {"units": 6, "slots": 32, "slot_width": 4, "heads": 2},
    "snail": {"width": 4},
    "in_context": {"width": 8, "layers": 2, "heads": 2},
    "in_context_tables": {"most_ways": 4, "width": 8, "layers": 1, "heads": 2},
}


def reading_trees(model):
    """Lets a model read dicts of arrays as one array, its entries side by side."""

    def whole(inputs):
        return jnp.concatenate(jax.tree.leaves(inputs), axis=-1)

    return Model(
        lambda key, inputs: model.init(key, whole(inputs)),
        lambda params, inputs: model.apply(params, whole(inputs)),
    )


def as_dict(batch):
    """The same examples as dicts of two entries."""
    return batch._replace(inputs={"a": batch.inputs[:, :1], "b": batch.inputs[:, 1:]})


def make(
    name,
    *,
    steps=2,
    examples=6,
    rule=None,
    adjoint="reverse",
    model=None,
    encoder=None,
    options=None,
    wrap=lambda model: model,
):
    rule = optax.sgd(0.4) if rule is None else rule
    ingredients = Ingredients(
        wrap(model or normed_model(5, 3)),
        metajax.cross_entropy,
        rule,
        0.4,
        steps,
        EVERY_ADJOINT[adjoint],
        rows=2,
        encoder=wrap(encoder or normed_model(5, None)),
        comparer=wrap(normed_model(16, 1)),
        decoder=wrap(normed_model(5, 2)),
        ways=3 if "classes" in LEARNERS[name].predicts else None,
        examples=examples,
        classes=6,
        options=OPTIONS.get(name, {}) | (options or {}),
    )
    return make_learner(name, ingredients)


def episode_of(name, key, **sizes):
    """Classes of two examples each, or points of a random plane for learners of values alone."""
    episode = classification_episode(key, **sizes)
    if "classes" in LEARNERS[name].predicts:
        return episode
    plane = jax.random.normal(key, (4, 1), episode.support.inputs.dtype)
    return metajax.Episode(
        *(batch._replace(targets=jnp.tanh(batch.inputs @ plane)) for batch in episode)
    )


def setting(name, dtype=jnp.float32, **options):
    learner = make(name, **options)
    episode = episode_of(name, jax.random.key(0), dtype=dtype)
    meta = learner.init(jax.random.key(1), episode.support.inputs)
    entry = LEARNERS[name]
    loss = entry.loss or metajax.cross_entropy
    objective = metajax.query_objective(learner, metajax.Scoring(loss, penalty=entry.penalty))
    return learner, episode, meta, objective


def assert_trees_close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)
