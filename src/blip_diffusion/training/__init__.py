"""One loop and the small things it needs; the methods are in `methods/`."""
