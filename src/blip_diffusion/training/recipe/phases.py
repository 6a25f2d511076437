"""The phases: their objectives, and the rows that each step takes from the pool."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from blip_diffusion.diffusion.forward_process import Noising
from blip_diffusion.errors import ConfigError
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.modules.qformer import place_features
from blip_diffusion.prompts import insert_position
from blip_diffusion.training import initialization
from blip_diffusion.training.initialization import InitConfig
from blip_diffusion.training.objectives.autoencoder import AutoencoderConfig, random_crops, random_noise
from blip_diffusion.training.objectives.representation import Representation
from blip_diffusion.training.objectives.subject import SubjectConfig
from blip_diffusion.training.recipe.config import RecipeConfig, SizesConfig
from blip_diffusion.training.recipe.cuda_graph import autocast
from blip_diffusion.training.recipe.objectives import (
    PackedAutoencoder,
    PackedConsistency,
    PackedRepresentation,
    PackedSubject,
)
from blip_diffusion.training.recipe.packing import Rows, to_pixels
from blip_diffusion.training.recipe.pool import Feeder, Pool
from blip_diffusion.training.recipe.timed_loop import NextRows

AUTOENCODER_COLUMNS = ("target", "reference")
REPRESENTATION_COLUMNS = (
    "reference", "target", "object_crop", "mask", "category", "category_mask", "caption", "caption_mask", "identity",
)  # fmt: skip
SUBJECT_COLUMNS = ("reference", "object_crop", "mask", "frames", "prompt", "category", "category_mask")
CONSISTENCY_COLUMNS = ("reference", "frames", "prompt", "category", "category_mask")
CROP = 64  # pixels of the crops that `SizesConfig.autoencoder` counts
FULL, LOW = "latents", "low_latents"
POSITION_SCALE = 0.7  # of the subject tokens' position embeddings, in the standard deviation of the words'


@dataclass(frozen=True)
class Source:
    """The pool of rows and the feeder that fills it."""

    feeder: Feeder
    pool: Pool
    sizes: SizesConfig

    def take(self, size: int, columns: Sequence[str], rng: torch.Generator) -> Rows:
        """Return random rows, after adding new ones to the pool."""
        self.feeder.drain(self.pool, at_most=self.sizes.arrivals)
        return self.pool.take(self.pool.sample(size, rng), columns)


def new_model(config: RecipeConfig, corpus: Sequence[str], pixels: Tensor) -> BlipDiffusion:
    """Return a run's initial model: the parts of `config.init_from`, and new ones for missing parts.

    An autoencoder whose latents differ from the preset's is replaced, and the U-Net's outer layers with it.

    Args:
        config: Configuration of the recipe.
        corpus: Sentences from which new tokenizers are built.
        pixels: (B, 3, S, S) references in [0, 1] that calibrate a new image encoder.
    """
    init = InitConfig(config.preset, config.init_from, seed=config.seed, inference=config.inference)
    parts = initialization.load_parts(init)
    new_text = parts.text_encoder is None
    initialization.fit_latents(parts, init)
    model = initialization.init_model(parts, init, corpus, pixels)
    if model.subject_finder is None or not model.place_width:
        raise ConfigError(f"preset is {config.preset}: the recipe needs placed tokens and a subject finder.")
    if new_text:
        init_token_positions(model)
    return model


@torch.no_grad()
def init_token_positions(model: BlipDiffusion) -> None:
    """Initialize the position embeddings of the subject tokens by the positions of a square grid."""
    queries, at = model.subject_encoder.qformer.config.queries, insert_position(model.tokenizer)
    weight = model.text_encoder.embeddings.position_embedding.weight
    grid = place_features(round(queries**0.5), weight.shape[1])[0]
    weight[at : at + queries] = POSITION_SCALE * weight.std() * grid.to(weight)


def autoencoder(folders: Sequence[Path], config: AutoencoderConfig) -> PackedAutoencoder:
    """Return the objective of the first phase; with a frozen encoder, of the second."""
    init = InitConfig(init_from=tuple(folders))
    parts = initialization.load_parts(init)
    initialization.require_parts(parts, "vae")
    distance = initialization.perceptual_distance(config.lpips) if config.perceptual else None
    return PackedAutoencoder(parts.vae, distance, config)


def representation(folders: Sequence[Path], config: RecipeConfig) -> PackedRepresentation:
    """Return the objective of the third phase."""
    parts = initialization.load_parts(InitConfig(init_from=tuple(folders)))
    initialization.require_parts(parts, "subject_encoder", "subject_finder", "reference")
    shapes = parts.subject_encoder.qformer.config  # type: ignore[union-attr]
    heads = initialization.init_heads(shapes, config.synthetic.object_crop_size, folders, grid=True)
    core = Representation(
        parts.subject_encoder,  # type: ignore[arg-type]  # required above
        parts.qformer_tokenizer,
        parts.reference,  # type: ignore[arg-type]
        heads,
        config.representation,
    )
    return PackedRepresentation(core, parts.subject_finder, config.finder)  # type: ignore[arg-type]


def subject(folders: Sequence[Path], config: RecipeConfig) -> PackedSubject:
    """Return the objective of the fourth phase."""
    model, head = _trained_model(folders, config), None
    if config.subject.reconstruction_weight:
        shapes, size = model.subject_encoder.qformer.config, config.synthetic.object_crop_size
        head = initialization.init_reconstruction_head(shapes, size, folders, grid=True, trained=True)
    return PackedSubject(model, initialization.noising_from(model.scheduler), head, config.subject)


def consistency(folders: Sequence[Path], config: RecipeConfig, device: torch.device) -> PackedConsistency:
    """Return the objective of the last phase: a consistency LoRA for two to four sampling steps."""
    model = _trained_model(folders, config)
    core = PackedSubject(model, initialization.noising_from(model.scheduler), None, config.subject)
    return PackedConsistency(core.to(device), config.consistency)


def _trained_model(folders: Sequence[Path], config: RecipeConfig) -> BlipDiffusion:
    init = InitConfig(preset=config.preset, init_from=tuple(folders), inference=config.inference)
    parts = initialization.load_parts(init)
    initialization.require_parts(parts, "subject_encoder", "text_encoder", "unet", "vae", "tokenizer", "scheduler")
    return initialization.init_model(parts, init, (), torch.empty(0))


# ----------------------------------------------------------------------------------------------------- rows of a step


def autoencoder_rows(source: Source, objective: PackedAutoencoder) -> NextRows:
    """Return crops of targets and references, with the noise of their latents."""
    config = objective.config
    pairs = max(1, source.sizes.autoencoder * CROP**2 // config.crop**2)
    positions = torch.Generator().manual_seed(source.feeder.first)  # on the CPU, to avoid synchronisation

    def rows(_elapsed: float, rng: torch.Generator) -> Rows:
        taken = source.take(pairs, AUTOENCODER_COLUMNS, rng)
        pixels = random_crops(torch.cat([taken[name] for name in AUTOENCODER_COLUMNS]), config.crop, positions)
        noise, disturbance = random_noise(objective.latent_shape(pixels), config.latent_noise, rng)
        return {"pixels": pixels, "noise": noise, "disturbance": disturbance}

    return rows


def representation_rows(source: Source) -> NextRows:
    """Return references with their captions and crops."""
    return lambda _elapsed, rng: source.take(source.sizes.representation, REPRESENTATION_COLUMNS, rng)


def subject_rows(source: Source, objective: PackedSubject, config: RecipeConfig) -> NextRows:
    """Return pairs with latents, noise, timesteps and dropped prompts, at half resolution at first."""
    curriculum = config.curriculum

    def rows(elapsed: float, rng: torch.Generator) -> Rows:
        low = elapsed < curriculum.low_fraction
        size = source.sizes.pairs * (curriculum.low_batch_factor if low else 1)
        taken = source.take(size, (*SUBJECT_COLUMNS, LOW if low else FULL), rng)
        if low:
            taken[FULL] = taken.pop(LOW)
        current = config.subject
        if low:
            current = replace(current, subject_drop=curriculum.low_subject_drop)
        if elapsed < curriculum.early_fraction:
            current = replace(current, timestep_shift=curriculum.early_timestep_shift)
        return taken | random_rows(taken[FULL], current, objective.noising, rng)

    return rows


def consistency_rows(source: Source, objective: PackedConsistency) -> NextRows:
    """Return references with their prompts, and noise."""

    def rows(_elapsed: float, rng: torch.Generator) -> Rows:
        taken = source.take(source.sizes.consistency, CONSISTENCY_COLUMNS, rng)
        size = len(taken["prompt"])
        none = torch.zeros(size, dtype=torch.bool, device=rng.device)
        noise = torch.randn(objective.core.latent_shape(size), generator=rng, device=rng.device)
        return taken | {"noise": noise, "empty": none, "bare": none}

    return rows


def random_rows(latents: Tensor, config: SubjectConfig, noising: Noising, rng: torch.Generator) -> Rows:
    """Sample the noise and timesteps of a step, and which prompts lose their words or their subject."""
    copies, uniform = config.noise_samples_per_pair, torch.rand(len(latents), generator=rng, device=rng.device)
    shape = (len(latents) * copies, *latents.shape[1:])
    return {
        "noise": torch.randn(shape, generator=rng, device=rng.device),
        "timesteps": noising.random_timesteps(shape[0], rng, timestep_shift=config.timestep_shift),
        "empty": uniform < config.prompt_drop,
        "bare": (uniform >= config.prompt_drop) & (uniform < config.prompt_drop + config.subject_drop),
    }


@torch.no_grad()
def latent_columns(objective: PackedSubject, rows: Rows) -> Rows:
    """Return the latents of the targets at full and at half resolution."""
    pixels = to_pixels(rows["target"])
    with autocast(pixels.device):
        full = objective.model.latents.encode(pixels)
        low = objective.model.latents.encode(F.avg_pool2d(pixels, 2))
    return {FULL: full.to(torch.bfloat16), LOW: low.to(torch.bfloat16)}
