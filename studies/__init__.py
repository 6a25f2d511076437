"""Experiments with this library behind single documents. They are not part of the package."""

import sys
from collections.abc import Callable

from blip_diffusion.errors import BlipDiffusionError


def print_result(study: Callable[[], str]) -> int:
    """Print what a study returns. Returns the exit code: 0, or 2 after an error, which is printed."""
    try:
        print(study())
    except BlipDiffusionError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    return 0
