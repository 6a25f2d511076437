"""One module a command: its flags, and the one function that it calls."""
