"""Configuration of a training run, read from TOML."""

import os
from dataclasses import dataclass, field
from typing import Literal

from blip_diffusion.errors import ConfigError
from blip_diffusion.training import initialization
from blip_diffusion.training.config import TrainConfig
from blip_diffusion.training.objectives.autoencoder import AutoencoderConfig
from blip_diffusion.training.objectives.consistency import ConsistencyConfig
from blip_diffusion.training.objectives.control import ControlConfig
from blip_diffusion.training.objectives.inpaint import InpaintConfig
from blip_diffusion.training.objectives.language import LanguageConfig
from blip_diffusion.training.objectives.prior import PriorConfig
from blip_diffusion.training.objectives.representation import RepresentationConfig
from blip_diffusion.training.objectives.sentences import SentencesConfig
from blip_diffusion.training.objectives.subject import SubjectConfig
from blip_diffusion.training.objectives.text_to_image import TextToImageConfig
from blip_diffusion.training.objectives.upscale import UpscaleConfig
from blip_diffusion.training.training_data import DataConfig


@dataclass(frozen=True)
class RunConfig:
    """Configuration of a training run, read from TOML; each objective reads only its own table."""

    objective: Literal[
        "autoencoder",
        "text_to_image",
        "representation",
        "subject",
        "consistency",
        "control",
        "inpaint",
        "upscale",
        "prior",
        "sentences",
        "language",
    ]
    data: DataConfig = field(default_factory=DataConfig)
    model: initialization.InitConfig = field(default_factory=initialization.InitConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    text_to_image: TextToImageConfig = field(default_factory=TextToImageConfig)
    representation: RepresentationConfig = field(default_factory=RepresentationConfig)
    subject: SubjectConfig = field(default_factory=SubjectConfig)
    consistency: ConsistencyConfig = field(default_factory=ConsistencyConfig)
    control: ControlConfig = field(default_factory=ControlConfig)
    prior: PriorConfig = field(default_factory=PriorConfig)
    inpaint: InpaintConfig = field(default_factory=InpaintConfig)
    upscale: UpscaleConfig = field(default_factory=UpscaleConfig)
    sentences: SentencesConfig = field(default_factory=SentencesConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)

    def __post_init__(self) -> None:
        weights = (self.representation.itc_weight, self.representation.itm_weight)
        pairs = self.data.batch_size * self.train.gradient_accumulation_steps * int(os.environ.get("WORLD_SIZE", "1"))
        if self.objective == "representation" and pairs < 2 and any(weights):
            raise ConfigError("data.batch_size is 1: contrast and matching need negatives, use 2 or more.")
        if self.data.pool and self.objective not in ("language", "representation"):
            raise ConfigError("data.pool is for the objectives language and representation: set it to 0.")
        if self.objective == "representation" and self.data.pool and self.representation.reconstruction_weight:
            raise ConfigError("data.pool keeps features and captions, and no subjects to reconstruct: set it to 0, or "
                              "representation.reconstruction_weight.")  # fmt: skip
