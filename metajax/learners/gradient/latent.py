"""Latent embedding optimization (LEO): gradient descent on a latent code per class, then on the linear head.

The letter `Z` is the size of a code.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from metajax.deprecation import renamed_arguments
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
    """Meta-parameters of LEO.

    Attributes:
      params: Parameters of the network that computes features.
      encoder: Linear map [D, Z] from features to embeddings.
      relation: Three layers [3, 2 Z, 2 Z] of the relation network, which reads pairs of embeddings.
      decoder: Linear map [Z, 2 D] from codes to means and log standard deviations of head weights.
      code_rate: Step sizes [Z] of codes.
      head_rate: Step sizes [D] of head weights.
    """

    params: Params
    encoder: Array
    relation: Array
    decoder: Array
    code_rate: Array
    head_rate: Array


class LeoFast(NamedTuple):
    """Fast state of LEO; zeros before the first `adapt`.

    Attributes:
      codes: Adapted codes [N, Z].
      encoded: Codes [N, Z] before any inner step.
      head: Weights [N, D] of the linear head.
      noise: Standard normal noise [N, D] with which codes are decoded, kept so that continuing is
        deterministic.
      kl: KL divergence of the distribution of codes from the prior, in nats per dimension, a scalar.
      calls: Number of calls of `adapt` so far, an int scalar; only the first encodes.
    """

    codes: Array
    encoded: Array
    head: Array
    noise: Array
    kl: Array
    calls: Array


class _Operands(NamedTuple):
    """Operands of the inner steps.

    Attributes:
      learning_rate: Step sizes, [Z] for codes or [D] for head weights.
      features: Support features [B, D].
      batch: Support set.
      decoder: Decoder [Z, 2 D].
      noise: Noise [N, D] of decoding.
      shift: Difference [N, D] of the head from its decoded codes.
    """

    learning_rate: Array
    features: Array
    batch: Batch
    decoder: Array
    noise: Array
    shift: Array


@renamed_arguments(rate="learning_rate")
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
    """Adapts a latent code per class by inner steps, then the linear head that the codes decode to.

    An encoder and a relation network map the support set to a normal distribution of a code z_n per class,
    and a decoder maps z_n to a normal distribution of the head weights w_n (section 2.3.1). Inner steps
    descend on z (section 2.3.2), then on w.

    Learners that differ only in `steps`, `finetune_steps` and `stochastic` share their meta-parameters. A
    further call of `adapt` continues from the current codes and head; the difference of the head from its
    decoded codes is kept, and added to the head that new codes decode to. Piece by piece, each piece is
    adapted to by itself, after the one before.

    For an output s of the networks, the standard deviation is exp(s) of codes and exp(s) sqrt(2 / (N + D)) of
    head weights. The reference code (https://github.com/google-deepmind/leo) instead adds 0 - 1, or that root
    - 1, to exp(s) and clips at 1e-10, where derivatives vanish. It also applies dropout to features, and
    draws a code per shot, whose logits it averages; here, as in the paper, there is a code per class.

    Args:
      encoder: Network without a head, with features [B, D]; frozen in the paper, here trained with the rest.
      loss: Inner loss of logits [B, N].
      ways: Number of classes N. A class without examples has a code drawn from the prior.
      latent: Size Z of a code.
      steps: Number of inner steps on codes per call of `adapt`.
      finetune_steps: Number of inner steps on the head after them.
      learning_rate: Initial value of the step sizes of codes, which are learned, one per dimension. The
        reference code has 1.0 for the sum of N K losses divided by K; for a mean, as here, the equivalent is
        N times larger.
      finetune_rate: Initial value of the step sizes of head weights, likewise; 0.001 in the reference code.
      stochastic: Whether codes and head weights are drawn from their distributions. False uses the means, as
        the reference code does in evaluation; the key of `adapt` is then unused.
      adjoint: Method to differentiate through the steps; `metajax.ADJOINTS` lists them.

    Returns:
      A learner with meta-parameters `LeoMeta` and fast state `LeoFast`. Train it with
      `Scoring(loss, penalty=leo_penalty)`.

    Raises:
      ValueError: If `ways`, `latent`, `steps` or `finetune_steps` is too small.

    Example:
      >>> task = metajax.toys.toy_episode(jax.random.key(0), ways=3)
      >>> learner = leo(metajax.toys.toy_model(None), metajax.cross_entropy, ways=3, latent=4)
      >>> meta = jax.eval_shape(learner.init, jax.random.key(1), task.support.inputs)
      >>> answer = lambda meta: metajax.objectives.query_outputs(learner, meta, jax.random.key(2), task)
      >>> jax.eval_shape(answer, meta).shape
      (12, 3)

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
        """Draws codes z = mean + exp(log_std) * noise, and decodes them to head weights."""
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
        # The part of the head that its codes do not explain. On the first call it is exactly zero, where the
        # subtraction could leave rounding error.
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
    """Computes the regularization of LEO: eq. 6 without its first term, the query loss.

    Defaults and reductions follow the reference code, which has means where the paper has sums.

    Args:
      meta: Meta-parameters.
      fast: Adapted fast state.
      kl: Weight beta of the KL divergence of the codes from the standard normal prior, a mean over
        dimensions.
      encoder: Weight gamma of the mean squared distance that inner steps moved the codes. The adapted codes
        count as constants, toward which the encoding is pulled.
      l2: Weight lambda_1 of half the sum of squares of encoder, relation network and decoder.
      orthogonality: Weight lambda_2 of the mean squared difference of the correlation matrix of the decoder's
        rows from the identity.

    Returns:
      The penalty, a scalar, for `Scoring(loss, penalty=leo_penalty)`.

    Example:
      >>> task = metajax.toys.toy_episode(jax.random.key(0), ways=3)
      >>> learner = metajax.learners.leo(
      ...     metajax.toys.toy_model(None), metajax.cross_entropy, ways=3, latent=4)
      >>> scoring = metajax.Scoring(metajax.cross_entropy, penalty=leo_penalty)
      >>> meta = jax.eval_shape(learner.init, jax.random.key(1), task.support.inputs)
      >>> objective = metajax.query_objective(learner, scoring)
      >>> loss, metrics = jax.eval_shape(objective, meta, jax.random.key(2), task)
      >>> sorted(metrics)
      ['loss', 'penalty']

    Reference: Rusu et al., 2019 (https://arxiv.org/abs/1807.05960), eq. 6 and the definition of R below it.
    """
    moved = jnp.mean(jnp.square(jax.lax.stop_gradient(fast.codes) - fast.encoded))
    weights = (meta.encoder, meta.relation, meta.decoder)
    squares = sum(jnp.sum(jnp.square(leaf)) for leaf in weights) / 2
    correlation = _row_correlation(meta.decoder)
    return kl * fast.kl + encoder * moved + l2 * squares + orthogonality * correlation


def _distribution(meta: LeoMeta, features: Array, batch: Batch, ways: int) -> list[Array]:
    """Computes means and log standard deviations [N, Z] of codes.

    Each is a mean over the pairs of an example of the class with any example (section 2.3.1 of the paper).
    """
    chex.assert_rank(features, 2)
    weights = weights_of(batch, features.dtype)
    members = labels_of(batch, ways, features.dtype).T * weights
    embeddings = features @ meta.encoder
    first, second, last = meta.relation
    # The first layer reads the concatenation of a pair: [a, b] W = a W_1 + b W_2, computed per example.
    left, right = (embeddings @ half for half in jnp.split(first, 2))
    hidden = jax.nn.relu(left[:, None] + right[None])  # [B, B, 2 Z]
    hidden = jax.nn.relu(hidden @ second)
    # The last layer is linear, so it can be applied after the means over pairs.
    related = jnp.einsum("bcd,c->bd", hidden, _shares(weights))
    return jnp.split(_shares(members) @ related @ last, 2, axis=-1)


def _shares(weights: Array) -> Array:
    """Normalizes weights [..., B] to a sum of one; zeros if all are zero."""
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return weights / jnp.where(total > 0, total, 1)


def _decode(decoder: Array, codes: Array, noise: Array) -> Array:
    """Decodes codes [N, Z] to head weights [N, D], with standard normal noise [N, D]."""
    means, log_stds = jnp.split(codes @ decoder, 2, axis=-1)
    # sqrt(2 / (N + D)) is the standard deviation of Glorot's initialization of a head [N, D].
    return means + (2 / sum(noise.shape)) ** 0.5 * jnp.exp(log_stds) * noise


def _update(operands: _Operands, grads: Array, params: Array, state: tuple) -> tuple[Array, tuple]:
    """Takes a step of gradient descent with a step size per dimension."""
    return params - operands.learning_rate * grads, state


def _kl_to_prior(means: Array, log_stds: Array) -> Array:
    """Computes the KL divergence of N(means, exp(log_stds)^2) from N(0, 1), in nats per dimension."""
    return jnp.mean((jnp.square(means) + jnp.exp(2 * log_stds) - 1) / 2 - log_stds)


def _row_correlation(matrix: Array) -> Array:
    """Computes the mean squared difference of the correlations between rows from the identity."""
    squares = jnp.sum(jnp.square(matrix), axis=1, keepdims=True)
    # Bounded inside the root, whose derivative at zero is infinite.
    rows = matrix * jax.lax.rsqrt(jnp.maximum(squares, jnp.finfo(matrix.dtype).eps ** 2))
    return jnp.mean(jnp.square(rows @ rows.T - jnp.eye(len(matrix), dtype=matrix.dtype)))
