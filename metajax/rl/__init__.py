"""Meta-reinforcement learning and imitation, as pure functions on the device.

A *task* is a pytree, an *environment* a tuple of pure functions of it. A learner never sees the environment:
it adapts to evidence and answers observations with distributions of actions. *Experience* is data, an
ordinary batch whose targets are `Decisions`; losses, adjoints, meta-gradients, sharding and checkpoints hold
for it as for any other.
"""

from metajax.rl import envs, solve, strategies
from metajax.rl.baselines import linear_baseline
from metajax.rl.checks import check_env
from metajax.rl.cloning import Cloned, clone
from metajax.rl.discriminators import (
    Discriminator,
    discriminator,
    learned_reward,
    rewarded,
    visits,
)
from metajax.rl.distributions import (
    ActorCritic,
    Categorical,
    Normal,
    action_features,
    clip_action,
    policy_of,
    value_of,
)
from metajax.rl.experience import (
    adapt_in_turn,
    as_batch,
    live,
    lived,
    on_policy,
    rollouts,
    whole_lives,
)
from metajax.rl.fewshot_gail import Comparison, GailFast, gail_evidence, gail_learner
from metajax.rl.gail import Gail, GailParams, in_turn, make_gail, on_rows, policy_outputs
from metajax.rl.imitation import (
    Certain,
    Demonstrated,
    check_demonstrations,
    demonstration_episode,
    demonstrations,
    imitation_returns,
    subsample,
)
from metajax.rl.improve import (
    Improve,
    lifetime_outputs,
    make_step,
    several,
    trial_outputs,
)
from metajax.rl.losses import (
    clipped,
    imitation_loss,
    magic_box,
    mean_entropy,
    mean_return,
    policy_gradient,
    policy_kl,
    value_loss,
)
from metajax.rl.normalizers import Normalizer, fit_normalizer, with_normalizer
from metajax.rl.objectives import lifetime_objective, return_after, trial_objective
from metajax.rl.online import trials
from metajax.rl.policies import mlp_policy
from metajax.rl.reading import reading_policy
from metajax.rl.recall import with_recall
from metajax.rl.returns import (
    AdvantageFn,
    Estimates,
    advantages,
    discounted_sums,
    generalized_advantages,
)
from metajax.rl.scaling import normalize_over_tasks, standardize_values
from metajax.rl.trust import fisher_product, trust_region
from metajax.rl.types import Continuous, Decisions, Discrete, Env, Step, Trajectories

__all__ = [
    "ActorCritic",
    "AdvantageFn",
    "Categorical",
    "Certain",
    "Cloned",
    "Comparison",
    "Continuous",
    "Decisions",
    "Demonstrated",
    "Discrete",
    "Discriminator",
    "Env",
    "Estimates",
    "Gail",
    "GailFast",
    "GailParams",
    "Improve",
    "Normal",
    "Normalizer",
    "Step",
    "Trajectories",
    "action_features",
    "adapt_in_turn",
    "advantages",
    "as_batch",
    "check_demonstrations",
    "check_env",
    "clip_action",
    "clipped",
    "clone",
    "demonstration_episode",
    "demonstrations",
    "discounted_sums",
    "discriminator",
    "envs",
    "fisher_product",
    "fit_normalizer",
    "gail_evidence",
    "gail_learner",
    "generalized_advantages",
    "imitation_loss",
    "imitation_returns",
    "in_turn",
    "learned_reward",
    "lifetime_objective",
    "lifetime_outputs",
    "linear_baseline",
    "live",
    "lived",
    "magic_box",
    "make_gail",
    "make_step",
    "mean_entropy",
    "mean_return",
    "mlp_policy",
    "normalize_over_tasks",
    "on_policy",
    "on_rows",
    "policy_gradient",
    "policy_kl",
    "policy_of",
    "policy_outputs",
    "reading_policy",
    "return_after",
    "rewarded",
    "rollouts",
    "several",
    "solve",
    "standardize_values",
    "strategies",
    "subsample",
    "trial_objective",
    "trial_outputs",
    "trials",
    "trust_region",
    "value_loss",
    "value_of",
    "visits",
    "whole_lives",
    "with_normalizer",
    "with_recall",
]
