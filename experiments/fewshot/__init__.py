"""The driver `python -m experiments.fewshot`."""
