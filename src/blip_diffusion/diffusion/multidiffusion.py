"""MultiDiffusion: one image from the predictions of several prompts, each for its region (Bar-Tal et al. 2023)."""

from collections.abc import Callable

import torch
from torch import Tensor

from blip_diffusion.diffusion.guidance import Denoiser


def averaged_regions(
    build: Callable[[Tensor], Denoiser], text: Tensor, visibility: Tensor, *, doubled: bool = False
) -> Denoiser:
    """Average the predictions of K sentences at each position: v = Σ m_k v_k / Σ m_k (Bar-Tal et al. 2023, equation 5).

    Args:
        build: Function from text states (R, L, D) to a denoiser of R latents.
        text: Text states (B, K L, D) of K sentences, one after another; (2B, K L, D) if doubled.
        visibility: The weights m_k, (K, h, w), with a positive sum at each position.
        doubled: Whether the first half of the batch are the states of the negative prompts, repeated K times.

    Returns:
        A denoiser of B latents, or of 2B if doubled.
    """
    weights = (visibility / visibility.sum(dim=0))[:, None, None]  # (K, 1, 1, h, w)
    count = len(visibility)
    empty = [text.chunk(2)[0].chunk(count, dim=1)[0]] if doubled else []
    full = list((text.chunk(2)[1] if doubled else text).chunk(count, dim=1))
    network = build(torch.cat([*empty, *full]))

    def denoise(latents: Tensor, timestep: Tensor) -> Tensor:
        single = latents.chunk(2)[1] if doubled else latents
        predictions = network(single.repeat(count + doubled, 1, 1, 1), timestep).reshape(-1, *single.shape)
        mean = (weights.to(predictions) * predictions[doubled:]).sum(dim=0)
        return torch.cat([predictions[0], mean]) if doubled else mean

    return denoise
