"""LoRA (Hu et al. 2022) by PEFT: add one to a network for training, and return its state dict."""

from pathlib import Path
from typing import Any

from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn

from blip_diffusion.checkpoint.lora import ATTENTION
from blip_diffusion.checkpoint.weights import check_state, read_file
from blip_diffusion.errors import ConfigError

TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
"""The attention layers of CLIP's text encoder."""
TRAINED = "trained"


def add_lora(network: Any, rank: int, targets: tuple[str, ...] = ATTENTION) -> list[nn.Parameter]:
    """Add a LoRA, initially the identity, to a network and return its trainable parameters.

    `targets` are the ends of layers' names. Raises `ConfigError` for one that no layer has.
    """
    names = [name for name, _ in network.named_modules()]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise ConfigError(f"A LoRA can't be added to {target!r}: the network has no such layer.")
    config = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=list(targets))
    network.add_adapter(config, adapter_name=TRAINED)
    return [parameter for name, parameter in network.named_parameters() if f".{TRAINED}." in name]


def load_lora(network: nn.Module, path: Path) -> None:
    """Load a U-Net's LoRA file into the trained LoRA. Raises `CheckpointError` for another rank or other layers."""
    state = {name.removeprefix("unet."): tensor for name, tensor in read_file(path).items()}
    check_state(state, lora_state(network), where=str(path))
    set_peft_model_state_dict(network, state, adapter_name=TRAINED)


def lora_state(network: nn.Module) -> dict[str, Tensor]:
    """Return the trained LoRA's matrices by their PEFT names within the network."""
    state: dict[str, Tensor] = get_peft_model_state_dict(network, adapter_name=TRAINED)
    return {name: tensor.detach().cpu() for name, tensor in state.items()}
