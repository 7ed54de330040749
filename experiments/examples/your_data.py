"""Your data in metajax: a table with numbers and categories, as rows in groups.

    python -m experiments.examples.your_data

The table here lists used goods: shop, kind of article, three measurements, material and price. `Rows` sorts
its rows by group (a kind in a shop) and its groups by parent (a shop). Two samplers make tasks of it:

- `GroupSampler`: each task is some groups, whose examples have the group's position in the task as their
  label. Here: tell five kinds of article of one shop apart.
- `SplitSampler`: each task is one parent, whose rows are split into support and query set and keep their
  targets. Here: predict prices in a shop from eight known ones.

Inputs may be any tree of arrays. Training and test tasks come from different shops.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax
from metajax.models import from_functions

MATERIALS = np.array(["brass", "oak", "plastic", "wool"])
KINDS, NUMBERS, FEATURES = 8, 3, 24


class Table(NamedTuple):
    """Columns of a table with R rows.

    Attributes:
      shop: Names of shops [R].
      kind: Names of kinds [R], unique within a shop only.
      numbers: Measurements [R, 3], float32.
      material: Names of materials [R].
      price: Prices [R], float32.
    """

    shop: np.ndarray
    kind: np.ndarray
    numbers: np.ndarray
    material: np.ndarray
    price: np.ndarray


def make_table(rng, *, shops, articles=12):
    """Invents a table; yours comes from a file, for example by pandas."""
    shop, kind, _ = np.indices((shops, KINDS, articles)).reshape(3, -1)
    usual = rng.normal(size=(shops, KINDS, NUMBERS))
    numbers = usual[shop, kind] + 0.4 * rng.normal(size=(len(shop), NUMBERS))
    # Articles mostly have their kind's material. Prices are linear, with different coefficients in each shop.
    favorite = rng.integers(len(MATERIALS), size=(shops, KINDS))
    other = rng.integers(len(MATERIALS), size=len(shop))
    material = np.where(rng.random(len(shop)) < 2 / 3, favorite[shop, kind], other)
    taste = rng.normal(size=(shops, NUMBERS))
    value = np.array([2.0, 0.5, -1.5, -1.0])[material]
    price = (taste[shop] * numbers).sum(1) + value + 0.1 * rng.normal(size=len(shop))
    names = np.char.add("shop ", shop.astype(str)), np.char.add("kind ", kind.astype(str))
    return Table(*names, numbers.astype(np.float32), MATERIALS[material], price.astype(np.float32))


# 1. Names become numbers by np.unique; `Rows` sorts and checks the table, and moves it to the device.
def store_of(table):
    """Makes a store of a table: groups are pairs of shop and kind, parents are shops."""
    _, material = np.unique(table.material, return_inverse=True)
    pairs = np.stack([table.shop, table.kind], axis=1)
    found, groups = np.unique(pairs, axis=0, return_inverse=True)
    _, parents = np.unique(found[:, 0], return_inverse=True)
    return metajax.Rows.from_groups(
        {"numbers": table.numbers, "material": material},
        groups.reshape(-1),
        targets=table.price[:, None],
        parents=parents,
    )


# 2. A network that reads the columns: the material is looked up in a table of embeddings.
def model_of(outputs):
    """Makes a network with so many outputs."""
    shapes = {"material": (len(MATERIALS), 4), "hidden": (NUMBERS + 4, FEATURES)}
    shapes["head"] = (FEATURES, outputs)

    def init(key, inputs):
        del inputs
        keys = jax.random.split(key, len(shapes))
        lecun = jax.nn.initializers.lecun_normal()
        return {
            name: lecun(k, shape) for k, (name, shape) in zip(keys, shapes.items(), strict=True)
        }

    def apply(params, inputs):
        material = params["material"][inputs["material"]]
        hidden = jnp.concatenate([inputs["numbers"], material], axis=1) @ params["hidden"]
        return jax.nn.gelu(hidden) @ params["head"]

    return from_functions(init, apply)


# 3. The samplers. Both draw on the device, inside the compiled step, as pure functions (store, key) -> task.
BY_KIND = metajax.GroupSampler(ways=5, shots=1, queries=4, within=True)
BY_SHOP = metajax.SplitSampler(support=8, queries=16)


def scores(learner, scoring, sampler, stores, *, steps, tasks):
    """Trains on one store and tests on another; returns the test metrics before and after."""
    train, test = stores
    sampler.check(train, name="training data")  # sizes that do not fit are an error with a remedy
    sampler.check(test, name="test data")
    objective = metajax.query_objective(learner, scoring)
    optimizer = optax.adam(3e-3)
    step = metajax.make_step(metajax.backprop(objective), optimizer, sampler, num_tasks=8)
    evaluate = jax.jit(metajax.make_evaluate(objective, sampler, tasks_at_once=100))

    init_key, train_key, test_key = jax.random.split(jax.random.key(0), 3)
    example = jax.tree.map(lambda leaf: leaf[:1], train.features)
    state = metajax.init_state(learner.init(init_key, example), optimizer, train_key)
    trained, _ = jax.jit(metajax.make_run(step, steps=steps))(state, train)
    measured = [
        evaluate(meta, test, test_key, jnp.arange(tasks)) for meta in (state.meta, trained.meta)
    ]
    return [{name: float(jnp.mean(values)) for name, values in each.items()} for each in measured]


def main(steps=500, tasks=400, shops=200):
    """Learns both kinds of tasks; prints accuracy and error on new shops."""
    rng = np.random.default_rng(0)
    stores = [store_of(make_table(rng, shops=count)) for count in (shops, shops // 4)]
    options = {"steps": steps, "tasks": tasks}

    learner = metajax.protonet(model_of(FEATURES), ways=BY_KIND.ways)
    scoring = metajax.Scoring(metajax.cross_entropy, {"accuracy": metajax.accuracy})
    before, after = (s["accuracy"] for s in scores(learner, scoring, BY_KIND, stores, **options))
    print(
        f"kinds in new shops: {100 * before:.1f}% correct before training, {100 * after:.1f}% after"
    )

    # ANIL adapts the parameters named `head` alone: here a linear regression on learned features.
    learner = metajax.anil(model_of(1), metajax.squared_error, rule=optax.sgd(0.05), steps=10)
    scoring = metajax.Scoring(metajax.squared_error)
    before, after = (s["loss"] for s in scores(learner, scoring, BY_SHOP, stores, **options))
    print(
        f"prices in new shops: mean squared error {before:.2f} before training, {after:.2f} after"
    )


if __name__ == "__main__":
    main()
