"""Load one network by itself: from its folder, a model's folder, a single file or the hub."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from blip_diffusion.checkpoint import single_file
from blip_diffusion.checkpoint.components import load_diffusers
from blip_diffusion.checkpoint.locate import find_model
from blip_diffusion.errors import CheckpointError


def load_controlnet(name_or_path: str | Path, *, dtype: torch.dtype | None = None, **hub: Any) -> Any:
    """Load a ControlNet from a folder, a repository with `controlnet/`, a single file or a hub id."""
    if Path(name_or_path).is_file():
        return single_file.controlnet(Path(name_or_path), dtype=dtype)
    folder = find_model(name_or_path, **hub)
    inner = folder / "controlnet"
    return load_diffusers("controlnet", inner if inner.is_dir() else folder, dtype=dtype)


def load_unet(path: str | Path, *, config: Mapping[str, Any] | None = None, dtype: torch.dtype | None = None) -> Any:
    """Load a U-Net from its folder, a Stable Diffusion folder, or a single file with the shapes of `config`."""
    if Path(path).is_file():
        return single_file.unet(Path(path), config=config, dtype=dtype)
    return _load_from_folder("unet", Path(path), dtype)


def load_vae(path: str | Path, *, config: Mapping[str, Any] | None = None, dtype: torch.dtype | None = None) -> Any:
    """Load a VAE from its folder, a Stable Diffusion folder, or a single file with the shapes of `config`."""
    if Path(path).is_file():
        return single_file.vae(Path(path), config=config, dtype=dtype)
    return _load_from_folder("vae", Path(path), dtype)


def _load_from_folder(name: str, path: Path, dtype: torch.dtype | None) -> Any:
    if not path.is_dir():
        raise CheckpointError(f"There is no {name} at {path}: name its folder, a model's folder, or a file of weights.")
    return load_diffusers(name, path / name if (path / name).is_dir() else path, dtype=dtype)
