"""Parts of a run while it runs: processes, devices, files, checkpoints, metrics and the training loop."""
