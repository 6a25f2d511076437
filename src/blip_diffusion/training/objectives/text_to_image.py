"""Latent diffusion, text to image (Rombach et al. 2022, section 3.3): the U-Net attends to text states."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from blip_diffusion.checkpoint.model_folder import save_model
from blip_diffusion.data.batches import SubjectBatch
from blip_diffusion.diffusion.forward_process import Noising, denoising_loss
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.training.objective import Losses, Objective, ParameterGroup, StepContext
from blip_diffusion.training.sample_callback import sample_with_same_noise


@dataclass(frozen=True)
class TextToImageConfig:
    """Caption dropout, loss weights and learning-rate scales."""

    caption_drop: float = 0.1  # share of images with an empty caption, for guidance (Ho & Salimans 2022)
    min_snr: float | None = None  # γ of the loss weights; none: the simple loss
    unet_lr_scale: float = 1.0  # times the schedule
    text_lr_scale: float = 1.0  # 0 freezes the text encoder, as Stable Diffusion does with CLIP's


class TextToImage(Objective):
    """Train the U-Net, and the text encoder unless its scale is 0, on captions; the autoencoder is frozen.

    loss = E_{x, ε, t} w(t) |target - f(x_t, t, text)|² (Rombach et al. 2022, equation 3), with ε or v as target, and
    the min-SNR weights w(t) of Hang et al. 2023 if `min_snr` is set.

    Args:
        model: The whole model.
        noising: The forward process.
        config: Dropout, weights and scales.
    """

    def __init__(self, model: BlipDiffusion, noising: Noising, config: TextToImageConfig) -> None:
        super().__init__()
        self.model = model
        self.noising = noising
        self.config = config

    def forward(self, batch: SubjectBatch, context: StepContext) -> Losses:
        """Return the denoising loss of the targets under their captions."""
        with torch.no_grad():
            latents = self.model.target_latents(batch["target"])
        drop = self.config.caption_drop if self.training else 0.0
        kept = torch.rand(len(latents), generator=context.rng, device=context.rng.device) >= drop
        captions = [caption if keep else "" for caption, keep in zip(batch["caption"], kept.tolist(), strict=True)]
        denoiser = self.model.denoiser(self.model.text_states(captions))
        loss = denoising_loss(denoiser, latents, self.noising, context.rng, gamma=self.config.min_snr)
        return {"denoising": loss, "loss": loss}

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the U-Net, and the text encoder unless its scale is 0."""
        groups = [ParameterGroup("unet", list(self.model.unet.parameters()), self.config.unet_lr_scale)]
        if self.config.text_lr_scale:
            groups.append(ParameterGroup("text", list(self.model.text_encoder.parameters()), self.config.text_lr_scale))
        return groups

    def sample_images(self, batch: SubjectBatch) -> list[Tensor]:
        """Return the target of each caption and a sample."""
        return [batch["target"], sample_with_same_noise(self.model, self.model.text_states(batch["caption"]))]

    def export(self, folder: Path) -> None:
        """Write the model with all its parts."""
        save_model(self.model, folder)
