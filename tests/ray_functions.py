"""Functions for the actors of `test_ray_pool`, in a module that imports nothing heavy."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from blip_diffusion.errors import DataError


@contextmanager
def squarer(folder: Path) -> Iterator[Callable[[int], int]]:
    """The function kills its process at the item 3, once, and refuses negative items."""

    def square(item: int) -> int:
        if item < 0:
            raise DataError(f"{item} is negative.")
        if item == 3 and not (folder / "killed").exists():
            (folder / "killed").touch()
            os._exit(1)
        return item * item

    yield square
