"""Learners that read the support set as a sequence or as a set, without inner gradient steps."""
