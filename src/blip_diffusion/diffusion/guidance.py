"""A denoiser is a callable `(latents, timestep) -> prediction`; guidance is one more of the same shape."""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""Noised latents (B, C, H, W) and a timestep to the network's answer (B, C, H, W)."""


def unet_denoiser(unet: Any, text: Tensor) -> Denoiser:
    """Return a denoiser of the U-Net with text states (B, L, D) in cross-attention.

    It computes in its own precision; latents keep theirs, in which a solver's small steps add up.
    """
    text = text.to(unet.dtype)  # which asks every layer: once is enough

    def denoise(latents: Tensor, timestep: Tensor) -> Tensor:
        answer: Tensor = unet(latents.to(text.dtype), timestep, encoder_hidden_states=text, return_dict=False)[0]
        return answer.to(latents.dtype)

    return denoise


def guided(both: Denoiser, scale: float | Callable[[], float], *, rescale: float = 0.0) -> Denoiser:
    """Apply classifier-free guidance: ε = ε_u + scale · (ε_c - ε_u) (Ho & Salimans 2022, equation 6).

    Args:
        both: A denoiser of batches [unconditional, conditional] of size 2B.
        scale: Guidance scale; 1 is the conditional prediction. A function is called at each step.
        rescale: In [0, 1]; pulls the result's standard deviation back to the conditional one's, which noise schedules
            that end in pure noise need (Lin et al. 2023, section 3.4).

    Returns:
        A denoiser of batches of size B.
    """

    def denoise(latents: Tensor, timestep: Tensor) -> Tensor:
        empty, full = both(torch.cat([latents, latents]), timestep).chunk(2)
        weight = scale() if callable(scale) else scale
        answer = empty + weight * (full - empty)
        return _rescaled(answer, full, rescale) if rescale else answer

    return denoise


def _rescaled(answer: Tensor, conditional: Tensor, amount: float) -> Tensor:
    dims = tuple(range(1, answer.ndim))
    ratio = conditional.std(dim=dims, keepdim=True) / answer.std(dim=dims, keepdim=True)
    return answer * (amount * ratio + 1 - amount)


def on_interval(
    interval: tuple[float, float], steps: int, inside: Denoiser, outside: Denoiser, *, first: int = 0
) -> Denoiser:
    """One denoiser in the steps that begin in a share of all, another before and after it; `first` is the next step.

    Guidance helps in the middle: early it narrows what is drawn, late it changes little (Kynkäänniemi et al. 2024).
    """
    start, end = interval
    counter = itertools.count(first)

    def denoise(latents: Tensor, timestep: Tensor) -> Tensor:
        share = next(counter) / steps
        return (inside if start <= share < end else outside)(latents, timestep)

    return denoise


def split_batch(empty: Denoiser, full: Denoiser) -> Denoiser:
    """Answers for [unconditional, conditional] batches of 2B in two passes of B: half the memory."""

    def denoise(latents: Tensor, timestep: Tensor) -> Tensor:
        first, second = latents.chunk(2)
        return torch.cat([empty(first, timestep), full(second, timestep)])

    return denoise
