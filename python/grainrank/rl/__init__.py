"""Reinforcement learning of embeddings with verifiable rewards.

A rollout is a version of the query embeddings: sampled, perturbed, or what a model makes of its own
sampled reasoning. Rules judge G rollouts by how they rank the candidates, from the same streamed
ranks and level tables as metrics and losses: no N x M matrix, no reward model. Rewards `[G, N]`
have no gradient.
"""

from .grpo import GrpoStatistics, group_advantages, grpo_loss, kl_k3
from .plackett_luce import plackett_luce_log_prob, sample_plackett_luce
from .policies import GaussianPolicy, VonMisesFisherPolicy
from .rewards import margin_reward, ranking_reward, weighted_reward
from .sampler import GradedBatchSampler, mine_hard_negatives

__all__ = [
    "GaussianPolicy",
    "GradedBatchSampler",
    "GrpoStatistics",
    "VonMisesFisherPolicy",
    "group_advantages",
    "grpo_loss",
    "kl_k3",
    "margin_reward",
    "mine_hard_negatives",
    "plackett_luce_log_prob",
    "ranking_reward",
    "sample_plackett_luce",
    "weighted_reward",
]
