"""Benchmarks: subjects, reference images and prompts."""
