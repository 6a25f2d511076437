"""Scores, and the metrics that give them."""
