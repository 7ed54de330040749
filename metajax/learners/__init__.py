"""Learners: functions `init`, `start`, `adapt`, `predict` for one task, and parts and wrappers of them.

| Room | Learners | Adaptation |
|---|---|---|
| `gradient` | MAML and its relatives, LEO, iMAML | inner gradient steps |
| `metric` | prototypical, matching and relation networks, solved linear heads | comparison, convex problem |
| `sequence` | recurrent learners, SNAIL, MetaNet, transformers, neural processes | reading the support set |
| `transfer` | baselines on a pre-trained encoder | a new head |
| `wrappers` | dropout, ensembles, one query at a time | as the wrapped learner |
"""

from metajax.learners.gradient.base import check_mixed, gradient_learner
from metajax.learners.gradient.family import (
    anil,
    boil,
    learned_optimizer,
    maml,
    meta_curvature,
    meta_lstm,
    meta_sgd,
)
from metajax.learners.gradient.implicit import imaml
from metajax.learners.gradient.latent import leo, leo_penalty
from metajax.learners.gradient.per_step_rates import maml_plus_plus
from metajax.learners.gradient.reparametrised import cavia, lora, warpgrad
from metajax.learners.metric.context import full_context_embeddings
from metajax.learners.metric.heads import linear_head, logistic, ridge, svm
from metajax.learners.metric.mahalanobis import mahalanobis_protonet
from metajax.learners.metric.matching_networks import matching
from metajax.learners.metric.prototypes import protonet
from metajax.learners.metric.relation_networks import relation, relation_loss
from metajax.learners.sequence.convolutions import snail
from metajax.learners.sequence.fast_weights import metanet
from metajax.learners.sequence.memory import mann_model
from metajax.learners.sequence.neural_process import anp, cnp, gaussian_nll
from metajax.learners.sequence.readers import snail_model, transformer_model
from metajax.learners.sequence.recurrent import (
    SequenceModel,
    gru_model,
    lstm_model,
    recurrent_learner,
)
from metajax.learners.sequence.tables import in_context_tables
from metajax.learners.sequence.transformer import in_context
from metajax.learners.transfer.baselines import (
    baseline,
    classification_objective,
    linear_probe,
    simpleshot,
)
from metajax.learners.wrappers.dropout import with_dropout
from metajax.learners.wrappers.ensembles import ensemble, mixed_ensemble, model_soup, select_member
from metajax.learners.wrappers.one_query import one_query_at_a_time

__all__ = [
    "SequenceModel",
    "anil",
    "anp",
    "baseline",
    "boil",
    "cavia",
    "check_mixed",
    "classification_objective",
    "cnp",
    "ensemble",
    "full_context_embeddings",
    "gaussian_nll",
    "gradient_learner",
    "gru_model",
    "imaml",
    "in_context",
    "in_context_tables",
    "learned_optimizer",
    "leo",
    "leo_penalty",
    "linear_head",
    "linear_probe",
    "logistic",
    "lora",
    "lstm_model",
    "mahalanobis_protonet",
    "maml",
    "maml_plus_plus",
    "mann_model",
    "matching",
    "meta_curvature",
    "meta_lstm",
    "meta_sgd",
    "metanet",
    "mixed_ensemble",
    "model_soup",
    "one_query_at_a_time",
    "protonet",
    "recurrent_learner",
    "relation",
    "relation_loss",
    "ridge",
    "select_member",
    "simpleshot",
    "snail",
    "snail_model",
    "svm",
    "transformer_model",
    "warpgrad",
    "with_dropout",
]
