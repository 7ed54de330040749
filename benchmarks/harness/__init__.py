"""Parts that the benchmarks share: cases, workers, statistics and tables."""
