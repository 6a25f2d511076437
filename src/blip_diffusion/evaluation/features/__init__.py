"""Frozen networks of other makers that metrics look through, and linear probes on their features."""
