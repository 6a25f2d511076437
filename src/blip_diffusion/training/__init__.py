"""Training: one loop, the objectives it runs, and the fine-tuning of a model on one subject."""
