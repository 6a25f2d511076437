"""A comparison of frozen image encoders by retrieval of subjects."""
