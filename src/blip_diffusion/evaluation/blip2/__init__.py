"""Evaluation of BLIP-2: captions, and retrieval by contrast and matching."""
