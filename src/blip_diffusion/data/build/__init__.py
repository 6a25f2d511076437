"""Build the packed assets of the synthetic dataset from Debian and npm packages."""
