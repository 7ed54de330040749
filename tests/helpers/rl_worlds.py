"""Small environments and policies whose returns are known, for the tests of reinforcement learning."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from metajax import rl
from metajax.types import Model

STATES, CHOICES, DISCOUNT = 2, 2, 0.9

# Advantages that are plain discounted returns.
RETURNS = rl.advantages(discount=DISCOUNT, baseline="none", normalize=False)


class Enumerated:
    """Every trajectory of a random MDP, with its probability as a function of the policy's logits.

    Attributes:
      horizon: Number of steps.
      states: States [M, H] of the M trajectories.
      actions: Actions [M, H].
      rewards: Rewards [M, H].
    """

    def __init__(self, horizon: int):
        draw = np.random.default_rng(0)
        self.horizon = horizon
        self.begin = draw.dirichlet(np.ones(STATES))
        self.moves = draw.dirichlet(np.ones(STATES), size=(STATES, CHOICES))
        self.table = draw.normal(size=(STATES, CHOICES))
        self.logits = draw.normal(size=(STATES, CHOICES))
        every = itertools.product(
            itertools.product(range(STATES), repeat=horizon),
            itertools.product(range(CHOICES), repeat=horizon),
        )
        self.states, self.actions = (np.array(part) for part in zip(*every, strict=True))
        self.rewards = self.table[self.states, self.actions]

    def probabilities(self, logits):
        """Computes the probabilities [M] of the trajectories."""
        policy = jax.nn.softmax(logits)[self.states, self.actions]
        before, after = self.states[:, :-1], self.states[:, 1:]
        moves = self.moves[before, self.actions[:, :-1], after]
        return self.begin[self.states[:, 0]] * policy.prod(axis=1) * moves.prod(axis=1)

    def value(self, logits):
        """Computes the expected discounted return from the first state."""
        discounts = DISCOUNT ** np.arange(self.horizon)
        return jnp.sum(self.probabilities(logits) * (self.rewards @ discounts))

    def state_values(self, logits):
        """Computes the exact values [H, STATES] of the states at each time."""
        policy, found = jax.nn.softmax(logits), [jnp.zeros(STATES)]
        for _ in range(self.horizon):
            ahead = self.table + DISCOUNT * self.moves @ found[0]
            found.insert(0, jnp.sum(policy * ahead, axis=1))
        return jnp.stack(found[:-1])

    def env(self):
        """Makes the environment; its one task is a zero."""
        begin, moves, table = (
            jnp.asarray(numbers) for numbers in (self.begin, self.moves, self.table)
        )

        def reset(key, task):
            state = jax.random.bernoulli(key, begin[1]).astype(jnp.int32)
            return state, state

        def step(key, task, state, action):
            after = jax.random.bernoulli(key, moves[state, action, 1]).astype(jnp.int32)
            return rl.Step(after, after, table[state, action] + task, jnp.array(False))

        choices = rl.Discrete(CHOICES)
        return rl.Env(lambda key: jnp.zeros(()), reset, step, choices, self.horizon)


def table_policy(logits) -> Model:
    """Makes a policy with logits [S, A] of each state, which is what it observes."""
    return Model(
        lambda key, inputs: {"logits": jnp.asarray(logits)},
        lambda params, states: rl.Categorical(params["logits"][states]),
    )


def walk(*, horizon: int = 6, vectors: bool = False) -> rl.Env:
    """Makes a noisy walk on a line that ends at the task's distance from the middle.

    A state also counts its steps, so that a change after an end would be seen.
    """
    actions = rl.Continuous(1, -0.5, 0.5) if vectors else rl.Discrete(3)

    def reset(key, task):
        place = 0.1 * jax.random.normal(key)
        return {"place": place, "time": jnp.zeros((), jnp.int32)}, jnp.stack([place, 1.0])

    def step(key, task, state, action):
        move = action[0] if vectors else action - 1.0
        place = state["place"] + move + 0.1 * jax.random.normal(key)
        state = {"place": place, "time": state["time"] + 1}
        over = jnp.abs(place) > task
        return rl.Step(state, jnp.stack([place, 1.0]), place * task + move, over)

    def sample(key):
        return jax.random.uniform(key, minval=0.5, maxval=2.0)

    return rl.Env(sample, reset, step, actions, horizon)
