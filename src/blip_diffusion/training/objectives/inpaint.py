"""Inpainting by concatenation (Rombach et al. 2022, figure 3): the U-Net reads a mask and the masked image's latents.

The rest of the model is frozen, so that its subject tokens and text states stay what they are. The new input weights
are zero at first: training begins with the very model that it extends.
"""

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from blip_diffusion.data import inpainting_masks
from blip_diffusion.data.batches import SubjectBatch
from blip_diffusion.diffusion.concatenation import inpainting_channels
from blip_diffusion.diffusion.forward_process import Noising
from blip_diffusion.diffusion.guidance import Denoiser
from blip_diffusion.errors import ConfigError
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.modules.inpainting_unet import widened
from blip_diffusion.training.objective import ParameterGroup
from blip_diffusion.training.objectives.subject import SubjectConfig, SubjectRepresentation


@dataclass(frozen=True)
class InpaintConfig:
    """Shares of the kinds of masks; what they leave over are strokes and boxes as LaMa draws them."""

    whole: float = 0.25  # all of the image: it still draws from nothing (as Stable Diffusion's inpainting was trained)
    subject: float = 0.45  # the subject's outline, its box or an ellipse
    kept: float = 0.10  # all but the subject

    def __post_init__(self) -> None:
        shares = (self.whole, self.subject, self.kept)
        if min(shares) < 0 or sum(shares) > 1:
            raise ConfigError(f"whole + subject + kept is {sum(shares)}: use shares from 0 whose sum is at most 1.")


class Inpainting(SubjectRepresentation):
    """Train the U-Net to repaint what a mask covers; all else is frozen.

    loss = E w(t) |m ⊙ (target - f([x_t | mask | E(masked image)], t, text(prompt, tokens(reference))))|², with the
    channel order of Stable Diffusion's inpainting U-Nets.

    Args:
        model: The whole model. Its U-Net is replaced by a wider one, if it reads latents alone.
        noising: The forward process.
        config: Dropout and weights of the loss.
        masks: Shares of the kinds of masks.
    """

    def __init__(self, model: BlipDiffusion, noising: Noising, config: SubjectConfig, masks: InpaintConfig) -> None:
        model.unet = widened(model.unet, inpainting_channels(model.latents.channels))
        super().__init__(model, noising, None, config)
        self.masks = masks

    def train(self, mode: bool = True) -> "Inpainting":
        """Only the U-Net trains."""
        super().train(mode)
        self.model.eval()
        self.model.unet.train(mode)
        return self

    def _denoiser(self, batch: SubjectBatch, states: Tensor, rng: torch.Generator) -> Denoiser:
        """Return the denoiser with random masks; while not training, with the subject's."""
        masks = self.random_masks(batch["target_alpha"], rng)
        with torch.no_grad():
            condition = self.model.inpainting_condition(batch["target"], masks)
        return self.model.denoiser(states, condition)

    def random_masks(self, alpha: Tensor, rng: torch.Generator) -> Tensor:
        """Return a mask (B, 1, S, S) for each subject's alpha (B, 1, S, S)."""
        own = random.Random(int(torch.randint(2**62, (1,), generator=rng, device=rng.device)))
        drawn = [self._mask(one, own) for one in alpha.cpu()]
        return torch.stack(drawn).to(alpha)

    def _mask(self, alpha: Tensor, rng: random.Random) -> Tensor:
        masks, draw = self.masks, rng.random()
        if not self.training:
            return inpainting_masks.subject_mask(alpha, random.Random(0))
        if draw < masks.whole:
            return inpainting_masks.whole_mask(alpha.shape[-1])
        if draw < masks.whole + masks.subject:
            return inpainting_masks.subject_mask(alpha, rng)
        if draw < masks.whole + masks.subject + masks.kept:
            return inpainting_masks.kept_subject_mask(alpha)
        return inpainting_masks.lama_mask(alpha.shape[-1], rng)

    def _text_states(self, batch: SubjectBatch, tokens: Tensor, rng: torch.Generator) -> Tensor:
        with torch.no_grad():
            return super()._text_states(batch, tokens, rng)

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the U-Net's."""
        return [ParameterGroup("unet", list(self.model.unet.parameters()), self.config.unet_lr_scale)]
