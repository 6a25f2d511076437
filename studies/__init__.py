"""Experiments with this library behind single documents. They are not part of the package."""
