"""What users of Stable Diffusion bring along, LoRAs and textual inversions: loaded whole or not at all."""

import pickle
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from diffusers.loaders import StableDiffusionLoraLoaderMixin, TextualInversionLoaderMixin
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from torch import nn

from blip_diffusion.checkpoint.lora import check_lora, in_pefts_names
from blip_diffusion.checkpoint.weights import State
from blip_diffusion.errors import CheckpointError, InputError, reason
from blip_diffusion.nn_utils import lora_layers, mark_modified, uncompiled

UNREADABLE = (OSError, ValueError, RuntimeError, KeyError, EOFError, SafetensorError, pickle.UnpicklingError)
"""What the libraries raise over a file that is missing, damaged or something else."""


class ExtrasMixin(StableDiffusionLoraLoaderMixin, TextualInversionLoaderMixin):
    """diffusers' loaders, which leave half of what doesn't fit behind."""

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: Any,
        adapter_name: str | None = None,
        hotswap: bool = False,
        low_cpu_mem_usage: bool = True,
        **how: Any,
    ) -> None:
        """Loads a LoRA for U-Net, text encoder or both, by any of its names; `how` says where it is, as in diffusers.

        Raises `CheckpointError` with the numbers for one that can't be read or is for another base. Nothing of it is
        loaded then.
        """
        state, alphas, metadata = self._read_lora(pretrained_model_name_or_path_or_dict, how)
        before, active = self.get_list_adapters(), active_adapters(self.unet, self.text_encoder)
        loaders = {"unet": self.load_lora_into_unet, "text_encoder": self.load_lora_into_text_encoder}
        common = {"adapter_name": adapter_name, "hotswap": hotswap, "low_cpu_mem_usage": low_cpu_mem_usage}
        try:
            for part, load in loaders.items():
                if any(name.startswith(f"{part}.") for name in state):
                    load(state, network_alphas=alphas, metadata=metadata, _pipeline=self, **{part: getattr(self, part)},
                         **common)  # fmt: skip
        except UNREADABLE as error:
            self._restore_adapters(before)
            activate(active, self.unet, self.text_encoder)
            raise CheckpointError(f"The LoRA can't be loaded: {reason(error)}.") from error
        if hotswap:  # which PEFT does through `.data`
            mark_modified(self.unet, self.text_encoder)

    def _read_lora(self, given: Any, how: dict[str, Any]) -> tuple[State, Any, Any]:
        """Weights by peft's names, which fit this model, and what else the file says of them."""
        self._check_plain()
        try:
            table = dict(given) if isinstance(given, dict) else given
            state, alphas, metadata = self.lora_state_dict(table, return_lora_metadata=True, **how)
            state = in_pefts_names(state)
        except UNREADABLE as error:
            raise CheckpointError(f"The LoRA can't be read: {reason(error)}.") from error
        check_lora(state, {"unet": self.unet, "text_encoder": self.text_encoder})
        return state, alphas, metadata

    def delete_adapters(self, adapter_names: list[str] | str) -> None:
        """Takes LoRAs out, as diffusers does; those that are left are active if they were."""
        self._check_plain()
        active = active_adapters(self.unet, self.text_encoder)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Adapter .* was active")  # and that another takes its place: none does
            super().delete_adapters(adapter_names)
        activate(active, self.unet, self.text_encoder)

    def _check_plain(self) -> None:
        """Raises `InputError` where diffusers and PEFT would look for layers by other names, and find none."""
        if any(uncompiled(part) is not part for part in (self.unet, self.text_encoder)):
            raise InputError(
                "LoRAs don't come and go in what torch.compile has wrapped: pipe.unet.compile() wraps nothing."
            )

    def _restore_adapters(self, before: dict[str, list[str]]) -> None:
        """Takes out of each part what was not there before."""
        for part, names in self.get_list_adapters().items():
            module = getattr(self, part)
            delete = module.delete_adapters if part == "unet" else module.delete_adapter
            for name in set(names) - set(before.get(part, ())):
                delete(name)

    def load_textual_inversion(
        self, pretrained_model_name_or_path: Any, token: str | list[str] | None = None, *more: Any, **how: Any
    ) -> None:
        """Loads words of the text encoder's width, as diffusers does. Raises `CheckpointError` for any others."""
        try:
            super().load_textual_inversion(pretrained_model_name_or_path, token, *more, **how)
        except UNREADABLE as error:
            width = int(self.text_encoder.config.hidden_size)
            raise CheckpointError(
                f"The textual inversion isn't words for this model, which are {width} wide ({reason(error)})."
            ) from error


def active_adapters(*parts: nn.Module) -> dict[BaseTunerLayer, list[str]]:
    """Which adapters are active, layer by layer."""
    return {layer: list(layer.active_adapters) for layer in lora_layers(*parts)}


def activate(active: Mapping[BaseTunerLayer, Sequence[str]], *parts: nn.Module, also: Sequence[str] = ()) -> None:
    """Makes those adapters the only active ones that are in `active`, or in `also`, and still there.

    Left to itself, PEFT activates the last that comes, alone, and where an active one goes, the first that is left.
    """
    for layer in lora_layers(*parts):
        wanted = dict.fromkeys([*active.get(layer, ()), *also])
        layer.set_adapter([name for name in wanted if name in layer.r], inference_mode=True)
