"""Learners made of other learners: dropout, ensembles, predictions of one query at a time."""
