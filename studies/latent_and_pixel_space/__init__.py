"""The study of diffusion in latent space and in pixel space."""
