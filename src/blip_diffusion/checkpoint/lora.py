"""LoRA files: rename their tensors to PEFT's names, and check that they fit a model. diffusers adds the layers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import convert_state_dict_to_peft, convert_unet_state_dict_to_peft
from diffusers.utils.state_dict_utils import StateDictType
from safetensors import safe_open
from torch import Tensor, nn

from blip_diffusion.checkpoint.weights import (
    State,
    format_mismatches,
    read_file,
    save_state,
    shape_mismatches,
)
from blip_diffusion.errors import CheckpointError
from blip_diffusion.nn_utils import is_finite

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
"""The U-Net's attention projections, which diffusers' LoRA training scripts train."""
ALL_UNET_LAYERS = (*ATTENTION, "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2", "conv_shortcut",
              "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj")  # fmt: skip
"""Nearly all layers of the U-Net, those of the LCM-LoRAs of Luo et al. 2023 (arXiv:2311.05556)."""
DOWN, UP = ".lora_A.weight", ".lora_B.weight"
BIAS, MAGNITUDE = ".lora_B.bias", ".lora_magnitude_vector"
ADAPTER = "lora_adapter_metadata"
"""The header key of the adapters' settings, which diffusers reads."""


def in_pefts_names(state: State) -> State:
    """Rename a LoRA of any diffusers or PEFT version to PEFT's names, prefixed by the part."""
    unet = {name: tensor for name, tensor in state.items() if name.startswith("unet.")}
    words = {name: tensor for name, tensor in state.items() if name.startswith("text_encoder.")}
    others = {name: tensor for name, tensor in state.items() if name not in unet and name not in words}
    for kind in (StateDictType.DIFFUSERS_OLD, StateDictType.DIFFUSERS):
        words = convert_state_dict_to_peft(words, original_type=kind)
    words = {name.replace("text_encoder.text_model.", "text_encoder."): tensor for name, tensor in words.items()}
    return {**convert_unet_state_dict_to_peft(unet), **words, **others}


def check_lora(state: State, parts: Mapping[str, nn.Module]) -> None:
    """Raise `CheckpointError` unless every layer of a LoRA fits a layer of `parts`.

    The names of `state` are peft's, after the part's name.
    """
    weights = {
        f"{part}.{name}": module.weight
        for part, network in parts.items()
        for name, module in network.named_modules()
        if isinstance(getattr(module, "weight", None), Tensor) and module.weight.ndim > 1
    }
    unexpected = {name for name in state if _layer(name) not in weights or not _is_known(name)}
    fitting = {name: tensor for name, tensor in state.items() if name not in unexpected}
    expected = _expected_shapes(fitting, weights)
    problem = format_mismatches(
        missing=expected.keys() - fitting.keys(), unexpected=unexpected, wrong=shape_mismatches(fitting, expected)
    )
    if not problem and not all(is_finite(tensor) for tensor in fitting.values()):
        raise CheckpointError("The LoRA has weights that are not finite (NaN or infinity): it is damaged.")
    if problem or not fitting:
        raise CheckpointError(f"The LoRA is for another model: {problem or 'it has no layers'}.")


def layers_of(state: Mapping[str, Tensor]) -> list[str]:
    """Return the layers that a LoRA changes."""
    return sorted({_layer(name) for name in state})


def peft_settings(metadata: Mapping[str, Any] | None, state: State) -> dict[str, Any] | None:
    """Return PEFT's settings of a LoRA by part: scales of the header, ranks and layers of the tensors.

    Args:
        metadata: Checked settings in a file's header, after the part's name; `None` without any.
        state: The tensors, by PEFT's names after the part's name.
    """
    if metadata is None:
        return None
    settings: dict[str, Any] = {}
    for part in {name.partition(".")[0] for name in state}:
        inside = {
            name.removeprefix(f"{part}."): tensor for name, tensor in state.items() if name.startswith(f"{part}.")
        }
        ranks = {_layer(name): len(tensor) for name, tensor in inside.items() if name.endswith(DOWN)}
        rank, alpha = next(iter(ranks.values())), metadata.get(f"{part}.lora_alpha")
        patterns = metadata.get(f"{part}.alpha_pattern") or {}
        alphas = {layer: patterns[key] for layer in ranks for key in patterns if f".{layer}".endswith(f".{key}")}
        own = {
            "r": rank,
            "lora_alpha": rank if alpha is None else alpha,
            "rank_pattern": {layer: one for layer, one in ranks.items() if one != rank},
            "alpha_pattern": alphas,
            "target_modules": sorted(ranks),
            "use_rslora": metadata.get(f"{part}.use_rslora", False),
            "use_dora": any(name.endswith(MAGNITUDE) for name in inside),
            "lora_bias": any(name.endswith(BIAS) for name in inside),
            "peft_type": "LORA",
        }
        settings |= {f"{part}.{key}": value for key, value in own.items()}
    return settings


def adapter_header(parts: Mapping[str, Mapping[str, Tensor]], *, rank: int, alpha: float) -> dict[str, str]:
    """Return the safetensors metadata that holds a LoRA's settings by part."""
    settings = {
        f"{part}.{key}": value
        for part, state in parts.items()
        for key, value in {
            "r": rank, "lora_alpha": alpha, "target_modules": layers_of(state), "peft_type": "LORA"
        }.items()
        if state
    }  # fmt: skip
    return {ADAPTER: json.dumps(settings, sort_keys=True)}


def copy_lora(source: Path, path: Path, dtype: torch.dtype | None = None) -> None:
    """Copy a LoRA file with its settings, floats in `dtype` if one is given."""
    state = read_file(source)
    with safe_open(source, "pt") as file:
        save_state(state, path, dtype, header=file.metadata())


def _layer(name: str) -> str:
    return name.partition(".lora_")[0]


def _is_known(name: str) -> bool:
    return name.endswith((DOWN, UP, BIAS, MAGNITUDE))


def _expected_shapes(state: State, weights: State) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors of each layer, for the ranks and kernel sizes of the state."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in {_layer(name) for name in state}:
        halves = [state.get(layer + half) for half in (DOWN, UP)]
        halves = [half if half is None or half.ndim > 1 else half.reshape(len(half.flatten()), 1) for half in halves]
        ranks = [len(half) if half is halves[0] else half.shape[1] for half in halves if half is not None]
        rank = ranks[0] if ranks else 1
        kernels = [() if half is None else tuple(half.shape[2:]) for half in halves]
        out, into = weights[layer].shape[:2]
        shapes[layer + DOWN] = (rank, into, *kernels[0])
        shapes[layer + UP] = (out, rank, *kernels[1])
        for name in (f"{layer}{MAGNITUDE}", f"{layer}{BIAS}"):
            if name in state:
                wide = name.endswith(MAGNITUDE) and weights[layer].ndim > 2
                shapes[name] = (1, out, *(1,) * (weights[layer].ndim - 2)) if wide else (out,)
    return shapes
