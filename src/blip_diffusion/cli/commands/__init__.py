"""One module per command: its flags and the function that runs it."""
