import importlib
import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.inner import argmin, conjugate_gradient, hessian_free, identity_solver, neumann

EIGENVALUES = np.array([0.3, 0.8, 1.1, 1.6, 2.9])


def matrix(eigenvalues):
    size = len(eigenvalues)
    basis, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(size, size)))
    return (basis * eigenvalues) @ basis.T


def as_tree(vector):
    return {"a": vector[:2], "b": vector[2:][None]}


def as_vector(tree):
    return jnp.concatenate([tree["a"], tree["b"][0]])


def system(eigenvalues=EIGENVALUES, dtype=None):
    """Makes a matrix and a target, and the product and the target as trees."""
    dense = jnp.asarray(matrix(eigenvalues), dtype)
    target = jnp.asarray(np.random.default_rng(1).normal(size=len(eigenvalues)), dtype)
    return dense, target, lambda tree: as_tree(dense @ as_vector(tree)), as_tree(target)


def error_of(solver, eigenvalues=EIGENVALUES, damping=0.0):
    dense, target, matvec, tree = system(eigenvalues)
    exact = np.linalg.solve(dense + damping * np.eye(len(dense)), target)
    value = as_vector(solver(matvec, tree).value)
    return np.linalg.norm(value - exact) / np.linalg.norm(exact)


def test_conjugate_gradients_are_exact_in_as_many_steps_as_dimensions(float64):
    errors = [error_of(conjugate_gradient(steps)) for steps in (2, 4, 5)]
    assert all(later < earlier for earlier, later in itertools.pairwise(errors))
    assert errors[1] > 1e-3
    assert errors[2] < 1e-13
    # Two distinct eigenvalues need two steps.
    assert error_of(conjugate_gradient(2), np.array([0.5, 0.5, 2.0, 2.0, 2.0])) < 1e-13


def test_damping_is_added_to_the_diagonal(float64):
    for solver in (
        conjugate_gradient(5, damping=0.7),
        neumann(200, learning_rate=0.4, damping=0.7),
    ):
        assert error_of(solver, damping=0.7) < 1e-13
        _, _, matvec, target = system()
        assert solver(matvec, target).residual < 1e-13


@pytest.mark.parametrize(
    "solver", [conjugate_gradient(3), neumann(3, learning_rate=0.4), identity_solver()]
)
def test_residuals_are_relative_to_the_target(float64, solver):
    dense, target, matvec, tree = system()
    found = solver(matvec, tree)
    rest = target - dense @ as_vector(found.value)
    expected = np.linalg.norm(rest) / np.linalg.norm(target)
    np.testing.assert_allclose(found.residual, expected, rtol=1e-12)
    nothing = solver(matvec, jax.tree.map(jnp.zeros_like, tree))
    assert nothing.residual == 0 and not np.any(as_vector(nothing.value))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_conjugate_gradients_stay_finite_once_they_are_there(dtype):
    _, _, matvec, target = system(np.array([0.5, 0.5, 2.0, 2.0, 2.0]), dtype)
    found = jax.jit(lambda target: conjugate_gradient(100)(matvec, target))(target)
    assert found.residual < 4 * jnp.finfo(dtype).eps
    assert found.value["a"].dtype == dtype
    # A multiple of the identity leaves a residual of exactly zero after one step.
    double = conjugate_gradient(5)(lambda tree: jax.tree.map(lambda x: 2 * x, tree), target)
    np.testing.assert_array_equal(as_vector(double.value), as_vector(target) / 2)


def test_conjugate_gradients_stop_where_the_curvature_is_negative():
    _, _, matvec, target = system(-EIGENVALUES)
    found = conjugate_gradient(5)(matvec, target)
    assert found.residual == 1 and not np.any(as_vector(found.value))


def test_a_matrix_of_nan_has_no_finite_solution():
    *_, target = system()
    found = conjugate_gradient(5)(lambda tree: jax.tree.map(lambda x: x * jnp.nan, tree), target)
    assert np.isnan(found.residual) and np.all(np.isnan(as_vector(found.value)))


def test_neumann_series_has_the_value_and_the_rate_of_a_geometric_one(float64):
    rate, steps = 0.6, 7
    for eigenvalue in EIGENVALUES:
        found = neumann(steps, learning_rate=rate)(lambda x, e=eigenvalue: e * x, jnp.ones(2))
        left = (1 - rate * eigenvalue) ** (steps + 1)
        np.testing.assert_allclose(found.value, (1 - left) / eigenvalue, rtol=1e-12)
        np.testing.assert_allclose(found.residual, abs(left), rtol=1e-12, atol=1e-15)
    errors = [error_of(neumann(steps, learning_rate=rate)) for steps in (100, 101)]
    slowest = np.max(np.abs(1 - rate * EIGENVALUES))
    np.testing.assert_allclose(errors[1] / errors[0], slowest, rtol=1e-6)


def test_identity_gives_the_target_back():
    _, target, matvec, tree = system()
    np.testing.assert_array_equal(as_vector(identity_solver()(matvec, tree).value), target)


def quadratic(params, operands):
    """Computes a |x - c|^2 / 2 + s |x - t|^2 / 2, with c from a table and c, s, t differentiable."""
    center = operands["centers"][operands["row"]]
    center = center + 0 * jax.random.normal(operands["key"], center.shape)
    pull = 0.5 * operands["strength"] * jnp.sum((params - operands["start"]) ** 2)
    return 0.5 * 0.7 * jnp.sum((params - center) ** 2) + pull


def solve_quadratic(operands, init=None):
    del init
    center = operands["centers"][operands["row"]]
    strength = operands["strength"]
    return (0.7 * center + strength * operands["start"]) / (0.7 + strength)


def quadratic_operands():
    return {
        "centers": jnp.array([[9.0, 9.0], [1.5, 0.3]]),
        "row": 1,
        "key": jax.random.key(0),
        "strength": jnp.asarray(1.3),
        "start": jnp.array([0.4, -2.0]),
    }


def found_from(start, floats, **options):
    operands = quadratic_operands() | floats
    return argmin(quadratic, solve_quadratic, start, operands, **options)


def test_implicit_derivatives_of_a_quadratic_in_closed_form(float64):
    # x = (a c + s t) / (a + s): dx/dt = s / (a + s), dx/dc = a / (a + s), dx/ds = (t - x) / (a + s).
    a, s, direction = 0.7, 1.3, jnp.array([1.0, -3.0])
    operands = quadratic_operands()
    floats = {name: operands[name] for name in ("centers", "strength", "start")}

    def outer(start, floats):
        return direction @ found_from(start, floats, solver=conjugate_gradient(1))

    for grad in (jax.grad(outer, (0, 1)), jax.jit(jax.grad(outer, (0, 1)))):
        of_start, grads = grad(jnp.zeros(2), floats)
        x = solve_quadratic(operands)
        of_center = np.stack([np.zeros(2), a / (a + s) * direction])
        np.testing.assert_allclose(grads["start"], s / (a + s) * direction, rtol=1e-14)
        np.testing.assert_allclose(grads["centers"], of_center, rtol=1e-14)
        of_strength = direction @ (operands["start"] - x) / (a + s)
        np.testing.assert_allclose(grads["strength"], of_strength, rtol=1e-13)
        np.testing.assert_array_equal(of_start, np.zeros(2))


def test_aux_values_are_returned_without_a_derivative():
    def solve(operands, init):
        start, count = init["start"], init["count"]
        return solve_quadratic(operands, start), {"count": count + operands["strength"] - 0.3}

    def count(strength):
        operands = quadratic_operands() | {"strength": strength}
        init = {"start": jnp.zeros(2), "count": jnp.float32(4)}
        return argmin(quadratic, solve, init, operands, has_aux=True)[1]["count"]

    value, grad = jax.value_and_grad(count)(jnp.float32(1.3))
    assert (value, grad) == (5, 0)


def gradient_with_tolerance(tolerance, solver):
    def outer(start):
        floats = {"start": start}
        found = found_from(jnp.zeros(2), floats, solver=solver, tolerance=tolerance)
        return jnp.sum(found**2)

    return jax.grad(outer)


TRANSFORMS = {
    "eager": lambda grad: grad(jnp.ones(2)),
    "jit": lambda grad: jax.jit(grad)(jnp.ones(2)),
    "vmap": lambda grad: jax.jit(jax.vmap(grad))(jnp.ones((3, 2))),
    "scan": lambda grad: jax.lax.scan(lambda _, x: (_, grad(x)), None, jnp.ones((3, 2)))[1],
}


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_residual_beyond_tolerance_is_warned_of(transform):
    # For the system 2 u = v, the identity solver leaves a residual of 1.
    grad = gradient_with_tolerance(0.5, identity_solver())
    with pytest.warns(RuntimeWarning, match=r"residual of 1, and 0\.5 is allowed; use more") as of:
        jax.block_until_ready(TRANSFORMS[transform](grad))
        jax.effects_barrier()
    assert len(of) == (3 if transform in ("vmap", "scan") else 1)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_residual_within_tolerance_is_not_warned_of(transform):
    for tolerance, solver in ((1e-4, conjugate_gradient(1)), (1.5, identity_solver())):
        TRANSFORMS[transform](gradient_with_tolerance(tolerance, solver))
        jax.effects_barrier()


def test_a_residual_of_nan_is_warned_of():
    def nan_solver(matvec, target):
        return identity_solver()(lambda tree: matvec(tree) * jnp.nan, target)

    with pytest.warns(RuntimeWarning, match="residual of nan, and 1e\\+09 is allowed"):
        gradient_with_tolerance(1e9, nan_solver)(jnp.ones(2))
        jax.effects_barrier()


def test_without_a_tolerance_no_callback_is_compiled():
    def calls_back(tolerance):
        grad = gradient_with_tolerance(tolerance, identity_solver())
        return "callback" in jax.jit(grad).lower(jnp.ones(2)).as_text()

    assert calls_back(0.5) and not calls_back(None)


def rosenbrock(params):
    return (1 - params[0]) ** 2 + 10 * (params[1] - params[0] ** 2) ** 2


def minimised(transform, value_fn, params, steps):
    for _ in range(steps):
        value, grads = jax.value_and_grad(value_fn)(params)
        updates, _ = transform.update(grads, (), params, value=value, value_fn=value_fn)
        params = params + updates
    return params


def test_hessian_free_minimises_a_quadratic_in_one_step(float64):
    dense, target, _, _ = system()
    params = minimised(
        hessian_free(5), lambda x: 0.5 * x @ dense @ x - target @ x, jnp.ones(5), steps=1
    )
    np.testing.assert_allclose(params, np.linalg.solve(dense, target), rtol=1e-12)


def test_hessian_free_minimises_a_curved_valley(float64):
    # Gradient descent is still underway after a thousand steps of the largest size that is stable.
    step = jax.jit(lambda x: minimised(hessian_free(2), rosenbrock, x, steps=1))
    params, values = jnp.array([-1.2, 1.0]), []
    for _ in range(25):
        params = step(params)
        values.append(float(rosenbrock(params)))
    np.testing.assert_allclose(params, [1.0, 1.0], rtol=1e-8)
    assert all(b <= a + 1e-14 for a, b in itertools.pairwise(values))


def test_hessian_free_descends_where_the_curvature_is_negative():
    # cos has negative curvature at 0.1: the step is along the gradient, and full.
    found = minimised(hessian_free(), lambda x: jnp.cos(x[0]), jnp.array([0.1]), steps=1)
    np.testing.assert_allclose(found, [0.1 + np.sin(0.1)], rtol=1e-6)


def test_hessian_free_stays_where_no_length_will_do():
    # The value jumps up as soon as anything moves.
    start = jnp.array([1.0])

    def jumping(x):
        return jnp.sum(x**2) + jnp.where(jnp.all(x == start), 0.0, 100.0)

    np.testing.assert_array_equal(minimised(hessian_free(), jumping, start, steps=1), start)


def test_hessian_free_halves_a_length_as_often_as_it_may(float64):
    # Newton's step from 0.9 is 8.6 long, and the first of its halves to lower the value is the third.
    start = jnp.array([0.9])
    length = 0.9 * (1 + 0.81) / (1 - 0.81)

    def found(backtracks):
        transform = hessian_free(backtracks=backtracks)
        return minimised(transform, lambda x: jnp.log1p(x[0] ** 2), start, steps=1)

    np.testing.assert_array_equal(found(2), start)
    np.testing.assert_allclose(found(3), start - length / 8, rtol=1e-12)


def test_wrong_options_raise():
    with pytest.raises(ValueError, match="steps of a linear solver are 0; use 1 or more"):
        conjugate_gradient(0)
    with pytest.raises(ValueError, match=r"damping is -0\.1; use 0 or more"):
        neumann(3, damping=-0.1)
    with pytest.raises(ValueError, match="learning_rate is 0; use one above 0 and below 2 /"):
        neumann(3, learning_rate=0)
    with pytest.raises(ValueError, match="backtracks is -1"):
        hessian_free(backtracks=-1)
    with pytest.raises(ValueError, match="tolerance is 0; use one above 0, or None"):
        found_from(jnp.zeros(2), {}, tolerance=0)


def ridge_objective(weights, operands):
    log_penalty, (inputs, targets) = operands
    errors = inputs @ weights["w"] - targets
    return jnp.sum(errors**2) + jnp.exp(log_penalty) * jnp.sum(weights["w"] ** 2)


def solve_ridge(operands, init):
    log_penalty, (inputs, targets) = operands
    gram = inputs.T @ inputs + jnp.exp(log_penalty) * jnp.eye(inputs.shape[1])
    return {"w": jnp.linalg.solve(gram, inputs.T @ targets)}


def test_ridge_regression_has_the_derivative_of_its_closed_form(float64):
    rng = np.random.default_rng(3)
    train = (jnp.asarray(rng.normal(size=(9, 4))), jnp.asarray(rng.normal(size=9)))
    direction = jnp.asarray(rng.normal(size=4))

    def implicit(operands):
        solver = conjugate_gradient(4)
        return direction @ argmin(ridge_objective, solve_ridge, (), operands, solver=solver)["w"]

    def closed(operands):
        return direction @ solve_ridge(operands, ())["w"]

    got, want = (jax.grad(outer)((jnp.asarray(0.3), train)) for outer in (implicit, closed))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12), got, want)


def test_wrong_functions_raise():
    with pytest.raises(ValueError, match=r"these leaves are not: count \(int32\)"):
        argmin(quadratic, lambda *args: {"count": jnp.int32(1)}, (), quadratic_operands())
    with pytest.raises(ValueError, match=r"solve returns dict; return a pair \(params, aux\)"):
        argmin(ridge_objective, lambda *args: {}, (), (), has_aux=True)
    with pytest.raises(ValueError, match=r"The loss has the shape \(2,\); return one scalar"):
        jax.grad(lambda x: jnp.sum(argmin(jnp.subtract, lambda x, _: x, (), x)))(jnp.ones(2))


def test_the_old_module_warns_and_has_the_names_of_the_three_new_ones(monkeypatch):
    monkeypatch.delitem(sys.modules, "metajax.inner.implicit", raising=False)
    with pytest.warns(DeprecationWarning, match=r"metajax\.inner\.implicit is now metajax\.inner;"):
        old = importlib.import_module("metajax.inner.implicit")
    new = (argmin, conjugate_gradient, hessian_free, neumann)
    assert (old.argmin, old.conjugate_gradient, old.hessian_free, old.neumann) == new
    with pytest.warns(DeprecationWarning, match="identity_solver"):
        assert old.identity is identity_solver
    with pytest.warns(
        DeprecationWarning, match=r"neumann\(rate=\.\.\.\) is now neumann\(learning_rate="
    ):
        neumann(3, rate=0.5)
