"""Inversion: noised latents of a given image, from which sampling reconstructs or edits it.

DDIM inversion (Song et al. 2021, section 4.3), edit-friendly DDPM (Huberman-Spiegelglas et al. 2024) and, as
their baseline, one noise at all levels. Direct inversion (Ju et al. 2024) takes the source latents of each step from
DDIM's inversion path instead of sampling them again. Letters: `K` levels, `n` images.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from blip_diffusion.diffusion.forward_process import Noising
from blip_diffusion.diffusion.guidance import Denoiser
from blip_diffusion.errors import InputError

Method = Literal["direct", "ddim", "ddpm", "none"]
"""The inversion method; "none" adds one noise to the image."""
SMALLEST_SIGNAL = 1e-3
"""√ᾱ of the noisiest level that an inversion visits. With zero terminal SNR, the noisiest level contains no image."""
LevelHook = Callable[[int, Tensor], Tensor]
"""Called after each step with the index of the new level and its latents; returns the latents to continue with."""


@dataclass(frozen=True)
class Inversion:
    """An image's path through the noise levels.

    Args:
        timesteps: K decreasing timesteps.
        latents: K + 1 tensors (n, C, H, W), one for each timestep, and the clean latents last.
        residuals: K tensors of that shape, added by DDPM's steps; empty for DDIM.
    """

    timesteps: tuple[int, ...]
    latents: tuple[Tensor, ...]
    residuals: tuple[Tensor, ...] = ()


def visited_timesteps(
    noising: Noising, timesteps: Sequence[int], strength: float = 1.0, *, noisiest: bool = False
) -> tuple[int, ...]:
    """Return the timesteps that an edit of this strength visits.

    Args:
        noising: The forward process.
        timesteps: The scheduler's decreasing timesteps.
        strength: Share in (0, 1] of the timesteps, counted from the last.
        noisiest: Whether to keep levels whose √ᾱ is below `SMALLEST_SIGNAL`.

    Raises:
        InputError: If no timestep is left.
    """
    count = min(int(len(timesteps) * strength + 1e-6), len(timesteps))
    chosen = [int(t) for t in timesteps][len(timesteps) - count :]
    visited = tuple(t for t in chosen if noisiest or float(noising.alphas_cumprod[t]) ** 0.5 > SMALLEST_SIGNAL)
    if not visited:
        raise InputError(f"{len(timesteps)} steps with the strength {strength:g} leave no step for an edit: use more.")
    return visited


@torch.no_grad()
def ddim_inversion(denoiser: Denoiser, clean: Tensor, noising: Noising, timesteps: Sequence[int]) -> Inversion:
    """Integrate DDIM from clean latents (n, C, H, W) up to the first of decreasing timesteps.

    The network is evaluated once per level, at the timestep of the next noisier level, as in the published code.
    """
    path, cleaner = [clean], -1
    for timestep in reversed(timesteps):
        at = _batch(timestep, clean)
        prediction = denoiser(path[0], _scalar(timestep, clean))
        noise = noising.noise(path[0], noising.predict_x0(path[0], prediction, at), at)
        signal, spread = _level(noising, cleaner, clean)
        x0 = (path[0] - spread * noise) / signal
        path.insert(0, noising.noised(x0, noise, at))
        cleaner = timestep
    return Inversion(tuple(timesteps), tuple(path))


@torch.no_grad()
def ddpm_inversion(
    denoiser: Denoiser, clean: Tensor, noising: Noising, timesteps: Sequence[int], noise: Callable[[], Tensor]
) -> Inversion:
    """Return a path whose levels have independent noise, and the residuals with which DDPM's steps follow it.

    x_t = √ᾱ_t x_0 + √(1-ᾱ_t) ε_t and z_t = x_s - μ_t(x_t) (Huberman-Spiegelglas et al. 2024, equations 5 and 6, with
    σ_t in z_t). The last residual is kept, so that sampling reconstructs the image exactly.

    Args:
        denoiser: Conditioned on the text that describes the image.
        clean: Latents (n, C, H, W).
        noising: The forward process.
        timesteps: Decreasing.
        noise: Returns new normal noise (n, C, H, W).
    """
    path = [noising.noised(clean, noise(), _batch(t, clean)) for t in timesteps] + [clean]
    residuals = []
    for (timestep, next_timestep), (latents, next_latents) in zip(
        _steps(timesteps), itertools.pairwise(path), strict=True
    ):
        prediction = denoiser(latents, _scalar(timestep, clean))
        mean = _step(latents, prediction, noising, timestep, next_timestep, eta=1.0)
        residuals.append(next_latents - mean)
    return Inversion(tuple(timesteps), tuple(path), tuple(residuals))


def noised_path(clean: Tensor, noising: Noising, timesteps: Sequence[int], noise: Tensor) -> Inversion:
    """Return the path with one noise (n, C, H, W) at all levels, without inversion."""
    path = [noising.noised(clean, noise, _batch(t, clean)) for t in timesteps]
    return Inversion(tuple(timesteps), (*path, clean))


@torch.no_grad()
def sample_from(
    denoiser: Denoiser,
    inversion: Inversion,
    noising: Noising,
    *,
    start: Tensor | None = None,
    resamplings: int = 1,
    noise: Callable[[], Tensor] | None = None,
    hook: LevelHook | None = None,
) -> Tensor:
    """Sample along an inversion's levels: DDIM's steps, or DDPM's with its residuals.

    Args:
        denoiser: Conditioned on the target text. It is called once per step and resampling, in order.
        inversion: The path that provides the levels and the first latents.
        noising: The forward process.
        start: Latents (n, C, H, W) of the first level in place of the path's.
        resamplings: How often each step but the last is repeated. In between, its result is noised again, which removes
            seams (Lugmayr et al. 2022, "RePaint", algorithm 1).
        noise: Returns new normal noise (n, C, H, W) for resampling.
        hook: Called after each step; see `LevelHook`.

    Returns:
        Clean latents (n, C, H, W).
    """
    latents = inversion.latents[0] if start is None else start
    for index, (timestep, next_timestep) in enumerate(_steps(inversion.timesteps)):
        repeats = resamplings if next_timestep >= 0 and noise is not None else 1
        for repeat in range(repeats):
            if repeat and noise is not None:
                latents = _renoised(latents, noise(), noising, next_timestep, timestep)
            prediction = denoiser(latents, _scalar(timestep, latents))
            eta = 1.0 if inversion.residuals else 0.0
            latents = _step(latents, prediction, noising, timestep, next_timestep, eta=eta)
            if inversion.residuals:
                latents = latents + inversion.residuals[index]
            if hook is not None:
                latents = hook(index + 1, latents)
    return latents


def sampled_path(denoiser: Denoiser, inversion: Inversion, noising: Noising) -> Inversion:
    """Return the path of sampling from an inversion's first latents; DDIM's error separates the two paths."""
    path = [inversion.latents[0]]

    def append(_: int, latents: Tensor) -> Tensor:
        path.append(latents)
        return latents

    sample_from(denoiser, inversion, noising, hook=append)
    return Inversion(inversion.timesteps, tuple(path), inversion.residuals)


def _steps(timesteps: Sequence[int]) -> list[tuple[int, int]]:
    """Return each timestep and the next cleaner one, -1 for the clean image."""
    return list(itertools.pairwise([*timesteps, -1]))


def _batch(timestep: int, like: Tensor) -> Tensor:
    return torch.full((len(like),), timestep, device=like.device)


def _scalar(timestep: int, like: Tensor) -> Tensor:
    """Return a timestep as a scalar tensor, as schedulers pass it to a network."""
    return torch.tensor(timestep, device=like.device)


def _level(noising: Noising, timestep: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return √ᾱ and √(1-ᾱ) of a timestep; those of the clean image for -1."""
    if timestep < 0:
        return like.new_ones(()), like.new_zeros(())
    return noising.signal_and_noise(_batch(timestep, like), like)


def _step(
    latents: Tensor, prediction: Tensor, noising: Noising, timestep: int, next_timestep: int, *, eta: float
) -> Tensor:
    """Return the mean of DDIM's step for η (Song et al. 2021, equations 12 and 16); η = 1 is DDPM."""
    at = _batch(timestep, latents)
    x0 = noising.predict_x0(latents, prediction, at)
    noise = noising.noise(latents, x0, at)
    signal, spread = _level(noising, next_timestep, latents)
    signal_t, spread_t = _level(noising, timestep, latents)
    sigma = eta * spread / spread_t * (1 - (signal_t / signal).square()).sqrt()
    return signal * x0 + (spread.square() - sigma.square()).clamp(min=0).sqrt() * noise


def _renoised(latents: Tensor, noise: Tensor, noising: Noising, cleaner: int, timestep: int) -> Tensor:
    """Return latents of a cleaner level noised to `timestep`: x_t = √(ᾱ_t/ᾱ_s) x_s + √(1 - ᾱ_t/ᾱ_s) ε."""
    signal, _ = _level(noising, timestep, latents)
    ratio = (signal / _level(noising, cleaner, latents)[0]).square()
    return ratio.sqrt() * latents + (1 - ratio).sqrt() * noise
