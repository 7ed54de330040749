"""The driver `python -m experiments.regression`."""
