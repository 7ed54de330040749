"""Learners that read a support set as a sequence or a set."""
