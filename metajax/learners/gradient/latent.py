"""Latent embedding optimisation: gradient descent on codes of a linear head, then on the head itself."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from metajax.inner.adjoints import ADJOINTS, Adjoint, unroll
from metajax.inner.mixed import InnerLoss
from metajax.learners.states import (
    check_batch,
    exact,
    init_encoder,
    labels_of,
    skipping_empty,
    weights_of,
)
from metajax.types import Array, Batch, Key, Learner, LossFn, Model, Params, Tree


class LeoMeta(NamedTuple):
    """What is learned across tasks; `latent` is the size of a code.

    Attributes:
      params: of the model that gives features.
      encoder: [D, latent] features to embeddings.
      relation: [3, 2 latent, 2 latent] layers of the relation network, which reads two embeddings.
      decoder: [latent, 2 D] codes to the mean and the log standard deviation of head weights.
      code_rate: [latent] step sizes of codes.
      head_rate: [D] step sizes of head weights.
    """

    params: Params
    encoder: Array
    relation: Array
    decoder: Array
    code_rate: Array
    head_rate: Array


class LeoFast(NamedTuple):
    """What one task leaves behind; zeros before the first `adapt`.

    Attributes:
      codes: [N, latent] adapted codes.
      encoded: [N, latent] codes before any inner step.
      head: [N, D] weights of the linear head.
      noise: [N, D] the draw with which codes are decoded, kept so that continuing is deterministic.
      kl: from the distribution of codes to the prior, nats a dimension.
      calls: how often the task has adapted, int; the first time encodes.
    """

    codes: Array
    encoded: Array
    head: Array
    noise: Array
    kl: Array
    calls: Array


class _Operands(NamedTuple):
    learning_rate: Array
    features: Array
    batch: Batch
    decoder: Array
    noise: Array
    shift: Array


def leo(
    encoder: Model,
    loss: LossFn,
    *,
    ways: int,
    latent: int = 64,
    steps: int = 5,
    finetune_steps: int = 5,
    learning_rate: float = 1.0,
    finetune_rate: float = 1e-3,
    stochastic: bool = True,
    adjoint: Adjoint = ADJOINTS["reverse"],
) -> Learner[LeoMeta, LeoFast]:
    """Adapts by inner steps on a code a class, then on the linear head that the codes decode to.

    Learners that differ in `steps`, `finetune_steps` and `stochastic` alone share their meta-parameters.
    Called again, `adapt` goes on from the codes and the head it has: what the head gained over its codes is
    kept, and added to whatever they decode to. In pieces, each is adapted to by itself, after the one before.

    Where the networks say s, standard deviations are exp(s) of codes and exp(s) sqrt(2 / (N + D)) of weights.
    The reference code (https://github.com/google-deepmind/leo) adds 0 - 1 or that root - 1 to exp(s) and
    clips at 1e-10, where derivatives end. It also drops out features, and draws a code a shot, whose logits
    it averages; this, as the paper, draws a code a class.

    Args:
      encoder: gives features [B, D], without a head; in the paper frozen, here trained with the rest.
      loss: the inner loss, of logits [B, N].
      ways: N. A class without examples has the code of the prior.
      latent: the size of a code.
      steps: inner steps on codes, each call of `adapt`.
      finetune_steps: inner steps on the head after those.
      learning_rate: where the step sizes of codes start; they are learned, one a dimension. The reference
        code has 1.0 for the sum over N K examples divided by K: for a mean, as here, that is N times
        larger.
      finetune_rate: where those of the head start; likewise, and there 0.001.
      stochastic: draw codes and head weights from their distributions. False takes the means, as the
        reference code does to evaluate; the key of `adapt` is then not used.
      adjoint: how to differentiate through the steps.

    Returns:
      A learner with `LeoMeta` and `LeoFast`; train it on a `Scoring` with `penalty=leo_penalty`.

    Reference: Rusu et al., 2019 (https://arxiv.org/abs/1807.05960), section 2.3 and algorithm 1.
    """
    given = {"ways": ways, "latent": latent, "steps": steps, "finetune_steps": finetune_steps}
    for (name, value), least in zip(given.items(), (2, 1, 0, 0), strict=True):
        if value < least:
            raise ValueError(f"{name} is {value}; use {least} or more.")
    encoder = exact(encoder)

    def init(key: Key, inputs: Tree) -> LeoMeta:
        params_key, encoder_key, relation_key, decoder_key = jax.random.split(key, 4)
        params, dim, dtype = init_encoder(encoder, params_key, inputs)
        glorot = jax.nn.initializers.glorot_uniform
        return LeoMeta(
            params,
            glorot()(encoder_key, (dim, latent), dtype),
            glorot(batch_axis=0)(relation_key, (3, 2 * latent, 2 * latent), dtype),
            glorot()(decoder_key, (latent, 2 * dim), dtype),
            jnp.full(latent, learning_rate, dtype),
            jnp.full(dim, finetune_rate, dtype),
        )

    def start(meta: LeoMeta, key: Key, like: Batch | None = None) -> LeoFast:
        del key, like
        dim, dtype = meta.encoder.shape[0], meta.encoder.dtype
        codes, head = jnp.zeros((ways, latent), dtype), jnp.zeros((ways, dim), dtype)
        return LeoFast(codes, codes, head, head, jnp.zeros((), dtype), jnp.int32(0))

    def encode(meta: LeoMeta, key: Key, features: Array, batch: Batch) -> LeoFast:
        code_key, head_key = jax.random.split(key)
        means, log_stds = _distribution(meta, features, batch, ways)
        codes, noise = means, jnp.zeros((ways, features.shape[1]), features.dtype)
        if stochastic:
            codes += jnp.exp(log_stds) * jax.random.normal(code_key, means.shape, means.dtype)
            noise = jax.random.normal(head_key, noise.shape, noise.dtype)
        head = _decode(meta.decoder, codes, noise)
        return LeoFast(codes, codes, head, noise, _kl_to_prior(means, log_stds), jnp.int32(0))

    def code_loss(codes: Array, operands: _Operands) -> Array:
        head = _decode(operands.decoder, codes, operands.noise) + operands.shift
        return head_loss(head, operands)

    def head_loss(head: Array, operands: _Operands) -> Array:
        return loss(operands.features @ head.T, operands.batch)

    def descend(loss: InnerLoss, start: Array, operands: _Operands, *, steps: int) -> Array:
        return unroll(loss, _update, start, (), operands, steps=steps, adjoint=adjoint)[0]

    def adapt(meta: LeoMeta, fast: LeoFast, key: Key, batch: Batch) -> LeoFast:
        check_batch(batch, ways)
        features, first = encoder.apply(meta.params, batch.inputs), fast.calls == 0
        fresh = encode(meta, key, features, batch)
        fast = jax.tree.map(lambda new, old: jnp.where(first, new, old), fresh, fast)
        # What the head gained over its codes; the first time exactly nothing, without rounding.
        shift = fast.head - _decode(meta.decoder, fast.codes, fast.noise)
        shift = jnp.where(first, jnp.zeros_like(shift), shift)
        operands = _Operands(meta.code_rate, features, batch, meta.decoder, fast.noise, shift)
        codes = descend(code_loss, fast.codes, operands, steps=steps)
        operands = operands._replace(learning_rate=meta.head_rate)
        head = _decode(meta.decoder, codes, fast.noise) + shift
        head = descend(head_loss, head, operands, steps=finetune_steps)
        return fast._replace(codes=codes, head=head, calls=fast.calls + 1)

    def predict(meta: LeoMeta, fast: LeoFast, inputs: Tree) -> Array:
        return encoder.apply(meta.params, inputs) @ fast.head.T

    adapt_or_skip = skipping_empty(adapt, predict, loss)
    return Learner(init, start, adapt_or_skip, predict, lambda fast: (fast.codes, fast.head))


def leo_penalty(
    meta: LeoMeta,
    fast: LeoFast,
    *,
    kl: float = 1e-3,
    encoder: float = 1e-9,
    l2: float = 1e-8,
    orthogonality: float = 1e-3,
) -> Array:
    """What is added to the query loss: eq. 6 of LEO but for its first term.

    Defaults and reductions are those of the reference code: means, where the paper writes sums.

    Args:
      meta: the meta-parameters.
      fast: an adapted state.
      kl: beta, of the mean divergence of codes from the standard normal prior.
      encoder: gamma, of the mean square of how far inner steps moved the codes; where they arrived is taken
        for a constant, towards which the encoding is pulled.
      l2: lambda 1, of half the sum of squares of encoder, relation network and decoder.
      orthogonality: lambda 2, of the mean squared difference between the correlations of the decoder's rows
        and the identity.

    Reference: Rusu et al., 2019 (https://arxiv.org/abs/1807.05960), eq. 6 and the definition of R below it.
    """
    moved = jnp.mean(jnp.square(jax.lax.stop_gradient(fast.codes) - fast.encoded))
    weights = (meta.encoder, meta.relation, meta.decoder)
    squares = sum(jnp.sum(jnp.square(leaf)) for leaf in weights) / 2
    correlation = _row_correlation(meta.decoder)
    return kl * fast.kl + encoder * moved + l2 * squares + orthogonality * correlation


def _distribution(meta: LeoMeta, features: Array, batch: Batch, ways: int) -> list[Array]:
    """Means and log standard deviations [N, latent] of codes.

    Each is a mean over pairs: an example of the class, and any.
    """
    chex.assert_rank(features, 2)
    weights = weights_of(batch, features.dtype)
    members = labels_of(batch, ways, features.dtype).T * weights
    embeddings = features @ meta.encoder
    first, second, last = meta.relation
    # The first layer reads a pair's concatenation: the sum of what it makes of either.
    left, right = (embeddings @ half for half in jnp.split(first, 2))
    hidden = jax.nn.relu(left[:, None] + right[None])  # [B, B, 2 latent]
    hidden = jax.nn.relu(hidden @ second)
    # The last layer is linear, so that it may follow the means.
    related = jnp.einsum("bcd,c->bd", hidden, _shares(weights))
    return jnp.split(_shares(members) @ related @ last, 2, axis=-1)


def _shares(weights: Array) -> Array:
    """Divides weights [..., B] by their sum; where all are zero, so are the shares."""
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return weights / jnp.where(total > 0, total, 1)


def _decode(decoder: Array, codes: Array, noise: Array) -> Array:
    """Head weights [N, D] from codes [N, latent] and standard normal noise [N, D]."""
    means, log_stds = jnp.split(codes @ decoder, 2, axis=-1)
    return means + (2 / sum(noise.shape)) ** 0.5 * jnp.exp(log_stds) * noise


def _update(operands: _Operands, grads: Array, params: Array, state: tuple) -> tuple[Array, tuple]:
    return params - operands.learning_rate * grads, state


def _kl_to_prior(means: Array, log_stds: Array) -> Array:
    """KL divergence of N(means, exp(log_stds)^2) from N(0, 1), the mean over dimensions, in nats."""
    return jnp.mean((jnp.square(means) + jnp.exp(2 * log_stds) - 1) / 2 - log_stds)


def _row_correlation(matrix: Array) -> Array:
    """Mean squared difference of the correlations between rows from the identity."""
    squares = jnp.sum(jnp.square(matrix), axis=1, keepdims=True)
    # Bounded inside the root, whose derivative at zero is infinite.
    rows = matrix * jax.lax.rsqrt(jnp.maximum(squares, jnp.finfo(matrix.dtype).eps ** 2))
    return jnp.mean(jnp.square(rows @ rows.T - jnp.eye(len(matrix), dtype=matrix.dtype)))
