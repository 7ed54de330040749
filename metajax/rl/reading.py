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
    """Meta-parameters of a reading policy with sequence outputs [H] and observations [D].

    Attributes:
      reader: Parameters of the sequence model.
      head: Weights [H, A] and biases [A] of the logits or means, and for vectors `log_std` [A]. With a hidden
        layer `hidden`, of weights [H + D, U] and biases [U], the weights are [U, A]. With transitions,
        `first` [A + 2 + D] is read in place of a decision before the first.
      critic: The same for the value.
    """

    reader: Params
    head: dict[str, Any]
    critic: dict[str, Any]


class ReadingFast(NamedTuple):
    """Fast state of a reading policy, which lives for a whole trial.

    Attributes:
      state: State of the sequence model, which has read all observations but not yet the last decision.
      last: Features [A + 2] of the last decision: its action, reward, and whether it ended an episode; with
        transitions [A + 2 + D], the observation that it answered too.
    """

    state: Any
    last: Array


class ReadingAdapt(NamedTuple):
    """The `adapt` of a reading policy, which can also answer each row that it reads.

    Predicting a row and then adapting to it reads the row twice; a compiler merges the two, but not their
    derivatives. `replay` therefore asks for both at once, which halves the time of a gradient.

    Attributes:
      walk: Function `(meta, fast, batch) -> (fast, hidden [B, H])`.
      answer: Function `(meta, hidden [B, H], observed [B, D]) -> outputs [B]`.
    """

    walk: Callable[[ReadingMeta, ReadingFast, Batch], tuple[ReadingFast, Array]]
    answer: Callable[[ReadingMeta, Array, Array], ActorCritic]

    def __call__(self, meta: ReadingMeta, fast: ReadingFast, key: Key, batch: Batch) -> ReadingFast:
        """Returns the fast state after the rows [B], in their order; the key is not used."""
        del key
        return self.walk(meta, fast, batch)[0]

    def with_outputs(
        self, meta: ReadingMeta, fast: ReadingFast, batch: Batch
    ) -> tuple[ActorCritic, ReadingFast]:
        """Returns the outputs [B] before each row, and the fast state after all."""
        fast, hidden = self.walk(meta, fast, batch)
        return self.answer(meta, hidden, flattened(batch.inputs)), fast


def reading_policy(
    sequence_model: SequenceModel,
    actions: Actions,
    *,
    initial_std: float = 1.0,
    transitions: bool = False,
    head_units: int = 0,
) -> Learner[ReadingMeta, ReadingFast]:
    """Reads (observation, last action, last reward, last end) step by step, and answers with a distribution.

    Adapting keeps the order of the rows. The state lasts from one episode to the next: `ends` is an input and
    resets nothing. Predictions do not change the state, so that a policy may be asked as often as wanted.

    Where a trial is a table to fill, as in a Markov decision process of a few states, `transitions` and
    `head_units` spare the sequence model two things that it would have to learn: to remember which
    observation a reward belongs to, and to look up what it knows of the present one.

    Args:
      sequence_model: Sequence model, such as `metajax.learners.gru_model(128)`.
      actions: Kind of the actions.
      initial_std: Standard deviation at the start, for actions that are vectors.
      transitions: Whether the observation that the last decision answered is read once more with it, so
        that each step shows a whole transition.
      head_units: Units U of a layer between the sequence model and the outputs, which sees the present
        observation too; 0 leaves it out, as in the reference.

    Returns:
      A learner whose outputs are `ActorCritic`; `adapt` reads batches of `Decisions`, such as a
      trial's.

    Raises:
      ValueError: If `initial_std` is not above zero, or `head_units` below it.

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
    if head_units < 0:
        raise ValueError(f"head_units is {head_units}; use 0 or more.")
    width = action_size(actions)

    def init(key: Key, inputs: Tree) -> ReadingMeta:
        reader_key, head_key, critic_key = jax.random.split(key, 3)
        observed = flattened(inputs)
        seen = observed.shape[-1]
        last = width + 2 + (seen if transitions else 0)
        read = sequence_model.init(reader_key, seen + last, observed.dtype)
        vector = jax.ShapeDtypeStruct((seen + last,), observed.dtype)
        _, output = jax.eval_shape(
            lambda p, v: sequence_model.step(p, sequence_model.start(p), v), read, vector
        )

        draw, hidden = jax.nn.initializers.glorot_uniform(), output.shape[0]

        def layers(key: Key, outputs: int) -> dict[str, Any]:
            weights = draw(key, (head_units or hidden, outputs), observed.dtype)
            made: dict[str, Any] = {"kernel": weights, "bias": jnp.zeros(outputs, observed.dtype)}
            if head_units:
                shape = (hidden + seen, head_units)
                inner = draw(jax.random.fold_in(key, 1), shape, observed.dtype)
                bias = jnp.zeros(head_units, observed.dtype)
                made["hidden"] = {"kernel": inner, "bias": bias}
            return made

        # A small head starts near the uniform policy, which explores.
        head = layers(head_key, width)
        head["kernel"] = head["kernel"] / 10
        if transitions:
            head["first"] = jnp.zeros(last, observed.dtype)
        if not isinstance(actions, Discrete):
            head["log_std"] = jnp.full(width, jnp.log(initial_std), observed.dtype)
        return ReadingMeta(read, head, layers(critic_key, 1))

    def start(meta: ReadingMeta, key: Key, like: Batch | None = None) -> ReadingFast:
        del key, like
        nothing = jnp.zeros(width + 2, meta.head["bias"].dtype)
        return ReadingFast(sequence_model.start(meta.reader), meta.head.get("first", nothing))

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
            *([observed] if transitions else []),
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

    def answer(meta: ReadingMeta, hidden: Array, observed: Array) -> ActorCritic:
        """Computes the outputs [B] from outputs [B, H] of the sequence model and observations [B, D]."""

        def through(layers: dict[str, Any]) -> Array:
            features = hidden
            if (layer := layers.get("hidden")) is not None:
                both = jnp.concatenate([hidden, observed], axis=-1)
                features = jax.nn.relu(both @ layer["kernel"] + layer["bias"])
            return features @ layers["kernel"] + layers["bias"]

        policy = distribution(actions, through(meta.head), meta.head.get("log_std"))
        return ActorCritic(policy, through(meta.critic)[:, 0])

    def predict(meta: ReadingMeta, fast: ReadingFast, inputs: Tree) -> ActorCritic:
        observed = flattened(inputs)
        if len(observed) == 1:
            hidden = read(meta, fast, observed[0])[1][None]
        else:
            hidden = jax.vmap(lambda one: read(meta, fast, one)[1])(observed)
        return answer(meta, hidden, observed)

    return Learner(init, start, ReadingAdapt(walk, answer), predict)
