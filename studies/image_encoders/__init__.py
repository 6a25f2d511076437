"""Which frozen image encoder tells subjects apart."""
