"""Fine-tune a model on photos of one subject."""
