"""Helpers of the tests of the command line."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

Run = Callable[..., int]


def output_files() -> list[str]:
    return sorted(str(path) for path in Path().rglob("*") if path.is_file())


def read_pixels(path: Path | str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)
