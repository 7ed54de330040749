"""Workers, statistics and tables that the benchmarks share."""
