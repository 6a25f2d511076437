"""Metrics of subject and prompt fidelity, the statistics that they share, and their registry."""
