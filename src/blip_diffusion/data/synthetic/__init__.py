"""The synthetic dataset at training time: pairs of images composed from packed assets."""
