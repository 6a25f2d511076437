"""The part of the pipeline that makes it fast: takes a preset's choices, and builds the denoiser that they ask for."""

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import torch
from diffusers import AutoencoderTiny, LCMScheduler
from diffusers.models.autoencoders.vae import DecoderOutput
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from blip_diffusion.diffusion.deepcache import ShallowUNet, WholeUNet, deepcache
from blip_diffusion.diffusion.guidance import Denoiser, guided, on_interval, split_batch, unet_denoiser
from blip_diffusion.diffusion.latents import LatentCodec
from blip_diffusion.errors import CheckpointError, InputError, reason
from blip_diffusion.nn_utils import lora_layers, uncompiled, weights_version
from blip_diffusion.openvino_backend import openvino
from blip_diffusion.pipelines.extras import UNREADABLE, activate, active_adapters
from blip_diffusion.pipelines.presets import Preset, build_scheduler, get_preset, lcm_preset, resolve_dtype

LCM = "blip-diffusion-lcm"
"""The name of the adapter that `lcm_lora` becomes."""
OWN_LORA, PRESETS_LORA = "own_consistency_lora", "presets_lora"
"""What a U-Net knows, whatever pipeline it is in: the file of the consistency LoRA that its model's folder brought
along, and where that comes from which a preset has put into it. Pipelines that share one may draw by other presets."""


class Decoder(nn.Module):
    """The VAE's second half, for another engine to run."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> Tensor:
        pixels: Tensor = self.vae.decode(latents.to(self.vae.dtype), return_dict=False)[0]
        return pixels.to(latents.dtype)


class Folded:
    """Within it, a network's active LoRAs are in its weights; after it, those are the very tensors that they were."""

    def __init__(self, network: nn.Module) -> None:
        self._layers = [(layer, list(layer.active_adapters)) for layer in lora_layers(network) if _can_fold(layer)]
        self._weights = [p for layer, _ in self._layers for p in layer.get_base_layer().parameters()]
        self._other = [weight.data.clone() for weight in self._weights]  # PEFT adds to them in place
        self._swap()
        try:
            for layer, _ in self._layers:
                layer.merge()
        finally:  # whatever comes between, the weights are as they were
            self._leave()

    def _swap(self) -> None:
        for place, weight in enumerate(self._weights):
            self._other[place], weight.data = weight.data, self._other[place]

    def _leave(self) -> None:
        for layer, _ in self._layers:
            layer.merged_adapters = []
        self._swap()

    def __enter__(self) -> None:
        for layer, adapters in self._layers:
            layer.merged_adapters = list(adapters)
        self._swap()

    def __exit__(self, *_: object) -> None:
        self._leave()


class SpeedMixin:
    """`pipe.set_preset("fast")`; the choices stay until others are made."""

    preset: Preset = Preset()
    _asked: Preset = Preset()  # what the preset was before it met this model
    _schedulers: tuple[Any, Any] = (None, None)  # the model's own, and the preset's over the same noise levels
    _tiny: Any = None
    _folded: tuple[Hashable, Folded] | None = None
    _engines: Mapping[tuple[str, int], tuple[Any, Callable[..., Any]]] = MappingProxyType({})

    def set_preset(self, choice: str | Preset) -> None:
        """`exact`, `fast`, `turbo`, or choices of one's own, which replace those made before.

        A model that was distilled for few steps samples in its own way with any of them; `turbo` draws with the
        consistency LoRA of one that brings it along. Weights once cast down stay so rounded. Raises `InputError` for an
        unknown preset and where a LoRA would come over fused ones, `CheckpointError` for files that can't be used.
        """
        pipe: Any = self
        asked, own = get_preset(choice), self.own_scheduler
        chosen = self._chosen(asked)
        dtype = resolve_dtype(chosen.dtype, pipe._execution_device)
        tiny = None if chosen.tiny_vae is None else _tiny_vae(chosen.tiny_vae, pipe.vae)
        scheduler = build_scheduler(chosen.solver, own)
        self._use_lora(chosen.lcm_lora)
        pipe.scheduler = scheduler
        self._schedulers = own, scheduler
        self._cast(dtype, channels_last=chosen.channels_last)
        _compile(pipe.unet, chosen.engine == "compiled")
        self._tiny = tiny and tiny.to(pipe._execution_device, pipe.vae.dtype)
        self._folded = None
        self.preset, self._asked = chosen, asked

    def _chosen(self, asked: Preset) -> Preset:
        """What a preset comes to with this model."""
        if asked.bundled_lora_steps and asked.lcm_lora is None and self.consistency_lora is not None:
            asked = lcm_preset(str(self.consistency_lora), asked, solver="ddim", steps=asked.bundled_lora_steps)
        if isinstance(self.own_scheduler, LCMScheduler):
            whole = replace(asked, guidance_interval=(0.0, 1.0), deepcache_interval=1)
            return replace(whole, solver="default", steps=None, lcm_lora=None)
        return asked

    @property
    def own_scheduler(self) -> Any:
        """The model's scheduler, or what a user has put in its place; never a preset's."""
        pipe: Any = self
        own, presets = self._schedulers
        return own if pipe.scheduler is presets else pipe.scheduler

    @property
    def consistency_lora(self) -> Path | None:
        """The file of the model's own, while its U-Net is the model's own."""
        return getattr(uncompiled(self.unet), OWN_LORA, None)  # type: ignore[attr-defined]

    def _use_lora(self, path: str | None) -> None:
        """This latent consistency LoRA or none, beside whatever others are active."""
        pipe: Any = self
        if path is not None:
            _check_unfused(pipe.unet)
            pipe._read_lora(path, {})  # before the one that is there is taken out
        self.preset = replace(self.preset, lcm_lora=None, solver="default")  # else it would be brought back
        if self._lora_there() is not None:
            pipe.delete_adapters(LCM)
        self._keep_lora(path)

    def _keep_lora(self, path: str | None) -> None:
        """A preset's LoRA is loaded, and active when others come and go: its few steps count on it."""
        pipe: Any = self
        if path is not None:
            parts = pipe.unet, pipe.text_encoder
            active = active_adapters(*parts)
            if self._lora_there() is None:
                _check_unfused(pipe.unet)
                setattr(uncompiled(pipe.unet), PRESETS_LORA, path)
                pipe.load_lora_weights(path, adapter_name=LCM)
            activate(active, *parts, also=[LCM])

    def _bring_lora(self) -> None:
        """What the preset asks for, it asks of the U-Net that is here now, by which other pipelines may draw too."""
        if self._chosen(self._asked) != self.preset:
            self.set_preset(self._asked)
        there, wanted = self._lora_there(), self.preset.lcm_lora
        if there not in (None, wanted):
            self.delete_adapters(LCM)  # type: ignore[attr-defined]
        if wanted is not None and (there != wanted or not self._lora_is_active()):
            self._keep_lora(wanted)

    def _lora_there(self) -> str | None:
        """Where the preset's LoRA comes from that is in the U-Net, if there is one."""
        pipe: Any = self
        parts = uncompiled(pipe.unet), uncompiled(pipe.text_encoder)
        loaded = any(LCM in getattr(part, "peft_config", {}) for part in parts)
        return str(getattr(parts[0], PRESETS_LORA, "")) if loaded else None

    def _lora_is_active(self) -> bool:
        layers = [layer for layer in lora_layers(self.unet) if LCM in layer.r]  # type: ignore[attr-defined]
        return all(LCM in layer.active_adapters for layer in layers)

    def _cast(self, dtype: torch.dtype | None, *, channels_last: bool) -> None:
        pipe: Any = self
        for part in (pipe.unet, pipe.vae, pipe.text_encoder, pipe.qformer, pipe.controlnet):
            if dtype is not None and part is not None:
                nn.Module.to(part, dtype)  # diffusers' own warns of what must stay float32 even where nothing must
        if channels_last:
            pipe.vae.to(memory_format=torch.channels_last)
            pipe.qformer.image_encoder.tower.to(memory_format=torch.channels_last)

    # ------------------------------------------------------------------------------------------------ while it samples

    def _shortened(self, text: Tensor, empty: Tensor | None, scale: float, rescale: float, *, steps: int) -> Denoiser:
        """Guidance over the U-Net, in as many of the steps and passes as the preset says."""
        if empty is None:
            return self._network(text)
        if self.preset.split_cfg_batch:
            both = split_batch(self._network(empty), self._network(text))
        else:
            both = self._network(torch.cat([empty, text]))
        return self._guided(both, lambda: self._network(text), scale, rescale, steps=steps)

    def _guided(
        self, both: Denoiser, alone: Callable[[], Denoiser], scale: float, rescale: float, *, steps: int
    ) -> Denoiser:
        """Guidance over `both` in the preset's interval; outside it, if there is an outside, the prompt `alone`."""
        always = guided(both, scale, rescale=rescale)
        if self.preset.guidance_interval == (0.0, 1.0):
            return always
        return on_interval(self.preset.guidance_interval, steps, always, alone())

    def _network(self, text: Tensor) -> Denoiser:
        """The U-Net looking at text states, on the preset's engine, whole or with deep features used again."""
        unet, layers = self.unet, self.preset.deepcache_layers  # type: ignore[attr-defined]
        if self.preset.deepcache_interval == 1 and self.preset.engine != "openvino":
            return unet_denoiser(unet, text)
        text, every = text.to(unet.dtype), self.preset.deepcache_interval
        whole = self._run("whole U-Net", unet, lambda: WholeUNet(unet, layers))
        shallow = None if every == 1 else self._run("shallow U-Net", unet, lambda: ShallowUNet(unet, layers))
        return deepcache(whole, shallow, text, every)

    @contextmanager
    def _loras_in_weights(self) -> Iterator[None]:
        """While a picture is drawn by torch under a preset's LoRA, all active LoRAs are in the U-Net's weights.

        Beside them each takes two more products a layer: at `mini`'s size 44 % of a call. It takes the memory of those
        layers once more, so not of a U-Net that accelerate brings to a GPU and back.
        """
        unet = self.unet  # type: ignore[attr-defined]
        hooked = any(hasattr(unet, hook) for hook in ("_hf_hook", "_diffusers_hook"))
        if self.preset.lcm_lora is None or self.preset.engine != "torch" or hooked:
            yield
            return
        if self._folded is None or self._folded[0] != weights_version(unet):
            self._folded = weights_version(unet), Folded(unet)
        with self._folded[1]:
            yield

    def _decoded(self, latents: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in [0, 1]."""
        vae = self.vae  # type: ignore[attr-defined]
        if self._tiny is not None:
            vae = self._tiny = self._tiny.to(latents.device)  # the pipeline may have moved since
        if self.preset.engine != "openvino":
            return LatentCodec(vae).decode(latents)
        run = self._run("decoder", vae, lambda: Decoder(vae))
        on_engine = SimpleNamespace(
            config=vae.config, dtype=torch.float32, decode=lambda given: DecoderOutput(sample=run(given))
        )
        return LatentCodec(on_engine).decode(latents)

    def _run(self, name: str, part: nn.Module, build: Callable[[], nn.Module]) -> Callable[..., Any]:
        """A network on the preset's engine. It is built anew when the part that it came from has changed."""
        if self.preset.engine != "openvino":
            return build()
        key = (name, self.preset.deepcache_layers)
        state, run = self._engines.get(key, (None, None))
        if run is None or state != weights_version(part):
            quiet = bool(getattr(self, "_progress_bar_config", {}).get("disable", False))
            run = openvino(build(), name=name, quiet=quiet)
            self._engines = {**self._engines, key: (weights_version(part), run)}
        return run


def _check_unfused(unet: nn.Module) -> None:
    """Raises `InputError` where a LoRA would be passed over."""
    if any(layer.merged for layer in lora_layers(unet)):
        raise InputError("A preset's LoRA can't be drawn with over fused ones: call unfuse_lora first.")


def _can_fold(layer: BaseTunerLayer) -> bool:
    return bool(layer.active_adapters) and not layer.disable_adapters and not layer.merged


def _tiny_vae(path: str, vae: Any) -> Any:
    """Another decoder for the latents of `vae`. Raises `CheckpointError` for what is none."""
    try:
        tiny = AutoencoderTiny.from_pretrained(path)
    except UNREADABLE as error:
        raise CheckpointError(f"There is no AutoencoderTiny at {path} ({reason(error)}).") from error
    if any(parameter.is_meta for parameter in tiny.parameters()):  # diffusers fills no gaps, and says so in a log
        raise CheckpointError(f"There is no AutoencoderTiny at {path}: what lies there is another kind of network.")
    found, wanted = tiny.config.latent_channels, vae.config.latent_channels
    if found != wanted:
        raise CheckpointError(
            f"The AutoencoderTiny at {path} reads {found} channels, and this model's latents have {wanted}."
        )
    return tiny


def _compile(unet: Any, wanted: bool) -> None:
    """`nn.Module.compile` has no opposite."""
    if wanted:
        unet.compile()
    elif unet._compiled_call_impl is not None:
        unet._compiled_call_impl = None
