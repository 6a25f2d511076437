"""The forward process: how latents are noised, the prediction target, and the loss weight of a timestep."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from blip_diffusion.diffusion.guidance import Denoiser
from blip_diffusion.errors import ConfigError
from blip_diffusion.protocols import Scheduler

Prediction = Literal["epsilon", "v_prediction"]


@dataclass(frozen=True)
class Noising:
    """The forward process q(x_t | x_0) of Ho et al. 2020 for a schedule of cumulative alphas (T,)."""

    alphas_cumprod: Tensor
    prediction: Prediction = "epsilon"

    def __post_init__(self) -> None:
        if self.prediction not in ("epsilon", "v_prediction"):
            raise ConfigError(f"noising: prediction is {self.prediction!r}; use epsilon or v_prediction.")

    @classmethod
    def from_scheduler(cls, scheduler: Scheduler) -> "Noising":
        """Return the forward process that a diffusers scheduler inverts."""
        return cls(scheduler.alphas_cumprod.float(), scheduler.config.prediction_type)

    @property
    def timesteps(self) -> int:
        """T, the number of noise levels."""
        return len(self.alphas_cumprod)

    def signal_and_noise(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the factors √ᾱ and √(1-ᾱ) of timesteps (B,), shaped to multiply latents."""
        alphas = self.alphas_cumprod.to(like.device)[timesteps].float().view(-1, *[1] * (like.ndim - 1))
        return alphas.sqrt(), (1 - alphas).sqrt()

    def noised(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return x_t = √ᾱ x_0 + √(1-ᾱ) ε (Ho et al. 2020, equation 4)."""
        signal, spread = self.signal_and_noise(timesteps, latents)
        return signal * latents + spread * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return the regression target: ε, or v = √ᾱ ε - √(1-ᾱ) x_0 (Salimans & Ho 2022)."""
        if self.prediction == "epsilon":
            return noise
        signal, spread = self.signal_and_noise(timesteps, latents)
        return signal * noise - spread * latents

    def predict_x0(self, noised: Tensor, prediction: Tensor, timesteps: Tensor) -> Tensor:
        """Return the x_0 that a prediction implies."""
        signal, spread = self.signal_and_noise(timesteps, noised)
        if self.prediction == "epsilon":
            return (noised - spread * prediction) / signal.clamp(min=1e-4)
        return signal * noised - spread * prediction

    def noise(self, noised: Tensor, clean: Tensor, timesteps: Tensor) -> Tensor:
        """Return the ε for which x_0 is noised to x_t."""
        signal, spread = self.signal_and_noise(timesteps, noised)
        return (noised - signal * clean) / spread.clamp(min=1e-4)

    def random_timesteps(self, count: int, rng: torch.Generator, *, timestep_shift: float = 1.0) -> Tensor:
        """Sample timesteps (count,): uniform for `timestep_shift` s = 1, noisier for s > 1.

        u becomes s u / (1 + (s - 1) u) (Esser et al. 2024, equation 23), so half lie above s / (1 + s).
        """
        if timestep_shift == 1:
            return torch.randint(0, self.timesteps, (count,), generator=rng, device=rng.device)
        share = torch.rand(count, generator=rng, device=rng.device)
        shifted = timestep_shift * share / (1 + (timestep_shift - 1) * share)
        return (shifted * self.timesteps).long().clamp(max=self.timesteps - 1)  # float32 rounds the largest to 1

    def weight(self, timesteps: Tensor, gamma: float | None) -> Tensor:
        """Return min-SNR-γ weights (B,) (Hang et al. 2023), with SNR + 1 for v so that no noise level has weight 0.

        `None` weighs all timesteps equally: the simple loss of Ho et al. 2020, equation 14.
        """
        if gamma is None:
            return torch.ones(len(timesteps), device=timesteps.device)
        alphas = self.alphas_cumprod.to(timesteps.device)[timesteps].float()
        snr = alphas / (1 - alphas).clamp(min=1e-8)
        if self.prediction == "epsilon":
            return snr.clamp(max=gamma) / snr.clamp(min=1e-8)
        return (snr + 1).clamp(max=gamma) / (snr + 1)


def denoising_loss(
    denoiser: Denoiser,
    latents: Tensor,
    noising: Noising,
    rng: torch.Generator,
    *,
    gamma: float | None = None,
    timestep_shift: float = 1.0,
    importance: Tensor | None = None,
) -> Tensor:
    """Return the latent diffusion loss (Rombach et al. 2022, equation 3) over random noise and timesteps.

    loss = mean_b w(t_b) · mean_chw m ⊙ (f(x_t, t) - target)².

    Args:
        denoiser: The network with its conditions.
        latents: Clean latents (B, C, H, W).
        noising: The forward process, which defines x_t, target and w.
        rng: Source of noise and timesteps.
        gamma: γ of min-SNR weights (Hang et al. 2023); `None`: w = 1.
        timestep_shift: Timesteps are noisier above 1; see `Noising.random_timesteps`.
        importance: m (B, 1, H, W) of mean 1; default 1.

    Returns:
        A scalar.
    """
    noise = torch.randn(latents.shape, generator=rng, device=rng.device)
    timesteps = noising.random_timesteps(len(latents), rng, timestep_shift=timestep_shift)
    return denoising_error(denoiser, latents, noise, timesteps, noising, gamma=gamma, importance=importance)


def denoising_error(
    denoiser: Denoiser,
    latents: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    noising: Noising,
    *,
    gamma: float | None = None,
    importance: Tensor | None = None,
) -> Tensor:
    """Return `denoising_loss` for given noise (B, C, H, W) and timesteps (B,)."""
    prediction = denoiser(noising.noised(latents, noise, timesteps), timesteps)
    errors = (prediction.float() - noising.target(latents, noise, timesteps)).pow(2)
    if importance is not None:
        errors = errors * importance
    return (errors.mean(dim=(1, 2, 3)) * noising.weight(timesteps, gamma)).mean()
