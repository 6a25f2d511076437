"""`python -m blip_diffusion`, if the command is not on the path."""

import sys

from blip_diffusion.cli.entry import run

if __name__ == "__main__":
    sys.exit(run())
