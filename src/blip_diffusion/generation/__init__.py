"""Generation requests: validate, run, and write images with the metadata that reproduces them."""
