"""Super-resolution by concatenation (Rombach et al. 2022, section 4.4), with noise conditioning augmentation.

The U-Net reads a small image, enlarged and noised, beside the noised latents, and how noisy it is as a class label.
With a `PixelAutoencoder` this is the second stage of a pixel cascade (Ho et al. 2022; Saharia et al. 2022).
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from blip_diffusion.checkpoint.model_folder import save_model
from blip_diffusion.data.batches import SubjectBatch
from blip_diffusion.diffusion.concatenation import upscaling_channels
from blip_diffusion.diffusion.forward_process import Noising, denoising_loss
from blip_diffusion.diffusion.resizing import enlarged, shrunk
from blip_diffusion.errors import ConfigError
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.modules.widened_unet import widened
from blip_diffusion.sampling import sample_upscaled
from blip_diffusion.training.objective import Losses, Objective, ParameterGroup, StepContext
from blip_diffusion.training.objectives.masked_denoising_loss import subject_importance
from blip_diffusion.training.text_dropout import check_dropout, dropped_text_states


@dataclass(frozen=True)
class UpscaleConfig:
    """Scale, noise of the condition, dropout of the other conditions, and weights of the loss."""

    scale: int = 2  # sides of an image over those of the small image
    max_noise: float = 0.4  # largest noise level of the small image, in shares of all timesteps
    prompt_drop: float = 0.1  # share of prompts that lose all their words, and their subject
    subject_drop: float = 0.1  # share of prompts without subject tokens
    min_snr: float | None = None  # γ of the loss weights; none: the simple loss
    timestep_shift: float = 1.0  # above 1, more noise levels are high
    subject_weight: float = 1.0  # of an error on the subject, relative to 1 on its scene

    def __post_init__(self) -> None:
        if self.scale < 2:
            raise ConfigError(f"upscale.scale is {self.scale}: use 2 or more.")
        if not 0 <= self.max_noise < 1:
            raise ConfigError(f"upscale.max_noise is {self.max_noise}: use 0 to below 1.")
        if self.timestep_shift <= 0 or self.subject_weight <= 0:
            raise ConfigError("upscale.timestep_shift and upscale.subject_weight must be above 0; 1 is usual.")
        check_dropout(self.prompt_drop, self.subject_drop)


class Upscaling(Objective):
    """Train the U-Net to generate an image from a small one; all other parts are frozen.

    loss = E w(t) |m ⊙ (target - f([x_t | c_s], t, s, text(prompt, tokens(reference))))|², where c is the enlarged small
    image, c_s the same noised to level s ~ U(0, max_noise), and m weighs the subject (Saharia et al. 2022, 2.4).

    Args:
        model: The whole model. A U-Net without the condition's channels is replaced by one that has them.
        noising: The forward process.
        config: Scale, noise, dropout and loss weights.
    """

    def __init__(self, model: BlipDiffusion, noising: Noising, config: UpscaleConfig) -> None:
        super().__init__()
        channels = upscaling_channels(model.latents.channels)
        model.unet = widened(model.unet, channels, noise_levels=noising.timesteps)
        self.model, self.noising, self.config = model, noising, config

    def train(self, mode: bool = True) -> "Upscaling":
        """Put only the U-Net into training mode."""
        super().train(mode)
        self.model.eval()
        self.model.unet.train(mode)
        return self

    def forward(self, batch: SubjectBatch, context: StepContext) -> Losses:
        """Return the denoising loss of the targets, given small images, references and prompts."""
        config = self.config
        drops = (config.prompt_drop, config.subject_drop) if self.training else (0.0, 0.0)
        with torch.no_grad():
            latents = self.model.target_latents(batch["target"])
            states = dropped_text_states(self.model, batch, context.rng, prompt_drop=drops[0], subject_drop=drops[1])
            condition, levels = self._condition(self._small(batch["target"]), context.rng)
        loss = denoising_loss(
            self.model.upscaling_denoiser(states, condition, levels),
            latents,
            self.noising,
            context.rng,
            gamma=config.min_snr,
            timestep_shift=config.timestep_shift,
            importance=subject_importance(batch["target_alpha"], latents, config.subject_weight),
        )
        return {"denoising": loss, "loss": loss}

    def _condition(self, small: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the noised latents of the enlarged images, and their noise levels (B,); in eval mode without noise."""
        latents = self.model.latents.encode(self._enlarged(small)).float()
        highest = int(self.config.max_noise * self.noising.timesteps) if self.training else 0
        levels = torch.randint(highest + 1, (len(small),), generator=rng, device=rng.device)
        noise = torch.randn(latents.shape, generator=rng, device=rng.device)
        return self.noising.noised(latents, noise, levels), levels

    def _small(self, pixels: Tensor) -> Tensor:
        return shrunk(pixels, self.model.image_size // self.config.scale)

    def _enlarged(self, small: Tensor) -> Tensor:
        return enlarged(small, (self.model.image_size, self.model.image_size))

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the U-Net's."""
        return [ParameterGroup("unet", list(self.model.unet.parameters()), 1.0)]

    def sample_images(self, batch: SubjectBatch) -> list[Tensor]:
        """Return references, small images enlarged, targets, and samples."""
        small = self._small(batch["target"])
        tokens = self.model.subject_tokens(batch["reference"], batch["category"])
        states = self.model.text_states(batch["caption"], tokens, batch["frames"])
        generators = [torch.Generator().manual_seed(0) for _ in small]  # the same noise for all
        samples = sample_upscaled(self.model, states, self._enlarged(small), generators)
        return [batch["reference"], self._enlarged(small), batch["target"], samples]

    def export(self, folder: Path) -> None:
        """Write the model."""
        save_model(self.model, folder)
