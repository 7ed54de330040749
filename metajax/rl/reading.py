"""A policy that reads its own history: the learner of RL2."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metajax.learners.sequence.recurrent import SequenceModel
from metajax.rl.distributions import ActorCritic, action_features, action_size
from metajax.rl.policies import distribution, flattened
from metajax.rl.types import Actions, Decisions, Discrete
from metajax.types import Array, Batch, Key, Learner, Params, Tree


class ReadingMeta(NamedTuple):
    """Meta-parameters of a reading policy with sequence outputs [H].

    Attributes:
      reader: Parameters of the sequence model.
      head: Weights [H, A] and biases [A] of the logits or means, and for vectors `log_std` [A].
      critic: Weights [H, 1] and a bias [1] of the value.
    """

    reader: Params
    head: dict[str, Array]
    critic: dict[str, Array]


class ReadingFast(NamedTuple):
    """Fast state of a reading policy, which lives for a whole trial.

    Attributes:
      state: State of the sequence model, which has read all observations but not yet the last decision.
      last: Features [A + 2] of the last decision: its action, reward, and whether it ended an episode.
    """

    state: Any
    last: Array


class ReadingAdapt(NamedTuple):
    """The `adapt` of a reading policy, which can also answer each row that it reads.

    Predicting a row and then adapting to it reads the row twice; a compiler merges the two, but not their
    derivatives. `replay` therefore asks for both at once, which halves the time of a gradient.

    Attributes:
      walk: Function `(meta, fast, batch) -> (fast, hidden [B, H])`.
      answer: Function `(meta, hidden [B, H]) -> outputs [B]`.
    """

    walk: Callable[[ReadingMeta, ReadingFast, Batch], tuple[ReadingFast, Array]]
    answer: Callable[[ReadingMeta, Array], ActorCritic]

    def __call__(self, meta: ReadingMeta, fast: ReadingFast, key: Key, batch: Batch) -> ReadingFast:
        """Returns the fast state after the rows [B], in their order; the key is not used."""
        del key
        return self.walk(meta, fast, batch)[0]

    def with_outputs(
        self, meta: ReadingMeta, fast: ReadingFast, batch: Batch
    ) -> tuple[ActorCritic, ReadingFast]:
        """Returns the outputs [B] before each row, and the fast state after all."""
        fast, hidden = self.walk(meta, fast, batch)
        return self.answer(meta, hidden), fast


def reading_policy(
    sequence_model: SequenceModel, actions: Actions, *, initial_std: float = 1.0
) -> Learner[ReadingMeta, ReadingFast]:
    """Reads (observation, last action, last reward, last end) step by step, and answers with a distribution.

    Adapting keeps the order of the rows. The state lasts from one episode to the next: `ends` is an input and
    resets nothing. Predictions do not change the state, so that a policy may be asked as often as wanted.

    Args:
      sequence_model: Sequence model, such as `metajax.learners.gru_model(128)`.
      actions: Kind of the actions.
      initial_std: Standard deviation at the start, for actions that are vectors.

    Returns:
      A learner whose outputs are `ActorCritic`; `adapt` reads batches of `Decisions`, such as a
      trial's.

    Raises:
      ValueError: If `initial_std` is not above zero.

    Example:
      >>> actions = metajax.rl.Discrete(3)
      >>> learner = reading_policy(metajax.learners.gru_model(8), actions)
      >>> meta = jax.eval_shape(learner.init, jax.random.key(0), jnp.zeros((1, 2)))
      >>> fast = jax.eval_shape(learner.start, meta, jax.random.key(1))
      >>> jax.eval_shape(learner.predict, meta, fast, jnp.zeros((5, 2))).policy.logits.shape
      (5, 3)

    Reference: Duan et al., 2016 (https://arxiv.org/abs/1611.02779), section 2.2; Wang et al., 2016
    (https://arxiv.org/abs/1611.05763), section 2.2.
    """
    if not initial_std > 0:
        raise ValueError(f"initial_std is {initial_std}; use a number above 0, such as 1.")
    width = action_size(actions)

    def init(key: Key, inputs: Tree) -> ReadingMeta:
        reader_key, head_key, critic_key = jax.random.split(key, 3)
        observed = flattened(inputs)
        size = observed.shape[-1] + width + 2
        read = sequence_model.init(reader_key, size, observed.dtype)
        vector = jax.ShapeDtypeStruct((size,), observed.dtype)
        _, output = jax.eval_shape(
            lambda p, v: sequence_model.step(p, sequence_model.start(p), v), read, vector
        )
        draw, hidden = jax.nn.initializers.glorot_uniform(), output.shape[0]
        # A small head starts near the uniform policy, which explores.
        head = {
            "kernel": draw(head_key, (hidden, width), observed.dtype) / 10,
            "bias": jnp.zeros(width, observed.dtype),
        }
        if not isinstance(actions, Discrete):
            head["log_std"] = jnp.full(width, jnp.log(initial_std), observed.dtype)
        critic = {
            "kernel": draw(critic_key, (hidden, 1), observed.dtype),
            "bias": jnp.zeros(1, observed.dtype),
        }
        return ReadingMeta(read, head, critic)

    def start(meta: ReadingMeta, key: Key, like: Batch | None = None) -> ReadingFast:
        del key, like
        return ReadingFast(
            sequence_model.start(meta.reader), jnp.zeros(width + 2, meta.head["bias"].dtype)
        )

    def read(meta: ReadingMeta, fast: ReadingFast, observed: Array) -> tuple[Any, Array]:
        """Reads an observation [D] after the last decision."""
        return sequence_model.step(meta.reader, fast.state, jnp.concatenate([observed, fast.last]))

    def walk(meta: ReadingMeta, fast: ReadingFast, batch: Batch) -> tuple[ReadingFast, Array]:
        """Reads rows in order; returns the state after them and the outputs [B, H] before each decision."""
        decisions: Decisions = batch.targets
        observed = flattened(batch.inputs)
        dtype = observed.dtype
        features = [
            action_features(actions, decisions.action, dtype),
            decisions.reward[:, None].astype(dtype),
            decisions.ends[:, None].astype(dtype),
        ]
        rows = (observed, jnp.concatenate(features, axis=-1))
        weights = jnp.ones(len(observed)) if batch.weights is None else batch.weights

        def step(fast: ReadingFast, row: tuple[tuple[Array, Array], Array]):
            (observed, last), weight = row
            state, hidden = read(meta, fast, observed)
            after = ReadingFast(state, last)
            after = jax.tree.map(lambda new, old: jnp.where(weight > 0, new, old), after, fast)
            return after, hidden

        if len(weights) == 1:  # as in a trial, where the compiler then reads once for `predict` too
            fast, hidden = step(fast, jax.tree.map(lambda leaf: leaf[0], (rows, weights)))
            return fast, hidden[None]
        return jax.lax.scan(step, fast, (rows, weights))

    def answer(meta: ReadingMeta, hidden: Array) -> ActorCritic:
        """Computes the outputs [B] from outputs [B, H] of the sequence model."""
        outputs = hidden @ meta.head["kernel"] + meta.head["bias"]
        value = (hidden @ meta.critic["kernel"] + meta.critic["bias"])[:, 0]
        return ActorCritic(distribution(actions, outputs, meta.head.get("log_std")), value)

    def predict(meta: ReadingMeta, fast: ReadingFast, inputs: Tree) -> ActorCritic:
        observed = flattened(inputs)
        if len(observed) == 1:
            hidden = read(meta, fast, observed[0])[1][None]
        else:
            hidden = jax.vmap(lambda one: read(meta, fast, one)[1])(observed)
        return answer(meta, hidden)

    return Learner(init, start, ReadingAdapt(walk, answer), predict)
