"""Bytes to batches: the training world, and how a batch is composed from it."""
