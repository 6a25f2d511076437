"""Configuration of personalization: what is trained, for how long, and the usual learning rates."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from blip_diffusion.checkpoint.lora_extraction import MAX_RANK
from blip_diffusion.config import check_types
from blip_diffusion.control_characters import is_unicode
from blip_diffusion.data.photos import MAX_CLASS_IMAGES
from blip_diffusion.errors import ConfigError, quoted
from blip_diffusion.images import ResizeMode
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.training.objectives.few_shot import Trainable
from blip_diffusion.training.objectives.textual_inversion import MAX_VECTORS
from blip_diffusion.training.personalize.early_stopping import ValidationConfig

TuneMethod = Literal["few-shot", "dreambooth", "dreambooth-lora", "textual-inversion"]


RATES: dict[str, tuple[float, float]] = {
    "embedding": (1e-3, 1e-2),
    "lora": (1e-4, 1e-3),
    "cross-attention": (1e-5, 3e-4),
    "unet": (5e-6, 1e-4),  # 5e-6 is LAVIS'; the paper has 5e-5
    "dreambooth": (5e-6, 1e-4),
    "dreambooth-lora": (1e-4, 3e-3),
    "textual-inversion": (5e-4, 1e-2),
}
"""Learning rates of each method, and of each choice of few-shot tuning: for published widths, where they are the usual
ones of the literature, and for narrower networks, where they were tuned on `mini`."""


PUBLISHED_WIDTH = 768
MAX_STEPS = 1_000_000
MAX_TOKEN = 64
RANGES = {
    "max_steps": (1, MAX_STEPS),
    "batch_size": (1, 1000),
    "rank": (1, MAX_RANK),
    "num_vectors": (1, MAX_VECTORS),
    "num_class_images": (0, MAX_CLASS_IMAGES),
    "background_weight": (0, 1),
    "prior_weight": (0, 1000),
}
"""The lowest and the highest value of settings."""


@dataclass(frozen=True)
class TuneConfig:
    """Settings of personalization.

    The learning rate defaults to the usual one of the method and of the model's width, see `RATES`.

    Example:
        >>> TuneConfig(method="dreambooth-lora", rank=4, steps=120, num_class_images=32)
    """

    method: TuneMethod = "few-shot"
    trainable: Trainable = "lora"
    """The part that few-shot tuning trains besides the embedding."""
    steps: int | None = None
    """Optimizer steps; `None`: early stopping, after `max_steps` at the latest."""
    max_steps: int = 200
    learning_rate: float | None = None
    """`None`: the usual rate, see `RATES`."""
    batch_size: int = 3
    rank: int = 8
    """Rank of LoRAs."""
    token: str = "sks"
    """Rare token of DreamBooth."""
    train_text_encoder: bool = False
    """DreamBooth only."""
    num_vectors: int = 1
    """Number of embedding vectors that textual inversion trains."""
    background_weight: float = 0.1
    """Weight in [0, 1] of the loss outside a photo's mask; inside it is 1."""
    num_class_images: int = 0
    """Class images, sampled from the model before it is tuned, for prior preservation; 0: none."""
    prior_weight: float = 1.0
    flip: bool = False
    """Train on mirrored photos as well; not for subjects with text or logos."""
    resize_mode: ResizeMode | None = None
    seed: int = 0
    device: Literal["auto", "cpu"] = "auto"
    mixed_precision: Literal["no", "auto", "bf16", "fp16"] = "no"
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    eight_bit: bool = False
    """8-bit Adam moments, by bitsandbytes."""
    validation: ValidationConfig = field(default_factory=ValidationConfig)

    def __post_init__(self) -> None:
        check_types(self)
        for name, (lowest, highest) in RANGES.items():
            if not lowest <= getattr(self, name) <= highest:
                raise ConfigError(f"{name} is {getattr(self, name)}: use {lowest} to {highest}.")
        if self.steps is not None and not 1 <= self.steps <= MAX_STEPS:
            raise ConfigError(f"steps is {self.steps}: use 1 to {MAX_STEPS}, or auto.")
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise ConfigError(f"learning_rate must be positive, not {self.learning_rate}.")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed is {self.seed}: use a whole number from 0, below 2^63.")
        if len(self.token.split()) != 1 or len(self.token) > MAX_TOKEN or not is_unicode(self.token):
            raise ConfigError(f"token is {quoted(self.token)}: use a rare word, such as sks.")
        self._check_class_images()

    def _check_class_images(self) -> None:
        """Raise `ConfigError` for class images without effect."""
        if self.num_class_images and self.method == "textual-inversion":
            raise ConfigError(
                "num_class_images have no effect with textual-inversion, which does not change the category: use 0."
            )
        if self.num_class_images and self.method == "few-shot" and self.trainable == "embedding":
            raise ConfigError(
                "num_class_images have no effect with an embedding alone, which does not change the category: use 0."
            )

    @property
    def whole_network(self) -> bool:
        """Whether the whole U-Net is trained."""
        return self.method == "dreambooth" or (self.method == "few-shot" and self.trainable == "unet")

    def resolved(self, width: int) -> "TuneConfig":
        """Return the settings with the usual learning rate for text states of that width, unless one is set."""
        usual = RATES[self.trainable if self.method == "few-shot" else self.method]
        rate = self.learning_rate or usual[0 if width >= PUBLISHED_WIDTH else 1]
        return replace(self, learning_rate=rate)


def check_mergeable(config: TuneConfig, loras: Sequence[object]) -> None:
    """Raise `ConfigError` where LoRAs would be saved inside of the tuned weights, and count twice afterwards."""
    if loras and config.method == "few-shot" and config.trainable in ("cross-attention", "unet"):
        raise ConfigError(
            f"trainable is {config.trainable}, which saves weights that hold the LoRAs as well: use lora or embedding."
        )


def text_width(model: BlipDiffusion) -> int:
    """Return the width of the text states."""
    return int(model.text_encoder.config.hidden_size)
