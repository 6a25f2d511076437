"""Training data: the synthetic dataset, photo folders and benchmarks."""
