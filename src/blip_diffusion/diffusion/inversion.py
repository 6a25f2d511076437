"""Inversion: noised latents of a given image, from which sampling leads back to it, or to an edit of it.

DDIM inversion (Song et al. 2021, section 4.3), edit-friendly DDPM (Huberman-Spiegelglas et al. 2024) and, as the
reference of both, one noise at all levels. Direct inversion (Ju et al. 2024) is DDIM's path, which the source branch
reads instead of computing it again. Letters: `K` levels, `n` images.
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
"""How an image is inverted; `none` is fresh noise."""
SMALLEST_SIGNAL = 1e-3
"""√ᾱ of the noisiest level that an inversion visits. With zero terminal SNR, the last level tells nothing."""
LevelHook = Callable[[int, Tensor], Tensor]
"""Called after a step with the index of the level that is reached and its latents; returns those to go on with."""


@dataclass(frozen=True)
class Inversion:
    """An image's path through the noise levels.

    Args:
        timesteps: K falling timesteps.
        latents: K + 1 times (n, C, H, W): one for each timestep, and the clean latents last.
        residuals: K of the same shape, which DDPM's steps add; empty for DDIM's.
    """

    timesteps: tuple[int, ...]
    latents: tuple[Tensor, ...]
    residuals: tuple[Tensor, ...] = ()


def visited_timesteps(
    noising: Noising, timesteps: Sequence[int], strength: float = 1.0, *, noisiest: bool = False
) -> tuple[int, ...]:
    """Return the last share `strength` of falling timesteps, without levels that hold no signal unless `noisiest`.

    Raises:
        InputError: If none is left.
    """
    count = min(int(len(timesteps) * strength + 1e-6), len(timesteps))
    chosen = [int(t) for t in timesteps][len(timesteps) - count :]
    visited = tuple(t for t in chosen if noisiest or float(noising.alphas_cumprod[t]) ** 0.5 > SMALLEST_SIGNAL)
    if not visited:
        raise InputError(f"{len(timesteps)} steps with the strength {strength:g} leave none to edit in: use more.")
    return visited


@torch.no_grad()
def ddim_inversion(denoiser: Denoiser, clean: Tensor, noising: Noising, timesteps: Sequence[int]) -> Inversion:
    """Integrate DDIM from clean latents (n, C, H, W) up to the first of falling timesteps.

    The network is asked at the level to be reached, as the published code does. One call a level.
    """
    path, below = [clean], -1
    for timestep in reversed(timesteps):
        at = _batch(timestep, clean)
        prediction = denoiser(path[0], _scalar(timestep, clean))
        noise = noising.noise(path[0], noising.predict_x0(path[0], prediction, at), at)
        signal, spread = _level(noising, below, clean)
        x0 = (path[0] - spread * noise) / signal
        path.insert(0, noising.noised(x0, noise, at))
        below = timestep
    return Inversion(tuple(timesteps), tuple(path))


@torch.no_grad()
def ddpm_inversion(
    denoiser: Denoiser, clean: Tensor, noising: Noising, timesteps: Sequence[int], noise: Callable[[], Tensor]
) -> Inversion:
    """Return a path whose levels have independent noise, and what DDPM's steps add to follow it.

    x_t = √ᾱ_t x_0 + √(1-ᾱ_t) ε_t and z_t = x_s - μ_t(x_t) (Huberman-Spiegelglas et al. 2024, equations 5 and 6, with
    σ_t in z_t). The last residual is kept, so that the way back is exact.

    Args:
        denoiser: Of the text that describes the image.
        clean: Latents (n, C, H, W).
        noising: The forward process.
        timesteps: Falling.
        noise: Draws normal noise (n, C, H, W).
    """
    path = [noising.noised(clean, noise(), _batch(t, clean)) for t in timesteps] + [clean]
    residuals = []
    for (timestep, below), (now, then) in zip(_steps(timesteps), itertools.pairwise(path), strict=True):
        mean = _step(now, denoiser(now, _scalar(timestep, clean)), noising, timestep, below, eta=1.0)
        residuals.append(then - mean)
    return Inversion(tuple(timesteps), tuple(path), tuple(residuals))


def noised_path(clean: Tensor, noising: Noising, timesteps: Sequence[int], noise: Tensor) -> Inversion:
    """Return the path of one noise (n, C, H, W) at all levels: no inversion."""
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
        denoiser: Of the text to draw. It is called once a step and resampling, in order.
        inversion: The path to begin with.
        noising: The forward process.
        start: Latents of the first level in place of the path's.
        resamplings: How often each step but the last is taken; in between, its result is noised again, which closes
            seams (Lugmayr et al. 2022, "RePaint", algorithm 1).
        noise: Draws normal noise (n, C, H, W) for them.
        hook: Called after each step; see `LevelHook`.

    Returns:
        Clean latents (n, C, H, W).
    """
    latents = inversion.latents[0] if start is None else start
    for index, (timestep, below) in enumerate(_steps(inversion.timesteps)):
        repeats = resamplings if below >= 0 and noise is not None else 1
        for repeat in range(repeats):
            if repeat and noise is not None:
                latents = _noised_again(latents, noise(), noising, below, timestep)
            prediction = denoiser(latents, _scalar(timestep, latents))
            eta = 1.0 if inversion.residuals else 0.0
            latents = _step(latents, prediction, noising, timestep, below, eta=eta)
            if inversion.residuals:
                latents = latents + inversion.residuals[index]
            if hook is not None:
                latents = hook(index + 1, latents)
    return latents


def replayed(denoiser: Denoiser, inversion: Inversion, noising: Noising) -> Inversion:
    """Return the path that sampling really takes back: where DDIM drifts, it is not the inversion's."""
    path = [inversion.latents[0]]

    def keep(_: int, latents: Tensor) -> Tensor:
        path.append(latents)
        return latents

    sample_from(denoiser, inversion, noising, hook=keep)
    return Inversion(inversion.timesteps, tuple(path), inversion.residuals)


def _steps(timesteps: Sequence[int]) -> list[tuple[int, int]]:
    """Return each timestep and the next cleaner one, -1 for the clean image."""
    return list(itertools.pairwise([*timesteps, -1]))


def _batch(timestep: int, like: Tensor) -> Tensor:
    return torch.full((len(like),), timestep, device=like.device)


def _scalar(timestep: int, like: Tensor) -> Tensor:
    """Return a timestep as samplers give it to a network."""
    return torch.tensor(timestep, device=like.device)


def _level(noising: Noising, timestep: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return √ᾱ and √(1-ᾱ) of a timestep; those of the clean image for -1."""
    if timestep < 0:
        return like.new_ones(()), like.new_zeros(())
    return noising.signal_and_noise(_batch(timestep, like), like)


def _step(latents: Tensor, prediction: Tensor, noising: Noising, timestep: int, below: int, *, eta: float) -> Tensor:
    """Return the mean of DDIM's step for η (Song et al. 2021, equations 12 and 16); η = 1 is DDPM."""
    at = _batch(timestep, latents)
    x0 = noising.predict_x0(latents, prediction, at)
    noise = noising.noise(latents, x0, at)
    signal, spread = _level(noising, below, latents)
    own_signal, own_spread = _level(noising, timestep, latents)
    sigma = eta * spread / own_spread * (1 - (own_signal / signal).square()).sqrt()
    return signal * x0 + (spread.square() - sigma.square()).clamp(min=0).sqrt() * noise


def _noised_again(latents: Tensor, noise: Tensor, noising: Noising, below: int, timestep: int) -> Tensor:
    """Noise latents of one level up to a noisier one: x_t = √(ᾱ_t/ᾱ_s) x_s + √(1 - ᾱ_t/ᾱ_s) ε."""
    signal, _ = _level(noising, timestep, latents)
    ratio = (signal / _level(noising, below, latents)[0]).square()
    return ratio.sqrt() * latents + (1 - ratio).sqrt() * noise
