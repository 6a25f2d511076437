"""The arithmetic of noise: latents and callables, no prompts and no images."""
