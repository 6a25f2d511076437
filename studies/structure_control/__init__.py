"""The study of the settings of structure control."""
