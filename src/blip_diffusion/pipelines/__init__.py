"""The diffusers pipeline: arguments to inputs, encodings, denoising and images; presets, LoRAs and subjects."""
