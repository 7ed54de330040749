"""Measurements of time, memory and accuracy, one command each.

    python -m benchmarks.acting           environment steps per second of meta-reinforcement learning
    python -m benchmarks.compare          time and memory of meta-steps, next to PyTorch and plain JAX
    python -m benchmarks.growth           growth of time and memory with inner steps or with tasks
    python -m benchmarks.overheads        time to import, to print --help and to draw episodes
    python -m benchmarks.streaming        images per second from disk, next to the training step's need
    python -m benchmarks.weak_scaling     tasks per second of one and of several processes
    python -m benchmarks.implicit_error   error of implicit meta-gradients, by inner steps and solver
    python -m benchmarks.choosing         accuracy, memory and time of all learners on one data set

Each prints a table; `--help` documents the options and the columns. `benchmarks.harness` has the parts that
the commands share, `benchmarks.peers` the implementations that are compared.
"""
