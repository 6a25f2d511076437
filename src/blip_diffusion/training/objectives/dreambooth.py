"""DreamBooth (Ruiz et al. 2023): the network is tuned so that a rare word before the category means the subject.

`a sks dog` is trained on the photos, and `a dog` on images that the untuned model generates for it, so that other dogs
stay dogs (prior preservation). The whole U-Net is trained, or a LoRA on it, and optionally the text encoder.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from blip_diffusion.checkpoint.diffusers_export import save_lora, save_stable_diffusion
from blip_diffusion.checkpoint.lora import ATTENTION
from blip_diffusion.control_characters import check_text
from blip_diffusion.data.photos import PhotoBatch
from blip_diffusion.diffusion.forward_process import Noising
from blip_diffusion.errors import ConfigError
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.prompts import subject_prompt
from blip_diffusion.training.lora import TEXT_ATTENTION, add_lora, lora_state
from blip_diffusion.training.objective import Losses, Objective, ParameterGroup, StepContext
from blip_diffusion.training.objectives.masked_denoising_loss import check_background_weight, masked_denoising_losses


@dataclass(frozen=True)
class DreamBoothConfig:
    """Trainable parts, learning-rate scales and loss weights."""

    token: str = "sks"  # a rare word, with little meaning to the text encoder
    lora: bool = False  # a LoRA instead of the whole network
    rank: int = 8
    train_text_encoder: bool = False
    text_lr_scale: float = 1.0  # times the schedule
    background_weight: float = 0.1  # of an error outside a photo's mask, relative to 1 inside
    prior_weight: float = 1.0  # of prior preservation, if there are class images

    def __post_init__(self) -> None:
        if not self.token.strip():
            raise ConfigError("token is empty: use a rare word, sks is usual.")
        check_text("token", self.token)
        if self.rank < 1:
            raise ConfigError(f"rank is {self.rank}: use 1 or more, 8 is usual.")
        check_background_weight(self.background_weight)


class DreamBooth(Objective):
    """Train the U-Net, optionally the text encoder, or LoRAs on them, for a rare token (Ruiz et al. 2023).

    The prompt is `a {token} {category}`; the loss is `masked_denoising_losses` with prior preservation.

    Args:
        model: The whole model.
        noising: The forward process.
        category: The subject's class, such as "dog".
        config: What is trained, scales and weights.
    """

    def __init__(self, model: BlipDiffusion, noising: Noising, category: str, config: DreamBoothConfig) -> None:
        super().__init__()
        self.model = model
        self.noising = noising
        self.category = category
        self.config = config
        self.unet_parameters = self._trainable(model.unet, ATTENTION)
        self.text_parameters = self._trainable(model.text_encoder, TEXT_ATTENTION) if config.train_text_encoder else []

    def forward(self, batch: PhotoBatch, context: StepContext) -> Losses:
        """Return the denoising loss of the photos and the prior-preservation loss."""
        return masked_denoising_losses(
            self.model,
            self.noising,
            batch,
            self.states(batch.get("scenes", [""])),
            context,
            background_weight=self.config.background_weight,
            category=self.category,
            prior_weight=self.config.prior_weight,
        )

    def states(self, scenes: Sequence[str]) -> Tensor:
        """Encode `a {token} {category} {scene}` to text states (B, L, D)."""
        return self.model.text_states(
            [subject_prompt(scene, f"{self.config.token} {self.category}") for scene in scenes]
        )

    def _trainable(self, network: nn.Module, targets: tuple[str, ...]) -> list[nn.Parameter]:
        return add_lora(network, self.config.rank, targets) if self.config.lora else list(network.parameters())

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the U-Net's parameters and, if it is trained, the text encoder's."""
        groups = [ParameterGroup("unet", self.unet_parameters, 1.0)]
        if self.text_parameters:
            groups.append(ParameterGroup("text", self.text_parameters, self.config.text_lr_scale))
        return groups

    def export(self, folder: Path) -> None:
        """Write a Stable Diffusion folder, or one LoRA file; plain diffusers pipelines read both."""
        if not self.config.lora:
            save_stable_diffusion(self.model, folder)
            return
        text = lora_state(self.model.text_encoder) if self.config.train_text_encoder else {}
        save_lora(folder / "lora.safetensors", lora_state(self.model.unet), text, rank=self.config.rank)
