"""Image generators for a benchmark: the model, tuned models, and baselines. Their images are cached on disk."""
