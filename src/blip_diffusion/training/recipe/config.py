"""Configuration of the recipe: the share of each phase, batch sizes by device, optimizers, data."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from blip_diffusion import config as configuration
from blip_diffusion.data.synthetic.pair_spec import SyntheticConfig
from blip_diffusion.errors import ConfigError
from blip_diffusion.model import InferenceConfig
from blip_diffusion.training.objectives.autoencoder import AutoencoderConfig
from blip_diffusion.training.objectives.consistency import ConsistencyConfig
from blip_diffusion.training.objectives.representation import RepresentationConfig
from blip_diffusion.training.objectives.subject import SubjectConfig
from blip_diffusion.training.optim import OptimConfig

T = TypeVar("T")
Phase = Literal["autoencoder", "decoder", "subject", "consistency"]


@dataclass(frozen=True)
class SharesConfig:
    """Share of the time of each phase; their sum is 1. A phase with 0 is skipped."""

    autoencoder: float = 0.23
    decoder: float = 0.07
    representation: float = 0.10
    subject: float = 0.51
    consistency: float = 0.09

    def __post_init__(self) -> None:
        shares = (self.autoencoder, self.decoder, self.representation, self.subject, self.consistency)
        if min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
            raise ConfigError(f"shares are {shares}: use numbers of 0 or more whose sum is 1.")
        if self.consistency and not self.subject:
            raise ConfigError("shares.subject is 0: the consistency LoRA is distilled from the model of that phase.")


@dataclass(frozen=True)
class SizesConfig:
    """Sizes of pool and batches on a device."""

    pool: int = 40_000  # pairs in the pool; new ones replace the oldest
    fill: int = 4096  # pairs in the pool before a phase starts
    worker_batch: int = 32  # pairs that a worker composites at a time
    slots: int = 96  # worker batches in shared memory
    arrivals: int = 1  # most worker batches added to the pool per step; their latents are computed then
    autoencoder: int = 128  # pairs per step: twice as many crops of 64 pixels, fewer of larger ones
    representation: int = 256  # references per step
    pairs: int = 128  # pairs per step of the subject phase
    consistency: int = 96  # the teacher's paths per step, each with `num_levels` targets
    lr_scale: float = 1.0  # times every learning rate

    def __post_init__(self) -> None:
        for name in (
            "fill",
            "worker_batch",
            "slots",
            "arrivals",
            "autoencoder",
            "representation",
            "pairs",
            "consistency",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: use 1 or more.")
        if self.pool < max(self.fill, self.worker_batch):
            raise ConfigError(f"pool is {self.pool}: use at least fill and worker_batch.")


CPU = SizesConfig(
    pool=16_384,
    fill=256,
    worker_batch=16,
    slots=8,
    autoencoder=5,
    representation=16,
    pairs=4,
    consistency=3,
    lr_scale=0.65,
)


@dataclass(frozen=True)
class CurriculumConfig:
    """Settings that change during the subject phase."""

    low_fraction: float = 0.15  # share of the phase at half resolution
    low_batch_factor: int = 2  # factor of the pairs per step at half resolution
    low_subject_drop: float = 0.25  # share of prompts without subject tokens at half resolution
    early_timestep_shift: float = 2.5  # timestep shift at first: more noise
    early_fraction: float = 0.6  # share of the phase with that shift; then `subject.timestep_shift`


@dataclass(frozen=True)
class FinderConfig:
    """Training of the subject finder, in the representation phase."""

    weight: float = 1.0  # of its loss
    batch_fraction: float = 0.25  # share of a step's targets that it is trained on


def _optim(lr: float, beta: float, decay: float, warmup: int, stable: float, floor: float) -> OptimConfig:
    return OptimConfig(
        lr=lr,
        betas=(0.9, beta),
        weight_decay=decay,
        warmup=warmup,
        schedule="cosine",
        stable_fraction=stable,
        min_lr_ratio=floor,
    )


@dataclass(frozen=True)
class PhaseConfig:
    """Optimizer and weight average of a phase."""

    optim: OptimConfig = field(default_factory=OptimConfig)
    ema_decay: float = 0.999


def _autoencoder() -> PhaseConfig:
    return PhaseConfig(_optim(8e-4, 0.99, 0.0, 50, 0.3, 0.03), 0.998)


@dataclass(frozen=True)
class PhasesConfig:
    """Optimizer and weight average of each phase."""

    autoencoder: PhaseConfig = field(default_factory=_autoencoder)
    decoder: PhaseConfig = field(default_factory=_autoencoder)
    representation: PhaseConfig = field(
        default_factory=lambda: PhaseConfig(_optim(1.2e-3, 0.98, 0.03, 100, 0.35, 0.02), 0.999)
    )
    subject: PhaseConfig = field(default_factory=lambda: PhaseConfig(_optim(4e-4, 0.99, 0.01, 200, 0.5, 0.02), 0.9995))
    consistency: PhaseConfig = field(default_factory=lambda: PhaseConfig(_optim(1e-3, 0.99, 0.0, 20, 0.4, 0.05), 0.99))


PAIRS = SyntheticConfig(
    object_crop_size=64,
    light=0.25,
    rotation=0.0,
    mirror=0.5,
    same_view=0.95,
    no_scene=0.1,
    anywhere=0.3,
    hue_rotation=0.3,
    colours=0.05,
    counts=0.07,
    sizes=0.04,
    positions=0.08,
    accessories=0.16,
    styles=0.06,
)


INFERENCE = InferenceConfig(
    prompt_reps=1, num_inference_steps=15, guidance_scale=2.0, guidance_rescale=0.6, noise_scale=0.85
)
AUTOENCODER = AutoencoderConfig(crop=64, perceptual=0.1, chroma_weight=1.0, kl=1e-6, latent_noise=0.2)
DECODER = AutoencoderConfig(crop=128, perceptual=0.1, chroma_weight=1.0, kl=0.0, train_encoder=False, latent_noise=0.35)
REPRESENTATION = RepresentationConfig(reconstruction_weight=10.0, multimodal_every=8, max_caption_tokens=24)
SUBJECT = SubjectConfig(
    subject_drop=0.10,
    prompt_drop=0.08,
    noise_samples_per_pair=3,
    min_snr=5.0,
    timestep_shift=1.5,
    subject_weight=1.4,
    reconstruction_weight=1.0,
    text_lr_scale=0.67,
    qformer_lr_scale=0.3,
)
CONSISTENCY = ConsistencyConfig(
    guidance_scale=INFERENCE.guidance_scale,
    guidance_rescale=INFERENCE.guidance_rescale,
    lora=True,
    rank=8,
    layers=(
        "to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv_shortcut",
        "time_emb_proj",
    ),
    trajectory_distillation=True,
    num_levels=4,
    solver_steps=3,
    steps=2,
    huber_c=0.1,
)  # fmt: skip


@dataclass(frozen=True)
class RecipeConfig:
    """Configuration of the whole recipe."""

    preset: Literal["mini", "tiny-placed"] = "mini"
    init_from: tuple[Path, ...] = ()  # model folders; each part comes from the first that has it
    seed: int = 0
    held_out: int = 256  # pairs for the metrics after each phase
    log_every: int = 100  # steps between reports
    save_minutes: float = 5.0  # between checkpoints
    cuda_graphs: bool = True  # on a GPU, in all phases except `representation`
    compile: tuple[Phase, ...] = ("subject",)  # phases whose CUDA graph is compiled, if that is faster
    data: Path = Path("world/world.zip")
    synthetic: SyntheticConfig = PAIRS
    inference: InferenceConfig = INFERENCE
    shares: SharesConfig = field(default_factory=SharesConfig)
    cuda: SizesConfig = field(default_factory=SizesConfig)
    cpu: SizesConfig = CPU
    phases: PhasesConfig = field(default_factory=PhasesConfig)
    autoencoder: AutoencoderConfig = AUTOENCODER
    decoder: AutoencoderConfig = DECODER
    representation: RepresentationConfig = REPRESENTATION
    finder: FinderConfig = field(default_factory=FinderConfig)
    subject: SubjectConfig = SUBJECT
    consistency: ConsistencyConfig = CONSISTENCY
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)


def read_recipe(path: Path | None, overrides: Sequence[str] = ()) -> RecipeConfig:
    """Return the recipe of a TOML file, which overrides the defaults, with further overrides `a.b=value`."""
    return read_over(RecipeConfig(), path, overrides)


def read_over(default: T, path: Path | None, overrides: Sequence[str] = ()) -> T:
    """Return a default configuration with the values of a TOML file and overrides `a.b=value`, at any depth."""
    table = tomllib.loads(configuration.to_toml(default))
    return configuration.build(type(default), _merged(table, configuration.read(path, overrides)))


def _merged(base: Mapping[str, Any], table: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two tables at any depth; values of the second win."""
    result = dict(base)
    for name, value in table.items():
        both = isinstance(value, Mapping) and isinstance(base.get(name), Mapping)
        result[name] = _merged(base[name], value) if both else value
    return result
