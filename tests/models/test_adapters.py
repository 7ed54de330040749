import sys
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import metajax
from metajax.models import from_equinox, from_flax, from_functions, from_nnx
from metajax.trees import under

IN, HIDDEN, OUT = 3, 4, 2


class LinenNet(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(OUT, name="head")(jnp.tanh(linen.Dense(HIDDEN, name="body")(x)))


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        # A list gives integer keys; dropout without rngs has no state.
        self.layers = nnx.List([nnx.Linear(IN, HIDDEN, rngs=rngs), nnx.Dropout(0.5)])
        self.layers[1].deterministic = True
        self.head = nnx.Linear(HIDDEN, OUT, rngs=rngs)

    def __call__(self, x):
        return self.head(jnp.tanh(self.layers[1](self.layers[0](x))))


def make_equinox(key):
    return eqx.nn.MLP(IN, OUT, HIDDEN, depth=1, activation=jnp.tanh, key=key)


def plain_init(key, inputs):
    body, head = jax.random.split(key)
    return [
        (jax.random.normal(body, (inputs.shape[-1], HIDDEN)), jnp.zeros(HIDDEN)),
        (jax.random.normal(head, (HIDDEN, OUT)), jnp.zeros(OUT)),
    ]


def plain_apply(params, inputs):
    (w1, b1), (w2, b2) = params
    return jnp.tanh(inputs @ w1 + b1) @ w2 + b2


class Case(NamedTuple):
    model: object
    # Converts a framework's params, or gradients, to the plain network's.
    read: object


def read_flax(p):
    body = p["body"] if "body" in p else p["layers"][0]
    return [(layer["kernel"], layer["bias"]) for layer in (body, p["head"])]


CASES = {
    "functions": Case(from_functions(plain_init, plain_apply), lambda p: p),
    "flax": Case(from_flax(LinenNet()), read_flax),
    "nnx": Case(from_nnx(NnxNet), read_flax),
    "equinox": Case(
        from_equinox(make_equinox), lambda p: [(layer.weight.T, layer.bias) for layer in p.layers]
    ),
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def inputs_of(seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(5, IN)), jnp.float32)


def assert_close(got, want):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, want)


def adapted_loss(apply, params, inputs):
    """Computes a loss after one inner step, so that its gradient is of second order."""

    def loss(p, x):
        return jnp.mean(jnp.sin(apply(p, x)))

    inner = jax.grad(loss)(params, inputs)
    return loss(jax.tree.map(lambda p, g: p - 0.5 * g, params, inner), 2.0 * inputs)


def test_init_draws_from_the_key(case):
    model, read = case
    first, again, other = (model.init(jax.random.key(seed), inputs_of()) for seed in (0, 0, 1))
    assert_close(read(first), read(again))
    assert np.abs(read(first)[0][0] - read(other)[0][0]).max() > 0.1
    assert_close(jax.jit(model.init)(jax.random.key(0), inputs_of()), first)
    leaves = jax.tree.leaves(first)
    assert len(leaves) == 4 and all(leaf.dtype == jnp.float32 for leaf in leaves)


def test_apply_is_the_network(case):
    model, read = case
    inputs = inputs_of()
    params = model.init(jax.random.key(0), inputs)
    want = plain_apply(read(params), inputs)
    assert_close(model.apply(params, inputs), want)
    assert_close(jax.jit(model.apply)(params, inputs), want)
    # It is pure: another call, with other params, does not change the first.
    doubled = jax.tree.map(lambda p: 2.0 * p, params)
    assert_close(model.apply(doubled, inputs), plain_apply(read(doubled), inputs))
    assert_close(model.apply(params, inputs), want)


PARTS = metajax.types.Parts(head=under("layers/1"))


def test_adapters_pass_parts_on():
    models = (
        from_functions(plain_init, plain_apply, parts=PARTS),
        from_flax(LinenNet(), parts=PARTS),
        from_nnx(NnxNet, parts=PARTS),
        from_equinox(make_equinox, parts=PARTS),
    )
    assert all(model.parts is PARTS for model in models)
    learner = metajax.anil(models[-1], metajax.squared_error, rule=optax.sgd(0.1))
    meta = learner.init(jax.random.key(0), inputs_of())
    adapted = learner.start(meta, jax.random.key(1)).params
    assert metajax.trees.paths(adapted) == ["layers/1/weight", "layers/1/bias"]


def test_vmap_over_params(case):
    model, read = case
    inputs = inputs_of()
    params = model.init(jax.random.key(0), inputs)
    stacked = jax.tree.map(lambda p: jnp.stack([p, 0.5 * p, -p]), params)
    outputs = jax.jit(jax.vmap(model.apply, (0, None)))(stacked, inputs)
    for scale, output in zip((1.0, 0.5, -1.0), outputs, strict=True):
        scaled = jax.tree.map(lambda p, s=scale: s * p, read(params))
        assert_close(output, plain_apply(scaled, inputs))


def test_gradients_through_an_inner_step(case):
    model, read = case
    inputs = inputs_of()
    params = model.init(jax.random.key(0), inputs)
    value, gradient = jax.jit(jax.value_and_grad(lambda p: adapted_loss(model.apply, p, inputs)))(
        params
    )
    want = jax.value_and_grad(lambda p: adapted_loss(plain_apply, p, inputs))(read(params))
    assert jax.tree.structure(gradient) == jax.tree.structure(params)
    assert_close((value, read(gradient)), want)


def test_call_options_reach_a_flax_module():
    class Net(linen.Module):
        @linen.compact
        def __call__(self, x, deterministic):
            return linen.Dropout(0.5)(linen.Dense(OUT)(x), deterministic=deterministic)

    model = from_flax(Net(), deterministic=True)
    params = model.init(jax.random.key(0), inputs_of())
    want = inputs_of() @ params["Dense_0"]["kernel"]
    assert_close(model.apply(params, inputs_of()), want)


def test_a_module_without_parameters():
    model = from_flax(linen.Sequential([jnp.tanh]))
    assert jax.tree.leaves(model.init(jax.random.key(0), inputs_of())) == []


class Counter(eqx.Module):
    count: jax.Array

    def __init__(self, key):
        self.count = jnp.zeros(2, jnp.int32)


@pytest.mark.parametrize(
    ("adapt", "held"),
    [
        (
            lambda: from_flax(linen.BatchNorm(use_running_average=False)).init(
                jax.random.key(0), inputs_of()
            ),
            "BatchNorm holds.*'batch_stats'",
        ),
        (lambda: from_nnx(lambda rngs: nnx.BatchNorm(IN, rngs=rngs)), r"mean \(BatchStat\)"),
        (lambda: from_nnx(lambda rngs: nnx.Dropout(0.5, rngs=rngs)), r"rngs.key \(RngKey\)"),
        (
            lambda: from_equinox(
                lambda key: eqx.nn.Sequential([eqx.nn.BatchNorm(IN, "b", mode="ema")])
            ),
            r"layers\[0\].*StateIndex",
        ),
        (lambda: from_equinox(Counter), r"Counter holds.*count \(int32\)"),
    ],
)
def test_state_is_refused(adapt, held):
    with pytest.raises(ValueError, match=f"{held}.*pure and stateless"):
        adapt()


def test_the_wrong_kind_is_refused():
    with pytest.raises(TypeError, match=r"flax\.linen\.Module, not of NnxNet; use from_nnx"):
        from_flax(NnxNet(nnx.Rngs(0)))
    with pytest.raises(TypeError, match="apply must be a function, not 3"):
        from_functions(plain_init, 3)


@pytest.mark.parametrize(
    ("adapt", "missing", "extra"),
    [
        (lambda: from_flax(LinenNet()), "flax.linen", "flax"),
        (lambda: from_nnx(NnxNet), "flax.nnx", "flax"),
        (lambda: from_equinox(make_equinox), "equinox", "equinox"),
    ],
)
def test_a_missing_framework_names_the_extra(monkeypatch, adapt, missing, extra):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=rf"{missing}.*pip install 'metajax\[{extra}\]'"):
        adapt()


class NnxTable(nnx.Module):
    """Adds 1, 2, 3: one table in a plain array, one in NumPy's, one in a variable."""

    def __init__(self, rngs):
        self.head = nnx.Linear(IN, OUT, rngs=rngs)
        self.plain, self.numpy = jnp.arange(3.0), np.arange(3.0)
        self.variable = nnx.Variable(jnp.ones(3) - jnp.arange(3.0))

    def __call__(self, x):
        return self.head(x + self.plain + self.numpy + self.variable[...])


class EquinoxTable(eqx.Module):
    head: eqx.nn.Linear
    numpy: np.ndarray
    floats: jax.Array
    ints: jax.Array

    def __init__(self, key):
        self.head = eqx.nn.Linear(IN, OUT, key=key)
        self.numpy, self.floats, self.ints = np.ones(3), jnp.arange(3.0) / 2, jnp.arange(3)

    def __call__(self, x):
        return self.head(x + self.numpy + 2 * self.floats - self.ints + self.ints)


TABLES = {
    "nnx": lambda **options: from_nnx(NnxTable, **options),
    "equinox": lambda **options: from_equinox(EquinoxTable, **options),
}


@pytest.mark.parametrize(
    ("framework", "marked", "remedy"),
    [
        ("nnx", ["variable"], r"variable \(Variable\).*a plain array or name it in constants="),
        ("equinox", ["floats", "ints"], r"ints \(int32\).*a NumPy array or name it in constants="),
    ],
)
def test_constant_arrays_do_not_adapt(framework, marked, remedy):
    with pytest.raises(ValueError, match=remedy):
        TABLES[framework]()
    model = TABLES[framework](constants=under(*marked))
    inputs = inputs_of()
    params = jax.jit(model.init)(jax.random.key(1), inputs)
    assert len(jax.tree.leaves(params)) == 2, "the weights of the head"
    table = jnp.arange(1.0, 4.0)
    weight, bias = (
        (params["head"]["kernel"], params["head"]["bias"])
        if framework == "nnx"
        else (params.head.weight.T, params.head.bias)
    )
    want = (inputs + table) @ weight + bias
    assert_close(jax.jit(model.apply)(params, inputs), want)


def test_constants_are_found_while_a_program_is_traced():
    def program(inputs):
        model = TABLES["nnx"](constants=under("variable"))
        return model.apply(model.init(jax.random.key(1), inputs), inputs)

    assert_close(jax.jit(program)(inputs_of()), program(inputs_of()))


class NnxShift(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(IN, OUT, rngs=rngs)
        self.table = nnx.Param(jnp.ones(IN))

    def __call__(self, x):
        return self.linear(x + self.table)


class EquinoxShift(eqx.Module):
    linear: eqx.nn.Linear
    table: jax.Array

    def __call__(self, x):
        return self.linear(x + self.table)


def equinox_shift(key):
    return EquinoxShift(eqx.nn.Linear(IN, OUT, key=key), jnp.ones(IN))


@pytest.mark.parametrize(("adapt", "make"), [(from_nnx, NnxShift), (from_equinox, equinox_shift)])
def test_constants_are_selected_by_path_and_a_path_of_no_array_is_an_error(adapt, make):
    with pytest.raises(
        ValueError, match=r"under\('tabel'\) selects no array; the arrays are .*table"
    ):
        adapt(make, constants=under("tabel"))
    inputs = jnp.zeros((1, IN))
    free, fixed = adapt(make), adapt(make, constants=under("table"))
    params = [model.init(jax.random.key(0), inputs) for model in (free, fixed)]
    sizes = [sorted(leaf.size for leaf in jax.tree.leaves(p)) for p in params]
    assert sizes == [[OUT, IN, IN * OUT], [OUT, IN * OUT]]
    outputs = [model.apply(p, inputs) for model, p in zip((free, fixed), params, strict=True)]
    np.testing.assert_array_equal(*outputs)
