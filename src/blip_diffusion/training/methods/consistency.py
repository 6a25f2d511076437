"""Latent consistency distillation of the subject model (Luo et al. 2023): pictures in two to four steps, unguided.

The student answers for a noised picture what it answers for the same picture one solver step cleaner, all the way to
the clean one. That step is the teacher's: the model as it was, with guidance, which so becomes part of the student.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import LCMScheduler
from torch import Tensor, nn

from blip_diffusion.checkpoint.folder import save_model
from blip_diffusion.data.records import SubjectBatch
from blip_diffusion.diffusion.denoisers import guided, unet_denoiser
from blip_diffusion.diffusion.noising import Noising
from blip_diffusion.errors import ConfigError
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.training.drawing import draw
from blip_diffusion.training.method import Gather, Losses, ParameterGroup, StepContext

SIGMA_DATA, TIMESTEP_SCALING = 0.5, 10.0
"""Of the boundary condition, as in `LCMScheduler`, which samples from what is trained here."""


@dataclass(frozen=True)
class ConsistencyConfig:
    """What the teacher does, and how the student will be asked."""

    guidance: float = 3.0  # the teacher's scale
    rescale: float = 0.6  # and its rescaling
    grid: int = 50  # solver steps from noise to picture, each of which the student learns to skip
    steps: int = 4  # of sampling with the exported model
    huber: float = 1e-3  # where the pseudo-Huber loss turns from square to linear, times the root of the dimensions

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= self.grid:
            raise ConfigError(f"steps is {self.steps}: use 1 to {self.grid}, which is grid.")
        if not self.huber > 0:
            raise ConfigError(f"huber is {self.huber}: use a positive number.")


class Consistency(nn.Module):
    """Trains the U-Net; its frozen copy teaches it, and all the rest is frozen."""

    def __init__(self, model: BlipDiffusion, noising: Noising, config: ConsistencyConfig) -> None:
        super().__init__()
        if noising.timesteps % config.grid:
            raise ConfigError(f"grid is {config.grid}: use a number that divides the {noising.timesteps} timesteps.")
        self.teacher = copy.deepcopy(model.unet).requires_grad_(False).eval()
        self.model = model
        self.noising = noising
        self.config = config
        model.scheduler = LCMScheduler.from_config(
            model.scheduler.config, original_inference_steps=config.grid, timestep_scaling=TIMESTEP_SCALING
        )
        model.inference = replace(
            model.inference, num_inference_steps=config.steps, guidance_scale=1.0, guidance_rescale=0.0
        )

    def train(self, mode: bool = True) -> "Consistency":
        """Only the U-Net trains: what it is told is what it will be told later, without dropout."""
        super().train(mode)
        self.model.eval()
        self.model.unet.train(mode)
        self.teacher.eval()
        return self

    def forward(self, batch: SubjectBatch, context: StepContext) -> Losses:
        """How far the student's answers before and after a solver step are apart."""
        with torch.no_grad():
            latents = self.model.latents.encode(batch["target"]).float()
            tokens = self.model.subject_tokens(batch["reference"], batch["category"])
            states = self.model.text_states(batch["caption"], tokens)
            later, earlier = self._timesteps(len(latents), context.rng)
            noise = torch.randn(latents.shape, generator=context.rng, device=context.rng.device)
            noised = self.noising.noised(latents, noise, later)
        guess = self._clean(noised, later, states)  # first: autocast of torch < 2.10 reuses casts made without gradient
        with torch.no_grad():
            target = self._clean(self._solved(noised, later, earlier, states), earlier, states)
        error = (guess - target).flatten(1).square().sum(dim=1)
        scale = self.config.huber * latents[0].numel() ** 0.5
        loss = ((error + scale**2).sqrt() - scale).mean()
        return {"consistency": loss, "loss": loss}

    def _timesteps(self, size: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Of the grid that `LCMScheduler` samples on, and one solver step earlier."""
        stride = self.noising.timesteps // self.config.grid
        later = torch.randint(1, self.config.grid + 1, (size,), generator=rng, device=rng.device) * stride - 1
        return later, (later - stride).clamp(min=0)

    def _solved(self, noised: Tensor, later: Tensor, earlier: Tensor, states: Tensor) -> Tensor:
        """A step of DDIM (Song et al. 2021) with the guided teacher."""
        empty = self.model.text_states([""]).expand(len(states), -1, -1)
        both = unet_denoiser(self.teacher, torch.cat([empty, states]))
        teach = guided(lambda x, t: both(x, t.repeat(2)), self.config.guidance, rescale=self.config.rescale)
        clean = self.noising.clean(noised, teach(noised, later).float(), later)
        return self.noising.noised(clean, self.noising.noise(noised, clean, later), earlier)

    def _clean(self, noised: Tensor, timesteps: Tensor, states: Tensor) -> Tensor:
        """The consistency function: at timestep 0 the identity, by a skip connection (Song et al. 2023, section 3)."""
        answer = self.model.denoiser(states)(noised, timesteps).float()
        scaled = timesteps.view(-1, 1, 1, 1) * TIMESTEP_SCALING
        skip = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)
        out = scaled / (scaled**2 + SIGMA_DATA**2) ** 0.5
        return skip * noised + out * self.noising.clean(noised, answer, timesteps)

    def parameter_groups(self) -> list[ParameterGroup]:
        """The U-Net."""
        return [ParameterGroup("unet", list(self.model.unet.parameters()), 1.0)]

    def share(self, batches: Sequence[SubjectBatch], contexts: Sequence[StepContext], gather: Gather) -> None:
        """Pairs are independent of each other."""

    def show(self, batch: SubjectBatch) -> list[Tensor]:
        """Reference, the true target, and what the student draws in its few steps, all from the same noise."""
        tokens = self.model.subject_tokens(batch["reference"], batch["category"])
        states = self.model.text_states(batch["caption"], tokens)
        return [batch["reference"], batch["target"], draw(self.model, states, [0] * len(states))]

    def export(self, folder: Path) -> None:
        """The whole model, which asks for few steps without guidance by itself."""
        save_model(self.model, folder)
