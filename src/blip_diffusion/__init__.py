"""BLIP-Diffusion (Li, Li & Hoi, NeurIPS 2023): one picture and a sentence in, the subject in that scene out."""
