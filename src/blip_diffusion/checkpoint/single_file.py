"""Stable Diffusion checkpoints in one file (`.safetensors`, `.ckpt`): their U-Net, VAE or ControlNet.

diffusers translates the names. Shapes are those of the model that the part is for; by default Stable Diffusion 1.5's.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders import single_file_utils as ldm

from blip_diffusion.checkpoint.components import build_diffusers
from blip_diffusion.checkpoint.key_maps import modern_vae_name
from blip_diffusion.checkpoint.weights import CONFIG_ERRORS, State, read_file
from blip_diffusion.errors import CheckpointError
from blip_diffusion.model import ModelConfig

FIRST_CONVOLUTIONS = (f"{ldm.LDM_UNET_KEY}input_blocks.0.0.weight", "conv_in.weight")
CONTROL = {"conditioning_embedding_out_channels": (16, 32, 96, 256)}


def unet(path: Path, *, config: Mapping[str, Any] | None = None, dtype: torch.dtype | None = None) -> Any:
    """Load the U-Net of a single file; `config` defaults to Stable Diffusion 1.5's.

    The file's own number of input channels counts: nine where it was trained to inpaint.
    """
    config = {**(config or ModelConfig().unet), **_input_channels(path)}
    return _part("unet", path, config, dtype, prefixes=(ldm.LDM_UNET_KEY,), convert=ldm.convert_ldm_unet_checkpoint)


def _input_channels(path: Path) -> dict[str, int]:
    state = read_file(path) if path.is_file() else {}
    first = next((state[name] for name in FIRST_CONVOLUTIONS if name in state), None)
    return {} if first is None or first.ndim != 4 else {"in_channels": int(first.shape[1])}


def vae(path: Path, *, config: Mapping[str, Any] | None = None, dtype: torch.dtype | None = None) -> Any:
    """Load the VAE of a single file."""
    config = config or ModelConfig().vae
    prefixes = (*ldm.LDM_VAE_KEYS, "encoder.conv_in.weight")
    return _part("vae", path, config, dtype, prefixes=prefixes, convert=ldm.convert_ldm_vae_checkpoint)


def controlnet(path: Path, *, config: Mapping[str, Any] | None = None, dtype: torch.dtype | None = None) -> Any:
    """Load the ControlNet of a single file."""
    shapes = {key: value for key, value in ModelConfig().unet.items() if key != "sample_size"}
    prefixes = (ldm.LDM_CONTROLNET_KEY, "time_embed.0.weight")
    return _part("controlnet", path, config or {**shapes, **CONTROL}, dtype, prefixes=prefixes,
                 convert=ldm.convert_controlnet_checkpoint)  # fmt: skip


def _part(
    name: str,
    path: Path,
    config: Mapping[str, Any],
    dtype: torch.dtype | None,
    *,
    prefixes: tuple[str, ...],
    convert: Any,
) -> Any:
    if not path.is_file():
        raise CheckpointError(f"There is no file {path}.")
    state = read_file(path)
    if _is_translated(name, state):
        state = {modern_vae_name(n) if name == "vae" else n: tensor for n, tensor in state.items()}
    elif any(key.startswith(prefixes) for key in state):
        state = _translated(name, path, state, config, convert)
    else:
        raise CheckpointError(f"There is no {name} among the {len(state)} tensors of {path}.")
    return build_diffusers(name, config, state, dtype=dtype)


def _is_translated(name: str, state: State) -> bool:
    """Return whether a file has diffusers' names already."""
    mark = {"unet": "down_blocks.0.", "vae": "encoder.down_blocks.0.", "controlnet": "controlnet_down_blocks.0."}[name]
    return any(key.startswith(mark) for key in state)


def _translated(name: str, path: Path, state: State, config: Mapping[str, Any], convert: Any) -> State:
    whole = {"layers_per_block": 2, "class_embed_type": None, "addition_embed_type": None, **config}
    try:
        converted: State = convert(dict(state), whole)
    except CONFIG_ERRORS as error:
        raise CheckpointError(f"The {name} in {path} is not laid out as Stable Diffusion 1's ({error!r}).") from error
    return converted
