"""Baselines whose encoder is trained on all training classes."""
