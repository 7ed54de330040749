"""Finds settings of a driver's run by trials, with Optuna."""
