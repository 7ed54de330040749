"""Neural processes: distributions over functions, conditioned on points by a mean or by attention."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from metajax import nn, trees
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

# Without a bound the likelihood of what is nearly constant, such as the ground of drawings, grows on and on
# and is all that training sees. The papers' code has 0.1, by which what errs by less is told too widely.
LEAST_STD = 0.01


class ProcessMeta(NamedTuple):
    """What is learned across tasks: what encodes pairs, what decodes, and what tells inputs alike."""

    encoder: Params
    decoder: Params
    attention: Params


class ConditionalFast(NamedTuple):
    """Weighted sum [E] of the codes of a task's points, and their weight, a scalar."""

    total: Array
    weight: Array


def cnp(
    encoder: Model, decoder: Model, *, num_outputs: int = 1
) -> Learner[ProcessMeta, ConditionalFast]:
    """Conditional neural process: a point is encoded by itself, the mean of the codes tells the function.

    All networks read inputs of one point as one row of X numbers: arrays of any shape, and all of a tree.

    Args:
      encoder: takes pairs [B, X + Y] of inputs and targets, gives codes [B, E].
      decoder: takes [B, X + E], inputs and the mean code, gives [B, 2 Y], means and raw deviations: see
        `mean_and_std`.
      num_outputs: Y, numbers in a target.

    Returns:
      A learner with `ProcessMeta` and `ConditionalFast`; train it on `gaussian_nll`. The order of the points,
      and in which pieces they come, change nothing.

    Raises:
      ValueError: by `init`, if the decoder gives no 2 Y numbers.

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


def anp(
    encoder: Model, decoder: Model, embedding: Model, *, num_outputs: int = 1, heads: int = 4
) -> Learner[ProcessMeta, Kept]:
    """Attentive neural process without its latent variable: the mean of codes is one by attention.

    Args:
      encoder: as of `cnp`; the heads divide its codes' E.
      decoder: as of `cnp`.
      embedding: takes inputs [B, X], gives [B, E]: what queries and keys of attention are made of.
      num_outputs: Y, numbers in a target.
      heads: of attention.

    Returns:
      A learner with `ProcessMeta` and `Kept`, whose features are inputs [C, X], and which has made the codes
      [C, E]; train it on `gaussian_nll`. The order of the points, and in which pieces they come, change
      nothing.

    Raises:
      ValueError: if there is no head; by `init`, if heads do not divide the codes, or the decoder gives no
        2 Y numbers.

    Reference: Kim et al., 2019 (https://arxiv.org/abs/1901.05761), section 3 and, for its heads, appendix A;
    the deterministic path alone.
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
    """Negative log-likelihood of targets under independent normal distributions, in nats a point.

    That is the sum over the Y values of a point, and the mean over points.

    Args:
      outputs: [B, 2 Y], of which `mean_and_std` are the parameters.
      batch: `targets` [B, Y].

    Raises:
      ValueError: for targets of another shape than the means.
    """
    mean, std = mean_and_std(outputs)
    if jnp.shape(batch.targets) != mean.shape:
        raise ValueError(
            f"targets are of shape {jnp.shape(batch.targets)}, and outputs {outputs.shape} are of values "
            f"{mean.shape}; use that shape."
        )
    losses = jnp.square((batch.targets - mean) / std) / 2 + jnp.log(std) + jnp.log(2 * jnp.pi) / 2
    return weighted_mean(jnp.sum(losses, axis=-1), batch.weights)


def mean_and_std(outputs: Array) -> tuple[Array, Array]:
    """Splits outputs [..., 2 Y] into means and standard deviations [..., Y], of which none is below 0.01.

    So no value is likelier than 3.69 nats. The bound is for targets of about the size of one.
    """
    mean, raw = jnp.split(outputs.astype(trees.float_dtype(outputs)), 2, axis=-1)
    return mean, LEAST_STD + (1 - LEAST_STD) * jax.nn.softplus(raw)


def mean_error(outputs: Array, batch: Batch) -> Array:
    """Squared error of the means [B, Y], as `losses.squared_error`."""
    return squared_error(mean_and_std(outputs)[0], batch)


def log_likelihood(outputs: Array, batch: Batch) -> Array:
    """The mean log-likelihood of targets, in nats a point: minus `gaussian_nll`."""
    return -gaussian_nll(outputs, batch)


def mixture(outputs: Array) -> Array:
    """Combines members' outputs [M, B, 2 Y]: mean and deviation of the mixture of their distributions."""
    mean, std = mean_and_std(outputs)
    middle = jnp.mean(mean, axis=0)
    variance = jnp.mean(jnp.square(std) + jnp.square(mean), axis=0) - jnp.square(middle)
    scaled = (jnp.sqrt(variance) - LEAST_STD) / (1 - LEAST_STD)
    # The inverse of softplus; rounding alone could bring the mixture under its members.
    scaled = jnp.maximum(scaled, 1e-6)
    raw = scaled + jnp.log(-jnp.expm1(-scaled))
    return jnp.concatenate([middle, raw], axis=-1)


def _blank_pairs(inputs: Array, num_outputs: int) -> Array:
    """Pairs [B, X + Y] of inputs and zeros."""
    return jnp.pad(inputs, ((0, 0), (0, num_outputs)))


def _numbers(inputs: Tree) -> Array:
    """Flattens a tree of inputs [B, ...] to numbers [B, X]; integers, such as pixels, become float32."""
    count, dtype = trees.count(inputs), trees.float_dtype(inputs)
    rows = (jnp.reshape(leaf, (count, -1)).astype(dtype) for leaf in jax.tree.leaves(inputs))
    return jnp.concatenate(list(rows), axis=1)


def _init(key: Key, inputs: Array, encoder: Model, decoder: Model, num_outputs: int) -> ProcessMeta:
    encoder_key, decoder_key = jax.random.split(key)
    pairs = _blank_pairs(inputs, num_outputs)
    params, size, dtype = init_encoder(encoder, encoder_key, pairs)
    read = jnp.zeros((len(inputs), inputs.shape[1] + size), dtype)
    meta = ProcessMeta(params, trees.require_floats(decoder.init(decoder_key, read)), ())
    given = jax.eval_shape(decoder.apply, meta.decoder, read).shape[1]
    if given != 2 * num_outputs:
        raise ValueError(
            f"The decoder gives {given} numbers, and {num_outputs} values have {2 * num_outputs}, a mean "
            f"and a deviation each; use a decoder of {2 * num_outputs}."
        )
    return meta
