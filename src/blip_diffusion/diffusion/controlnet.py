"""ControlNets (Zhang, Rao & Agrawala 2023) and T2I-Adapters (Mou et al. 2023) as a denoiser."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import T2IAdapter
from torch import Tensor

from blip_diffusion.diffusion.guidance import Denoiser
from blip_diffusion.protocols import UNet


@dataclass(frozen=True)
class Control:
    """A ControlNet or a T2I-Adapter, its control image, its scale and the steps in which it is active."""

    net: Any
    image: Tensor  # (B, 1 or 3, H, W) in [0, 1]
    scale: float = 1.0
    start: float = 0.0  # shares of all steps: active in the steps that lie wholly between start and end
    end: float = 1.0

    def is_active(self, step: int, steps: int) -> bool:
        """Return whether the net runs in step `step` of `steps`."""
        return step / steps >= self.start and (step + 1) / steps <= self.end


def controlled_denoiser(
    unet: UNet,
    text: Tensor,
    controls: Sequence[Control],
    *,
    steps: int,
    guess: bool = False,
    doubled: bool = False,
    counter: Iterator[int] | None = None,
) -> Denoiser:
    """Return a denoiser with the residuals of ControlNets and T2I-Adapters added.

    A ControlNet reads the same text states (B, L, D), runs in each step and adds to the skips and the middle. An
    adapter depends on neither noise nor prompt: it runs once, here, and adds to the encoder's levels. The denoiser must
    be called once per step, in order; denoisers that take turns share a `counter`.

    With `guess`, a ControlNet's residuals are weaker the shallower their layer, and in a batch `doubled` for guidance
    all nets act on the second, conditional half only: guess mode, for control without a prompt.
    """
    counter = itertools.count() if counter is None else counter
    text = text.to(unet.dtype)
    halved = guess and doubled
    features = {
        index: _features(control, text.dtype) for index, control in enumerate(controls) if is_adapter(control.net)
    }

    def denoise(latents: Tensor, timestep: Tensor) -> Tensor:
        step = next(counter)
        inputs = latents.to(text.dtype)
        skips: list[Tensor] = []
        levels: list[Tensor] = []
        for index, control in enumerate(controls):
            if not control.is_active(step, steps):
                continue
            if index in features:
                levels = _add(levels, [_for_batch(x, inputs, halved=halved) for x in features[index]])
            else:
                skips = _add(skips, _control(control, inputs, timestep, text, guess=guess, halved=halved))
        extra = {
            "down_block_additional_residuals": skips[:-1] or None,
            "mid_block_additional_residual": skips[-1] if skips else None,
            "down_intrablock_additional_residuals": levels or None,
        }
        prediction: Tensor = unet(inputs, timestep, encoder_hidden_states=text, return_dict=False, **extra)[0]
        return prediction.to(latents.dtype)

    return denoise


def is_adapter(net: Any) -> bool:
    """Return whether a net is a T2I-Adapter."""
    return isinstance(getattr(net, "_orig_mod", net), T2IAdapter)  # also one that torch.compile wraps


def _add(total: list[Tensor], more: list[Tensor]) -> list[Tensor]:
    return [a + b for a, b in zip(total, more, strict=True)] if total else more


def _features(control: Control, dtype: torch.dtype) -> list[Tensor]:
    """Return an adapter's features for each level of the U-Net's encoder: (B, C, H, W) each."""
    image, channels = control.image.to(control.net.dtype), int(control.net.config.in_channels)
    if image.shape[1] != channels:
        image = image.mean(dim=1, keepdim=True).expand(-1, channels, -1, -1)
    features = [control.scale * x for x in control.net(image)]
    same_dtype = control.net.dtype == dtype  # then autocast chooses the type, as in the U-Net
    return features if same_dtype else [x.to(dtype) for x in features]


def _for_batch(feature: Tensor, latents: Tensor, *, halved: bool) -> Tensor:
    """Repeat a feature to the batch size of the latents; zero it in the first half if `halved`."""
    copies = len(latents) // len(feature)
    repeated = feature.repeat(copies, 1, 1, 1)
    if halved:
        repeated = torch.cat([torch.zeros_like(repeated[: len(latents) // 2]), repeated[len(latents) // 2 :]])
    return repeated


def _control(
    control: Control, latents: Tensor, timestep: Tensor, text: Tensor, *, guess: bool, halved: bool
) -> list[Tensor]:
    """Return a ControlNet's residuals for the U-Net's skips, then for its middle block."""
    dtype = latents.dtype
    if halved:
        latents, text = latents.chunk(2)[1], text.chunk(2)[1]
    latents = latents[:, : control.net.config.in_channels]  # a U-Net may read a mask beside them
    latents, text = latents.to(control.net.dtype), text.to(control.net.dtype)
    image = control.image.to(latents).expand(-1, 3, -1, -1).repeat(len(latents) // len(control.image), 1, 1, 1)
    down, middle = control.net(
        latents,
        timestep,
        encoder_hidden_states=text,
        controlnet_cond=image,
        conditioning_scale=control.scale,
        guess_mode=guess,
        return_dict=False,
    )
    residuals = [x.to(dtype) for x in (*down, middle)]
    return [torch.cat([torch.zeros_like(x), x]) if halved else x for x in residuals]
