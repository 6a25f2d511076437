"""Inpainting by concatenation (Rombach et al. 2022, figure 3): the U-Net reads a mask and the masked image's latents.

The rest of the model is frozen, so that subject tokens and text states don't change. The new input weights are
initially zero, so that the initial output equals the base model's.
"""

import random
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from blip_diffusion.checkpoint.model_folder import save_model
from blip_diffusion.data import inpainting_masks
from blip_diffusion.data.batches import SubjectBatch
from blip_diffusion.diffusion.concatenation import inpainting_channels
from blip_diffusion.diffusion.forward_process import Noising, denoising_loss
from blip_diffusion.errors import ConfigError
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.modules.widened_unet import widened
from blip_diffusion.training.objective import Losses, Objective, ParameterGroup, StepContext
from blip_diffusion.training.objectives.masked_denoising_loss import mask_weights
from blip_diffusion.training.sample_callback import sample_with_same_noise
from blip_diffusion.training.text_dropout import check_dropout, dropped_text_states


@dataclass(frozen=True)
class InpaintConfig:
    """Shares of the kinds of masks, dropout of conditions, and weights of the loss.

    The remaining masks are strokes and boxes, as in LaMa (Suvorov et al. 2022).
    """

    whole: float = 0.25  # the whole image, as Stable Diffusion's inpainting U-Net was trained: plain generation
    subject: float = 0.45  # the subject's outline, its box or an ellipse
    kept: float = 0.10  # everything but the subject
    prompt_drop: float = 0.0  # share of prompts that lose all their words, and their subject
    subject_drop: float = 0.15  # share of prompts without subject tokens
    noise_samples_per_pair: int = 1  # noised copies of each pair
    min_snr: float | None = None  # γ of the loss weights; none: the simple loss
    timestep_shift: float = 1.0  # above 1, more copies have high noise
    background_weight: float = 0.5  # weight of the error outside the mask; inside it is 1

    def __post_init__(self) -> None:
        shares = (self.whole, self.subject, self.kept)
        if min(shares) < 0 or sum(shares) > 1:
            raise ConfigError(f"whole + subject + kept is {sum(shares)}: use shares from 0 whose sum is at most 1.")
        check_dropout(self.prompt_drop, self.subject_drop)
        if self.noise_samples_per_pair < 1:
            raise ConfigError(f"noise_samples_per_pair is {self.noise_samples_per_pair}: use 1 or more.")
        if self.timestep_shift <= 0:
            raise ConfigError(f"timestep_shift is {self.timestep_shift}: use a number above 0; 1 is uniform.")
        if not 0 <= self.background_weight <= 1:
            raise ConfigError(f"background_weight is {self.background_weight}: use a number from 0 to 1.")


class Inpainting(Objective):
    """Train the U-Net to generate the masked region; all other parts are frozen.

    loss = E w(t) |m ⊙ (target - f([x_t | mask | E(masked image)], t, text(prompt, tokens(reference))))|², with the
    channel order of Stable Diffusion's inpainting U-Nets.

    Args:
        model: The whole model. A U-Net without mask input is replaced by one with more input channels.
        noising: The forward process.
        config: Masks, dropout and loss weights.
    """

    def __init__(self, model: BlipDiffusion, noising: Noising, config: InpaintConfig) -> None:
        super().__init__()
        model.unet = widened(model.unet, inpainting_channels(model.latents.channels))
        self.model, self.noising, self.config = model, noising, config

    def train(self, mode: bool = True) -> "Inpainting":
        """Put only the U-Net into training mode."""
        super().train(mode)
        self.model.eval()
        self.model.unet.train(mode)
        return self

    def forward(self, batch: SubjectBatch, context: StepContext) -> Losses:
        """Return the denoising loss of the targets, given references, prompts and masked targets."""
        config, masks = self.config, self.random_masks(batch["target_alpha"], context.rng)
        drops = (config.prompt_drop, config.subject_drop) if self.training else (0.0, 0.0)
        with torch.no_grad():
            latents = self.model.latents.encode(batch["target"]).float()
            condition = self.model.inpainting_condition(batch["target"], masks)
            states = dropped_text_states(self.model, batch, context.rng, prompt_drop=drops[0], subject_drop=drops[1])
        inside = F.interpolate(masks, size=latents.shape[-2:], mode="area")
        copies = config.noise_samples_per_pair
        loss = denoising_loss(
            self.model.denoiser(states.repeat(copies, 1, 1), condition),
            latents.repeat(copies, 1, 1, 1),
            self.noising,
            context.rng,
            gamma=config.min_snr,
            timestep_shift=config.timestep_shift,
            importance=mask_weights(inside, config.background_weight).repeat(copies, 1, 1, 1),
        )
        return {"denoising": loss, "loss": loss}

    def random_masks(self, alpha: Tensor, rng: torch.Generator) -> Tensor:
        """Return a mask (B, 1, S, S) for each subject's alpha (B, 1, S, S); in eval mode, the subject's mask."""
        own = random.Random(int(torch.randint(2**62, (1,), generator=rng, device=rng.device)))
        return torch.stack([self._mask(one, own) for one in alpha.cpu()]).to(alpha)

    def _mask(self, alpha: Tensor, rng: random.Random) -> Tensor:
        config, draw = self.config, rng.random()
        if not self.training:
            return inpainting_masks.subject_mask(alpha, random.Random(0))
        if draw < config.whole:
            return inpainting_masks.whole_mask(alpha.shape[-1])
        if draw < config.whole + config.subject:
            return inpainting_masks.subject_mask(alpha, rng)
        if draw < config.whole + config.subject + config.kept:
            return inpainting_masks.kept_subject_mask(alpha)
        return inpainting_masks.lama_mask(alpha.shape[-1], rng)

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the U-Net's."""
        return [ParameterGroup("unet", list(self.model.unet.parameters()), 1.0)]

    def sample_images(self, batch: SubjectBatch) -> list[Tensor]:
        """Return references, targets, and samples of whole images, all from the same noise."""
        tokens = self.model.subject_tokens(batch["reference"], batch["category"])
        states = self.model.text_states(batch["caption"], tokens, batch["frames"])
        return [batch["reference"], batch["target"], sample_with_same_noise(self.model, states)]

    def export(self, folder: Path) -> None:
        """Write the model."""
        save_model(self.model, folder)
