"""A LoRA file of any naming scheme, read whole and put on networks, or merged into their weights."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from diffusers.loaders import StableDiffusionLoraLoaderMixin
from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # whichever it uses
from safetensors import SafetensorError
from torch import nn

from blip_diffusion.checkpoint.hub_files import OPTIONS, local_file
from blip_diffusion.checkpoint.locate import check_source
from blip_diffusion.checkpoint.lora import check_lora, in_pefts_names, peft_settings
from blip_diffusion.checkpoint.lora_source import check_lora_source, check_settings
from blip_diffusion.checkpoint.weights import State
from blip_diffusion.errors import CheckpointError, reason

UNREADABLE = (
    OSError, ValueError, TypeError, RuntimeError, KeyError, EOFError, SafetensorError, pickle.UnpicklingError,
    httpx.HTTPError,
)  # fmt: skip
"""What the libraries raise for a file that is missing, damaged, or something else."""


FILES = ("pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin")
PLACE = ("weight_name", "subfolder", *OPTIONS)
"""Options that say where a file is."""


class Lora(NamedTuple):
    """A LoRA that fits the model: weights by PEFT's names, alphas and metadata by diffusers' convention."""

    weights: State
    alphas: Any
    metadata: Any


def read_lora(source: Any, parts: Mapping[str, nn.Module], **options: Any) -> Lora:
    """Read a LoRA.

    Args:
        source: A file, folder, hub id or state dict.
        parts: The networks "unet" and "text_encoder" that it should fit.
        **options: Where the file is, as in diffusers' `lora_state_dict`.

    Raises:
        CheckpointError: If it can't be read, is another kind of adapter, or is for another model.
    """
    if isinstance(source, str | Path):
        check_source(source, "LoRA")
        file = local_file(source, FILES, "LoRA", listing=True, **options)
        if file is not source:
            source, options = file, {name: options[name] for name in options if name not in PLACE}
    check_lora_source(source, options.get("weight_name"), options.get("subfolder"))
    try:
        table = dict(source) if isinstance(source, dict) else source
        read = StableDiffusionLoraLoaderMixin.lora_state_dict(table, return_lora_metadata=True, **options)
        weights = in_pefts_names(read[0])
    except UNREADABLE as error:
        raise CheckpointError(f"The LoRA can't be read: {reason(error)}.") from error
    check_settings(read[1], read[2])
    check_lora(weights, parts)
    return Lora(weights, read[1], peft_settings(read[2], weights))


def inject_lora(lora: Lora, unet: Any, text_encoder: Any, **options: Any) -> None:
    """Add a LoRA's layers to the networks that it is for. `options` are those of diffusers' `load_lora_into_unet`."""
    options |= {"network_alphas": lora.alphas, "metadata": lora.metadata}
    loader = StableDiffusionLoraLoaderMixin
    if any(key.startswith("unet.") for key in lora.weights):
        loader.load_lora_into_unet(lora.weights, unet=unet, **options)
    if any(key.startswith("text_encoder.") for key in lora.weights):
        loader.load_lora_into_text_encoder(lora.weights, text_encoder=text_encoder, **options)
