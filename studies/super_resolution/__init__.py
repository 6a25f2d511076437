"""The study of super-resolution by latent diffusion."""
