"""Scores, and the judges that give them."""
