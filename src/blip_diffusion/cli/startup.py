"""What makes a command start sooner: torch, diffusers and transformers are three quarters of a short run's time."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Imports without the garbage collector, which would walk a million new objects again and again, all of which stay.

    The time of the imports falls by a sixth (docs/log/performance.md). They are left out of later walks too.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()
