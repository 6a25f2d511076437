"""Denoisers, callables `(latents, timestep) -> prediction`, and guidance, which combines them to another denoiser."""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from blip_diffusion.protocols import UNet

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""Noised latents (B, C, H, W) and a timestep to the network's prediction (B, C, H, W)."""


def unet_denoiser(unet: UNet, text: Tensor, class_labels: Tensor | None = None) -> Denoiser:
    """Return a denoiser of the U-Net with text states (B, L, D) in cross-attention.

    The U-Net computes in its data type; latents keep theirs, which a solver's small steps need. `class_labels` (B,)
    are for a U-Net with a class embedding.
    """
    text = text.to(unet.dtype)  # once, not in each step: `unet.dtype` iterates over all layers
    options: dict[str, Any] = {"encoder_hidden_states": text, "return_dict": False}
    if class_labels is not None:
        options["class_labels"] = class_labels.repeat(len(text) // len(class_labels))

    def denoise(latents: Tensor, timestep: Tensor) -> Tensor:
        prediction: Tensor = unet(latents.to(text.dtype), timestep, **options)[0]
        return prediction.to(latents.dtype)

    return denoise


def guided(both: Denoiser, scale: float | Callable[[], float], *, rescale: float = 0.0) -> Denoiser:
    """Apply classifier-free guidance: ε = ε_u + scale · (ε_c - ε_u) (Ho & Salimans 2022, equation 6).

    Args:
        both: A denoiser of batches [unconditional, conditional] of size 2B.
        scale: Guidance scale; 1 is the conditional prediction. A function is called in each step.
        rescale: In [0, 1]; moves the result's standard deviation towards the conditional prediction's, which noise
            schedules that end in pure noise need (Lin et al. 2023, section 3.4).

    Returns:
        A denoiser of batches of size B.
    """

    def denoise(latents: Tensor, timestep: Tensor) -> Tensor:
        unconditional, conditional = both(torch.cat([latents, latents]), timestep).chunk(2)
        weight = scale() if callable(scale) else scale
        prediction = unconditional + weight * (conditional - unconditional)
        return _rescaled(prediction, conditional, rescale) if rescale else prediction

    return denoise


def _rescaled(guided: Tensor, conditional: Tensor, amount: float) -> Tensor:
    dims = tuple(range(1, guided.ndim))
    ratio = conditional.std(dim=dims, keepdim=True) / guided.std(dim=dims, keepdim=True)
    return guided * (amount * ratio + 1 - amount)


def on_interval(
    interval: tuple[float, float], steps: int, inside: Denoiser, outside: Denoiser, *, first: int = 0
) -> Denoiser:
    """Return a denoiser that is `inside` in the steps of an interval and `outside` before and after it.

    Guidance helps in the middle steps: early it reduces variety, late it changes little (Kynkäänniemi et al. 2024).

    Args:
        interval: Start and end in [0, 1], in shares of `steps`; a step belongs to it if it begins in it.
        steps: Number of sampling steps.
        inside: Denoiser within the interval.
        outside: Denoiser outside of it.
        first: Index of the first step for which the denoiser is called.
    """
    start, end = interval
    counter = itertools.count(first)

    def denoise(latents: Tensor, timestep: Tensor) -> Tensor:
        share = next(counter) / steps
        return (inside if start <= share < end else outside)(latents, timestep)

    return denoise


def split_batch(unconditional: Denoiser, conditional: Denoiser) -> Denoiser:
    """Return a denoiser of [unconditional, conditional] batches of 2B that runs two passes of B: half the memory."""

    def denoise(latents: Tensor, timestep: Tensor) -> Tensor:
        first, second = latents.chunk(2)
        return torch.cat([unconditional(first, timestep), conditional(second, timestep)])

    return denoise
