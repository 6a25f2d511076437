"""Frozen feature extractors of other projects for metrics, and linear probes on their features."""
