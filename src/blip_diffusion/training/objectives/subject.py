"""Stage 2, subject representation learning (Li et al. 2023, section 3.2): prompted context generation.

The model generates the subject of a reference, which has another background, in the scene of a prompt. Subject tokens
stand among the prompt's words. They are dropped from some prompts, so that the model keeps generating from text alone.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from blip_diffusion.checkpoint.components import save_heads
from blip_diffusion.checkpoint.model_folder import save_model
from blip_diffusion.data.batches import SubjectBatch
from blip_diffusion.diffusion.forward_process import Noising, denoising_loss
from blip_diffusion.errors import ConfigError
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.modules.heads import reconstruction_loss
from blip_diffusion.training.objective import Losses, Objective, ParameterGroup, StepContext
from blip_diffusion.training.objectives.masked_denoising_loss import subject_importance
from blip_diffusion.training.sample_callback import sample_with_same_noise


@dataclass(frozen=True)
class SubjectConfig:
    """Dropout, loss weights, noise levels and learning-rate scales."""

    subject_drop: float = 0.15  # share of prompts without subject tokens (the paper's figure)
    prompt_drop: float = 0.0  # share of empty prompts, for guidance; 0 if the base model was trained with them
    noise_samples_per_pair: int = 1  # noised copies of each pair for the U-Net, per pass of the other parts
    min_snr: float | None = None  # γ of the loss weights; none: the simple loss
    timestep_shift: float = 1.0  # above 1, more of the copies are noisy (`Noising.random_timesteps`)
    subject_weight: float = 1.0  # of an error on the subject, relative to 1 on its scene
    reconstruction_weight: float = 0.0  # of the reconstruction head, which makes tokens encode shape; 0: none
    unet_lr_scale: float = 1.0  # times the schedule; 0 freezes
    text_lr_scale: float = 1.0
    qformer_lr_scale: float = 1.0  # Q-Former, its layer norm over the image features, and the projection

    def __post_init__(self) -> None:
        if not 0 <= self.subject_drop + self.prompt_drop < 1:
            raise ConfigError(f"subject_drop + prompt_drop is {self.subject_drop + self.prompt_drop}: keep it below 1.")
        if self.noise_samples_per_pair < 1:
            raise ConfigError(f"noise_samples_per_pair is {self.noise_samples_per_pair}: use 1 or more.")
        if self.timestep_shift <= 0:
            raise ConfigError(f"timestep_shift is {self.timestep_shift}: use a number above 0; 1 is uniform.")
        if not self.subject_weight > 0:
            raise ConfigError(
                f"subject_weight is {self.subject_weight}: use a number above 0; 1 weighs subject and scene equally."
            )


class SubjectRepresentation(Objective):
    """Train Q-Former, projection, text encoder and U-Net; image encoder and autoencoder are frozen.

    loss = E w(t) |m ⊙ (target - f(x_t, t, text(prompt, tokens(reference))))|² + reconstruction_weight · |crop - head|_1
    (Li, Li & Hoi 2023, section 3.2), where m weighs the subject `subject_weight` times as much as the scene.

    Args:
        model: The whole model.
        noising: The forward process.
        reconstruction: The head that reconstructs the object crop from subject tokens; `None` for no such term.
        config: Dropout, weights and scales.
    """

    def __init__(
        self, model: BlipDiffusion, noising: Noising, reconstruction: nn.Module | None, config: SubjectConfig
    ) -> None:
        super().__init__()
        self.model = model
        self.noising = noising
        self.reconstruction = reconstruction if config.reconstruction_weight else None
        self.config = config

    def forward(self, batch: SubjectBatch, context: StepContext) -> Losses:
        """Return the denoising loss of the targets, given references and prompts."""
        with torch.no_grad():
            latents = self.model.target_latents(batch["target"])
        tokens = self.model.subject_tokens(batch["reference"], batch["category"])
        states = self._text_states(batch, tokens, context.rng)
        copies = self.config.noise_samples_per_pair
        importance = subject_importance(batch["target_alpha"], latents, self.config.subject_weight)
        loss = denoising_loss(
            self.model.denoiser(states.repeat(copies, 1, 1)),
            latents.repeat(copies, 1, 1, 1),
            self.noising,
            context.rng,
            gamma=self.config.min_snr,
            timestep_shift=self.config.timestep_shift,
            importance=importance.repeat(copies, 1, 1, 1),
        )
        return subject_losses(loss, self.reconstruction, tokens, batch["object_crop"], self.config)

    def _text_states(self, batch: SubjectBatch, tokens: Tensor, rng: torch.Generator) -> Tensor:
        """Encode prompts; the first of the batch become empty, the next lose their subject tokens."""
        captions, frames = batch["caption"], batch["frames"]
        empty, text_only = self._drop_counts(len(captions), rng)
        dropped = empty + text_only
        without_subject = [""] * empty + captions[empty:dropped]
        states = [self.model.text_states(without_subject)] if without_subject else []
        if dropped < len(captions):
            states.append(self.model.text_states(captions[dropped:], tokens[dropped:], frames[dropped:]))
        return (
            torch.cat(states) + 0 * tokens.mean()
        )  # DDP needs every gradient in every process, also without a subject

    def _drop_counts(self, size: int, rng: torch.Generator) -> tuple[int, int]:
        """Return how many prompts become empty and how many lose their tokens; shares are rounded randomly."""
        if not self.training:
            return 0, 0
        chances = torch.rand(2, generator=rng, device=rng.device).tolist()
        shares = (self.config.prompt_drop, self.config.subject_drop)
        empty, text_only = (int(share * size + chance) for share, chance in zip(shares, chances, strict=True))
        return empty, min(text_only, size - empty)

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the parameters that are not frozen."""
        return subject_parameter_groups(self.model, self.reconstruction, self.config)

    def sample_images(self, batch: SubjectBatch) -> list[Tensor]:
        """Return references, reconstructions, targets and samples, all from the same noise."""
        tokens = self.model.subject_tokens(batch["reference"], batch["category"])
        reconstructed = [self.reconstruction(tokens).float()[:, :3]] if self.reconstruction is not None else []
        images = sample_with_same_noise(self.model, self.model.text_states(batch["caption"], tokens, batch["frames"]))
        return [batch["reference"], *reconstructed, batch["target"], images]

    def export(self, folder: Path) -> None:
        """Write the model and the reconstruction head."""
        export_subject_model(self.model, self.reconstruction, folder)


def subject_losses(
    denoising: Tensor, reconstruction: nn.Module | None, tokens: Tensor, object_crop: Tensor, config: SubjectConfig
) -> Losses:
    """Return the denoising loss and, with a head, the reconstruction loss and their weighted sum.

    Args:
        denoising: Scalar.
        reconstruction: The head that reconstructs the object crop, or `None`.
        tokens: (B, Q, D) subject tokens.
        object_crop: (B, 4, C, C) RGB times alpha, and alpha, in [0, 1].
        config: The weight.
    """
    if reconstruction is None:
        return {"denoising": denoising, "loss": denoising}
    error = reconstruction_loss(reconstruction(tokens), object_crop)
    return {"denoising": denoising, "reconstruction": error, "loss": denoising + config.reconstruction_weight * error}


def subject_parameter_groups(
    model: BlipDiffusion, reconstruction: nn.Module | None, config: SubjectConfig
) -> list[ParameterGroup]:
    """Return the parameters of stage 2: U-Net, text encoder, and the subject encoder with its head."""
    encoder = model.subject_encoder
    encoder_parameters = [*encoder.image_encoder.norm.parameters(), *encoder.qformer.parameters()]
    encoder_parameters += encoder.projection.parameters()
    if reconstruction is not None:
        encoder_parameters += reconstruction.parameters()
    groups = [
        ParameterGroup("unet", list(model.unet.parameters()), config.unet_lr_scale),
        ParameterGroup("text", list(model.text_encoder.parameters()), config.text_lr_scale),
        ParameterGroup("qformer", encoder_parameters, config.qformer_lr_scale),
    ]
    return [group for group in groups if group.lr_scale]


def export_subject_model(model: BlipDiffusion, reconstruction: nn.Module | None, folder: Path) -> None:
    """Write the model and the reconstruction head."""
    save_model(model, folder)
    if reconstruction is not None:
        save_heads({"reconstruction": reconstruction}, folder)
