"""Neural processes: predictive distributions over functions, conditioned on points by a mean or by attention.

Letters: `X` numbers per input, `Y` targets per point, `E` numbers per code.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from metajax import nn, trees
from metajax.deprecation import renamed_arguments
from metajax.learners.states import (
    Examples,
    Kept,
    check_batch,
    exact,
    init_encoder,
    keeping,
    require_like,
    weights_of,
    zeros_of,
)
from metajax.losses import squared_error, weighted_mean
from metajax.types import Array, Batch, Key, Learner, Model, Params, Tree

# Smallest standard deviation. Without a bound, the likelihood of nearly constant targets, such as the
# background of drawings, grows indefinitely and dominates training. The papers' code has 0.1, which makes
# predictions with smaller errors too wide.
LEAST_STD = 0.01


class ProcessMeta(NamedTuple):
    """Meta-parameters of neural processes.

    Attributes:
      encoder: Parameters of the encoder of (input, target) pairs.
      decoder: Parameters of the decoder.
      attention: Parameters of the embedding of inputs, then weights of queries, keys and values; () for
        `cnp`.
    """

    encoder: Params
    decoder: Params
    attention: Params


class ConditionalFast(NamedTuple):
    """Fast state of the conditional neural process.

    Attributes:
      total: Weighted sum [E] of the codes of all points so far.
      weight: Total weight of the points, a scalar.
    """

    total: Array
    weight: Array


@renamed_arguments(values="num_outputs")
def cnp(
    encoder: Model, decoder: Model, *, num_outputs: int = 1
) -> Learner[ProcessMeta, ConditionalFast]:
    """Makes the conditional neural process: it predicts from the mean code of the support points.

    Each point is encoded separately, r_i = h(x_i, y_i), eq. 1; the mean r of the codes conditions the
    decoder, g(x, r). Inputs of any shape, or trees of arrays, are flattened to one row of X numbers per
    point.

    Args:
      encoder: Network h from pairs [B, X + Y] of input and target to codes [B, E].
      decoder: Network g from inputs with the mean code, [B, X + E], to outputs [B, 2 Y]: means, and raw
        values of standard deviations, as `mean_and_std` reads them.
      num_outputs: Number Y of targets per point.

    Returns:
      A learner with meta-parameters `ProcessMeta` and fast state `ConditionalFast`; train it with
      `gaussian_nll`. Neither the order of the points nor their division into pieces matters. Its `init`
      raises a ValueError if the outputs of the decoder are not [B, 2 Y].

    Example:
      >>> encoder, decoder = metajax.toys.toy_model(None), metajax.toys.toy_model(2)
      >>> x = jnp.linspace(-1, 1, 5)[:, None]
      >>> task = metajax.Episode(metajax.Batch(x, x**2), metajax.Batch(x + 0.1, (x + 0.1) ** 2))
      >>> learner = cnp(encoder, decoder)
      >>> meta = jax.eval_shape(learner.init, jax.random.key(0), x)
      >>> answer = lambda meta: metajax.objectives.query_outputs(learner, meta, jax.random.key(1), task)
      >>> jax.eval_shape(answer, meta).shape
      (5, 2)

    Reference: Garnelo et al., 2018 (https://arxiv.org/abs/1807.01613), eq. 1 to 3.
    """
    encoder = exact(encoder)

    def init(key: Key, inputs: Tree) -> ProcessMeta:
        return _init(key, _numbers(inputs), encoder, decoder, num_outputs)

    def sums(meta: ProcessMeta, batch: Batch) -> ConditionalFast:
        pairs = jnp.concatenate([_numbers(batch.inputs), batch.targets], axis=1)
        codes = encoder.apply(meta.encoder, pairs)
        weights = weights_of(batch, codes.dtype)
        return ConditionalFast(weights @ codes, jnp.sum(weights))

    def start(meta: ProcessMeta, key: Key, like: Batch | None = None) -> ConditionalFast:
        del key
        return zeros_of(jax.eval_shape(sums, meta, require_like(like)))

    def adapt(meta: ProcessMeta, fast: ConditionalFast, key: Key, batch: Batch) -> ConditionalFast:
        del key
        check_batch(batch, None)
        return jax.tree.map(jnp.add, fast, sums(meta, batch))

    def predict(meta: ProcessMeta, fast: ConditionalFast, inputs: Tree) -> Array:
        inputs, code = _numbers(inputs), fast.total / jnp.where(fast.weight > 0, fast.weight, 1)
        codes = jnp.broadcast_to(code, (len(inputs), code.shape[-1]))
        return decoder.apply(meta.decoder, jnp.concatenate([inputs, codes], axis=1))

    return Learner(init, start, adapt, predict)


@renamed_arguments(values="num_outputs")
def anp(
    encoder: Model, decoder: Model, embedding: Model, *, num_outputs: int = 1, heads: int = 4
) -> Learner[ProcessMeta, Kept]:
    """Makes the attentive neural process without latent variable: cross-attention replaces the mean code.

    The code of a query is multi-head attention over the codes of the support points, with keys and queries
    computed from embedded inputs: the deterministic path of the paper.

    Args:
      encoder: Network from pairs [B, X + Y] of input and target to codes [B, E], where `heads` divides E.
      decoder: Network from inputs with their codes, [B, X + E], to outputs [B, 2 Y], as in `cnp`.
      embedding: Network from inputs [B, X] to features, from which queries and keys are computed.
      num_outputs: Number Y of targets per point.
      heads: Number of attention heads.

    Returns:
      A learner with meta-parameters `ProcessMeta` and fast state `Kept`, whose features are inputs [C, X] and
      whose `made` are the codes [C, E]; train it with `gaussian_nll`. Neither the order of the points nor
      their division into pieces matters.

    Raises:
      ValueError: If `heads` is below 1; in `init`, if `heads` does not divide E or the outputs of the decoder
        are not [B, 2 Y].

    Example:
      >>> encoder, decoder = metajax.toys.toy_model(None), metajax.toys.toy_model(2)
      >>> x = jnp.linspace(-1, 1, 5)[:, None]
      >>> task = metajax.Episode(metajax.Batch(x, x**2), metajax.Batch(x + 0.1, (x + 0.1) ** 2))
      >>> learner = anp(encoder, decoder, metajax.toys.toy_model(None))
      >>> meta = jax.eval_shape(learner.init, jax.random.key(0), x)
      >>> answer = lambda meta: metajax.objectives.query_outputs(learner, meta, jax.random.key(1), task)
      >>> jax.eval_shape(answer, meta).shape
      (5, 2)

    Reference: Kim et al., 2019 (https://arxiv.org/abs/1901.05761), section 3 and, for its heads, appendix A.
    """
    if heads < 1:
        raise ValueError(f"heads is {heads}; use 1 or more.")
    encoder, embedding = exact(encoder), exact(embedding)

    def init(key: Key, inputs: Tree) -> ProcessMeta:
        inputs = _numbers(inputs)
        process_key, embedding_key, heads_key = jax.random.split(key, 3)
        meta = _init(process_key, inputs, encoder, decoder, num_outputs)
        params, embedded, _ = init_encoder(embedding, embedding_key, inputs)
        codes = jax.eval_shape(encoder.apply, meta.encoder, _blank_pairs(inputs, num_outputs))
        sizes = [embedded, embedded, codes.shape[1]]
        if codes.shape[1] % heads:
            raise ValueError(
                f"{heads} heads do not divide codes of {codes.shape[1]}; use a divisor."
            )
        glorot, keys = jax.nn.initializers.glorot_uniform(), jax.random.split(heads_key, 3)
        made = [
            glorot(k, (size, codes.shape[1]), codes.dtype)
            for k, size in zip(keys, sizes, strict=True)
        ]
        return meta._replace(attention=(params, *made))

    def encode(meta: ProcessMeta, key: Key, examples: Examples) -> Array:
        del key
        pairs = jnp.concatenate([examples.features, examples.targets], axis=1)
        return encoder.apply(meta.encoder, pairs)

    def predict(meta: ProcessMeta, fast: Kept, inputs: Tree) -> Array:
        params, for_queries, for_keys, for_values = meta.attention
        inputs = _numbers(inputs)
        # Cross-attention of queries to support points: r(x) = sum_i softmax_i(q(x) k(x_i) / sqrt(E)) v(r_i).
        codes = nn.attend(
            embedding.apply(params, inputs) @ for_queries,
            embedding.apply(params, fast.examples.features) @ for_keys,
            fast.made @ for_values,
            heads=heads,
            seen=fast.examples.weights > 0,
        )
        return decoder.apply(meta.decoder, jnp.concatenate([inputs, codes], axis=1))

    return Learner(init, *keeping(lambda meta, inputs: _numbers(inputs), None, encode), predict)


def gaussian_nll(outputs: Array, batch: Batch) -> Array:
    """Computes the negative log-likelihood of targets under independent normal distributions.

    Args:
      outputs: Float outputs [B, 2 Y], as `mean_and_std` reads them.
      batch: Points with targets [B, Y].

    Returns:
      A scalar in nats per point: the sum over the Y targets of a point, averaged over points.

    Raises:
      ValueError: If the shape of the targets is not [B, Y].

    Example:
      >>> batch = metajax.Batch(None, jnp.zeros((4, 1)))
      >>> round(float(gaussian_nll(jnp.zeros((4, 2)), batch)), 3)
      0.557

    Reference: Garnelo et al., 2018 (https://arxiv.org/abs/1807.01613), eq. 4.
    """
    mean, std = mean_and_std(outputs)
    if jnp.shape(batch.targets) != mean.shape:
        raise ValueError(
            f"targets are of shape {jnp.shape(batch.targets)}, and outputs {outputs.shape} are of values "
            f"{mean.shape}; use targets of that shape."
        )
    losses = jnp.square((batch.targets - mean) / std) / 2 + jnp.log(std) + jnp.log(2 * jnp.pi) / 2
    return weighted_mean(jnp.sum(losses, axis=-1), batch.weights)


def mean_and_std(outputs: Array) -> tuple[Array, Array]:
    """Splits outputs into means and standard deviations.

    The standard deviation is 0.01 + 0.99 softplus(raw), so the log-likelihood of a target is at most 3.69
    nats. The bound suits targets of about unit scale.

    Args:
      outputs: Float outputs [..., 2 Y]: means, then raw values of standard deviations.

    Returns:
      Means and standard deviations, [..., Y] each, float32 at least.
    """
    mean, raw = jnp.split(outputs.astype(trees.float_dtype(outputs)), 2, axis=-1)
    return mean, LEAST_STD + (1 - LEAST_STD) * jax.nn.softplus(raw)


def mean_error(outputs: Array, batch: Batch) -> Array:
    """Computes the squared error of the predicted means.

    Args:
      outputs: Float outputs [B, 2 Y], as `mean_and_std` reads them.
      batch: Points with targets [B, Y].

    Returns:
      A scalar, as `losses.squared_error` computes it.
    """
    return squared_error(mean_and_std(outputs)[0], batch)


def log_likelihood(outputs: Array, batch: Batch) -> Array:
    """Computes the mean log-likelihood of targets: minus `gaussian_nll`.

    Args:
      outputs: Float outputs [B, 2 Y], as `mean_and_std` reads them.
      batch: Points with targets [B, Y].

    Returns:
      A scalar in nats per point.
    """
    return -gaussian_nll(outputs, batch)


def mixture(outputs: Array) -> Array:
    """Combines the members' distributions into a normal distribution with the moments of their mixture.

    Args:
      outputs: Float outputs [M, B, 2 Y] of the members.

    Returns:
      Outputs [B, 2 Y], as `mean_and_std` reads them.
    """
    chex.assert_rank(outputs, 3)
    mean, std = mean_and_std(outputs)
    middle = jnp.mean(mean, axis=0)
    # Var = E[std^2 + mean^2] - E[mean]^2.
    variance = jnp.mean(jnp.square(std) + jnp.square(mean), axis=0) - jnp.square(middle)
    scaled = (jnp.sqrt(variance) - LEAST_STD) / (1 - LEAST_STD)
    # Inverse of softplus, log(exp(s) - 1) = s + log(1 - exp(-s)). Rounding may bring s to zero or below.
    scaled = jnp.maximum(scaled, 1e-6)
    raw = scaled + jnp.log(-jnp.expm1(-scaled))
    return jnp.concatenate([middle, raw], axis=-1)


def _blank_pairs(inputs: Array, num_outputs: int) -> Array:
    """Appends targets of zeros to inputs [B, X], for the shapes of pairs [B, X + Y]."""
    return jnp.pad(inputs, ((0, 0), (0, num_outputs)))


def _numbers(inputs: Tree) -> Array:
    """Flattens a tree of inputs [B, ...] to numbers [B, X]; integers, such as pixels, become float32."""
    count, dtype = trees.count(inputs), trees.float_dtype(inputs)
    rows = (jnp.reshape(leaf, (count, -1)).astype(dtype) for leaf in jax.tree.leaves(inputs))
    return jnp.concatenate(list(rows), axis=1)


def _init(key: Key, inputs: Array, encoder: Model, decoder: Model, num_outputs: int) -> ProcessMeta:
    """Initializes encoder and decoder; raises a ValueError if the decoder has other outputs than 2 Y."""
    encoder_key, decoder_key = jax.random.split(key)
    pairs = _blank_pairs(inputs, num_outputs)
    params, size, dtype = init_encoder(encoder, encoder_key, pairs)
    read = jnp.zeros((len(inputs), inputs.shape[1] + size), dtype)
    meta = ProcessMeta(params, trees.require_floats(decoder.init(decoder_key, read)), ())
    given = jax.eval_shape(decoder.apply, meta.decoder, read).shape[1]
    if given != 2 * num_outputs:
        raise ValueError(
            f"The decoder gives {given} numbers, and {num_outputs} values have {2 * num_outputs}, a mean "
            f"and a standard deviation each; use a decoder with {2 * num_outputs} outputs."
        )
    return meta
