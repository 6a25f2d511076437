"""The command line: parse flags, call one function, print its result."""
