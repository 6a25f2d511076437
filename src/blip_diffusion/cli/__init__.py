"""The command line and its kin: parse, call one function, show the result."""
