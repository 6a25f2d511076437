"""Few-shot tuning (Li et al. 2023, section 3.3): training starts from a subject's mean embedding.

The mean of the photos' subject tokens becomes a parameter. It is trained, with the U-Net or a part of it, to denoise
the photos under `a [subject tokens] {category}`. The text encoder is frozen, so other words keep their meaning.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from blip_diffusion.checkpoint.subject_file import Subject, write_subject
from blip_diffusion.data.photos import PhotoBatch
from blip_diffusion.diffusion.forward_process import Noising
from blip_diffusion.errors import ConfigError
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.nn_utils import base_parameters
from blip_diffusion.prompts import subject_prompt
from blip_diffusion.training.lora import add_lora, lora_state
from blip_diffusion.training.objective import Losses, Objective, ParameterGroup, StepContext
from blip_diffusion.training.objectives.masked_denoising_loss import check_background_weight, masked_denoising_losses

Trainable = Literal["embedding", "lora", "cross-attention", "unet"]


@dataclass(frozen=True)
class FewShotConfig:
    """Trainable parts besides the embedding, learning-rate scales and loss weights."""

    trainable: Trainable = "lora"
    rank: int = 8  # of the LoRA
    embedding_lr_scale: float = 1.0  # times the schedule
    unet_lr_scale: float = 1.0
    background_weight: float = 0.1  # of an error outside a photo's mask, relative to 1 inside
    prior_weight: float = 1.0  # of prior preservation, if there are class images

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"rank is {self.rank}: use 1 or more, 8 is usual.")
        check_background_weight(self.background_weight)


class FewShot(Objective):
    """Train a subject embedding and part of the U-Net on photos (Li, Li & Hoi 2023, section 3.3).

    The prompt is `a [subject tokens] {category}`; the loss is `masked_denoising_losses`. The text encoder is frozen.

    Args:
        model: The whole model.
        noising: The forward process.
        subject: The initial subject; its embedding (1, Q, D) is the mean of the photos' tokens.
        config: What is trained, scales and weights.
    """

    def __init__(self, model: BlipDiffusion, noising: Noising, subject: Subject, config: FewShotConfig) -> None:
        super().__init__()
        self.model = model
        self.noising = noising
        self.subject = subject
        self.config = config
        start = subject.embedding.detach().to(model.text_encoder.device, copy=True)
        self.embedding = nn.Parameter(start)  # (1, Q, D)
        self.trainable = self._trainable_parameters()

    def forward(self, batch: PhotoBatch, context: StepContext) -> Losses:
        """Return the denoising loss of the photos."""
        return masked_denoising_losses(
            self.model,
            self.noising,
            batch,
            self.states(batch.get("scenes", [""])),
            context,
            background_weight=self.config.background_weight,
            category=self.subject.category,
            prior_weight=self.config.prior_weight,
        )

    def states(self, scenes: Sequence[str]) -> Tensor:
        """Encode `a [subject tokens] {category} {scene}` to text states (B, L, D)."""
        prompts = [subject_prompt(scene, self.subject.category) for scene in scenes]
        return self.model.text_states(prompts, self.embedding.expand(len(prompts), -1, -1))

    def _trainable_parameters(self) -> dict[str, nn.Parameter]:
        unet, names = self.model.unet, base_parameters(self.model.unet)
        match self.config.trainable:
            case "embedding":
                return {}
            case "lora":
                return {str(number): parameter for number, parameter in enumerate(add_lora(unet, self.config.rank))}
            case "cross-attention":  # keys and values of text states (Kumari et al. 2023)
                return {name: names[name] for name in names if ".attn2.to_k." in name or ".attn2.to_v." in name}
            case "unet":
                return names

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the embedding, without weight decay, and the trainable part of the U-Net."""
        groups = [ParameterGroup("embedding", [self.embedding], self.config.embedding_lr_scale, weight_decay=0.0)]
        if self.trainable:
            groups.append(ParameterGroup("unet", list(self.trainable.values()), self.config.unet_lr_scale))
        return groups

    def tuned(self) -> Subject:
        """Return the subject with its current embedding and weights."""
        lora = lora_state(self.model.unet) if self.config.trainable == "lora" else {}
        weights = (
            {} if self.config.trainable == "lora" else {n: p.detach().half().cpu() for n, p in self.trainable.items()}
        )
        return Subject(
            self.subject.name,
            self.subject.category,
            self.embedding.detach().cpu(),
            self.subject.base,
            lora=lora,
            alpha=float(self.config.rank) if lora else 0.0,
            weights=weights,
            thumbnail=self.subject.thumbnail,
            metadata=self.subject.metadata,
        )

    def export(self, folder: Path) -> None:
        """Write the subject file."""
        write_subject(self.tuned(), folder / "subject.safetensors")
