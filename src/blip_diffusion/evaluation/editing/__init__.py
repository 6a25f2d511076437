"""Evaluation of edits with known target images."""
