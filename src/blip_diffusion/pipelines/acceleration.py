"""Presets in a pipeline: apply their options, and run networks on the engine that they choose."""

import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from diffusers import AutoencoderTiny, LCMScheduler
from torch import nn

from blip_diffusion.checkpoint.components import read_config
from blip_diffusion.checkpoint.hub_files import local_folder
from blip_diffusion.checkpoint.locate import check_source
from blip_diffusion.checkpoint.lora_file import UNREADABLE
from blip_diffusion.errors import CheckpointError, reason
from blip_diffusion.fileio import path_exists
from blip_diffusion.nn_utils import weights_version
from blip_diffusion.openvino_backend import openvino
from blip_diffusion.pickles import check_pickles
from blip_diffusion.pipelines.host import PipelineHost
from blip_diffusion.pipelines.locking import LIBRARY_LOCK, exclusive
from blip_diffusion.pipelines.merged_loras import MergedLoras
from blip_diffusion.pipelines.presets import Preset, build_scheduler, get_preset, lcm_preset, resolve_dtype
from blip_diffusion.protocols import VAE, Scheduler


class AccelerationMixin(PipelineHost):
    """`set_preset`, and what a preset changes in the networks."""

    preset: Preset = Preset()
    _requested: Preset = Preset()  # the preset before it was resolved for this model
    # The model's scheduler, and the preset's over the same noise levels.
    _schedulers: tuple[Any, Any] = (None, None)
    _tiny_vae: Any = None
    _merged: tuple[Hashable, MergedLoras] | None = None
    _engines: Mapping[tuple[str, int], tuple[Any, Callable[..., Any]]] = MappingProxyType({})

    @exclusive
    def set_preset(self, choice: str | Preset) -> None:
        """Choose a trade between speed and quality. It replaces the previous preset.

        A model that was distilled for few steps keeps its sampler. "turbo" uses the consistency LoRA in the model's
        folder, if there is one. Weights that were cast to a lower precision stay rounded.

        Args:
            choice: "exact" (same image, faster arithmetic), "fast" (10 steps), "turbo" (2 distilled steps), or a
                `Preset`. `Preset()` switches everything off.

        Raises:
            InputError: If the name is unknown, or a preset's LoRA meets LoRAs that are fused into the weights.
            CheckpointError: If the preset's LoRA or tiny VAE can't be read or does not fit. Nothing is changed then.

        Example:
            >>> pipe.set_preset("fast")
            >>> pipe.set_preset(Preset(dtype="auto", solver="dpm++", steps=12))
        """
        requested, default = get_preset(choice), self.default_scheduler
        resolved = self._resolve(requested)
        dtype = resolve_dtype(resolved.dtype, self._execution_device)
        tiny = None if resolved.tiny_vae is None else _load_tiny_vae(resolved.tiny_vae, self.vae)
        scheduler = build_scheduler(resolved.solver, default)
        self.adapters.set_preset_lora(resolved.lcm_lora)
        self.scheduler, self._schedulers = scheduler, (default, scheduler)
        self._cast(dtype, channels_last=resolved.channels_last)
        _compile(self.unet, resolved.engine == "compiled")
        self._tiny_vae = tiny and tiny.to(self._execution_device, self.vae.dtype)
        self._merged = None
        self.preset, self._requested = resolved, requested

    @property
    def default_scheduler(self) -> Scheduler:
        """The model's scheduler, or the one that a user has set; never a preset's."""
        default, presets = self._schedulers
        return default if self.scheduler is presets else self.scheduler

    @property
    def consistency_lora(self) -> Path | None:
        """The consistency LoRA in the model's folder, while the U-Net is that model's."""
        return self.adapters.state.bundled_lora

    def _resolve(self, preset: Preset) -> Preset:
        """Return a preset with the options that depend on the model filled in."""
        if preset.bundled_lora_steps and preset.lcm_lora is None and self.consistency_lora is not None:
            preset = lcm_preset(str(self.consistency_lora), preset, solver="ddim", steps=preset.bundled_lora_steps)
        if isinstance(self.default_scheduler, LCMScheduler):
            preset = replace(preset, guidance_interval=(0.0, 1.0), deepcache_interval=1)
            return replace(preset, solver="default", steps=None, lcm_lora=None)
        return preset

    def _sync_preset(self) -> None:
        """Apply the preset again if the U-Net was replaced or another pipeline that shares it has changed it."""
        if self._resolve(self._requested) != self.preset:
            self.set_preset(self._requested)
        self.adapters.set_preset_lora(self.preset.lcm_lora)

    def _cast(self, dtype: torch.dtype | None, *, channels_last: bool) -> None:
        for part in (self.unet, self.vae, self.text_encoder, self.qformer, self.subject_finder, self.controlnet):
            if dtype is not None and part is not None:
                nn.Module.to(part, dtype)  # diffusers' `to` warns about float32 modules even without any
        if channels_last:
            self.vae.to(memory_format=torch.channels_last)
            self.qformer.image_encoder.tower.to(memory_format=torch.channels_last)

    @contextmanager
    def _loras_in_weights(self) -> Iterator[None]:
        """Context manager: under a preset's LoRA, all active LoRAs are merged into the U-Net's weights.

        Unmerged, each LoRA takes two more products per layer: 44 % of a call at the size of `mini`. Not for a U-Net
        that accelerate moves to a GPU and back, because merging takes the memory of those layers once more.
        """
        unet = self.unet
        offloaded = any(hasattr(unet, hook) for hook in ("_hf_hook", "_diffusers_hook"))
        if self.preset.uses_cfg or self.preset.engine != "torch" or offloaded:
            yield
            return
        version = weights_version(unet)
        if self._merged is None or self._merged[0] != version:
            self._merged = version, MergedLoras(unet)
        with self._merged[1]:
            yield

    def _on_engine(self, name: str, part: nn.Module, build: Callable[[], nn.Module]) -> Callable[..., Any]:
        """Return a network on the preset's engine; it is converted again when the weights of `part` have changed."""
        if self.preset.engine != "openvino":
            return build()
        key = (name, self.preset.deepcache_layers)
        version, run = self._engines.get(key, (None, None))
        if run is None or version != weights_version(part):
            quiet = bool(getattr(self, "_progress_bar_config", {}).get("disable", False))
            run = openvino(build(), name=name, quiet=quiet)
            self._engines = {**self._engines, key: (weights_version(part), run)}
        return run


def _load_tiny_vae(path: str, vae: VAE) -> Any:
    """Load an `AutoencoderTiny` for the latents of `vae`. Raises `CheckpointError` if it is missing or doesn't fit."""
    check_source(path, "AutoencoderTiny")
    path = local_folder(path)
    if path_exists(Path(path), Path.is_dir):
        read_config(Path(path) / "config.json", "the AutoencoderTiny")  # which checks its numbers
        check_pickles(Path(path))
    try:
        with LIBRARY_LOCK:
            tiny = AutoencoderTiny.from_pretrained(path)
    except UNREADABLE as error:
        raise CheckpointError(f"There is no AutoencoderTiny at {path} ({reason(error)}).") from error
    if any(parameter.is_meta for parameter in tiny.parameters()):  # diffusers leaves missing weights on `meta`
        raise CheckpointError(f"{path} holds another kind of network: give an AutoencoderTiny.")
    channels, expected = tiny.config.latent_channels, vae.config.latent_channels
    if channels != expected:
        raise CheckpointError(
            f"The AutoencoderTiny at {path} is for latents of {channels} channels: this model's have {expected}."
        )
    return tiny


def _compile(unet: Any, enabled: bool) -> None:
    """Compile the U-Net, or undo it, for which `nn.Module` has no method. Warn on a CPU."""
    if enabled:
        if unet.device.type == "cpu":
            warnings.warn(
                "The engine compiled takes minutes on a CPU before the first image, and again for each size: the "
                "engine openvino, or none, is faster there.",
                stacklevel=3,
            )
        unet.compile()
    elif unet._compiled_call_impl is not None:
        unet._compiled_call_impl = None
