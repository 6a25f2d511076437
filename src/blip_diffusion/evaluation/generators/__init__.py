"""What answers a benchmark: the model, personalised models, and baselines; their images are cached on disk."""
