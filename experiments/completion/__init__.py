"""The driver `python -m experiments.completion`."""
