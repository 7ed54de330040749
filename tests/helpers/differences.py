"""Gradients against central differences, for tests in float64."""

import jax
import jax.numpy as jnp
import numpy as np


def relative_error(loss, tree, *, nudge=1e-5):
    """How far the gradient of a scalar function is from central differences in every coordinate of a tree."""
    flat, unravel = jax.flatten_util.ravel_pytree(tree)
    nudges = nudge * jnp.eye(flat.size)
    values = jax.jit(jax.vmap(lambda flat: loss(unravel(flat))))
    differences = (values(flat + nudges) - values(flat - nudges)) / (2 * nudge)
    measured = jax.jit(jax.grad(lambda flat: loss(unravel(flat))))(flat)
    return jnp.linalg.norm(measured - differences) / jnp.linalg.norm(differences)


def noisy(tree, size):
    """Moves every number a little, away from where zeros and identities hide parts of a derivative."""
    rng = np.random.default_rng(7)
    return jax.tree.map(
        lambda x: jnp.asarray(np.asarray(x) + size * rng.normal(size=x.shape), x.dtype), tree
    )
