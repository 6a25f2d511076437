"""Objectives: modules whose forward pass is a loss."""
