"""A training run from its configuration: world, parts, objective, loop. The composition root of training."""

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from blip_diffusion import config as configuration
from blip_diffusion.checkpoint.model_folder import Parts
from blip_diffusion.data.synthetic.assets import AssetLibrary
from blip_diffusion.devices import device_of
from blip_diffusion.errors import ConfigError
from blip_diffusion.fileio import atomic_dir, check_writable, locked, remove_partials
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.modules.placed_unet import is_placed
from blip_diffusion.modules.qformer import QFormerConfig
from blip_diffusion.training import checkpointing, initialization
from blip_diffusion.training.config import TrainConfig
from blip_diffusion.training.objective import Objective
from blip_diffusion.training.objectives.autoencoder import Autoencoder, AutoencoderConfig
from blip_diffusion.training.objectives.consistency import Consistency, ConsistencyConfig
from blip_diffusion.training.objectives.control import ControlConfig, StructureControl
from blip_diffusion.training.objectives.representation import Representation, RepresentationConfig
from blip_diffusion.training.objectives.subject import SubjectConfig, SubjectRepresentation
from blip_diffusion.training.objectives.text_to_image import TextToImage, TextToImageConfig
from blip_diffusion.training.shapes import SHAPES
from blip_diffusion.training.trainer import CHECKPOINTS, Hook, Result, fit
from blip_diffusion.training.training_data import DataConfig, open_data

START = "start"
"""Where a run keeps all that it began with: going on needs neither the earlier stages nor the same world."""


@dataclass(frozen=True)
class RunConfig:
    """Configuration of a training run, read from TOML; each objective reads only its own table."""

    objective: Literal["autoencoder", "text_to_image", "representation", "subject", "consistency", "control"]
    data: DataConfig = field(default_factory=DataConfig)
    model: initialization.InitConfig = field(default_factory=initialization.InitConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    text_to_image: TextToImageConfig = field(default_factory=TextToImageConfig)
    representation: RepresentationConfig = field(default_factory=RepresentationConfig)
    subject: SubjectConfig = field(default_factory=SubjectConfig)
    consistency: ConsistencyConfig = field(default_factory=ConsistencyConfig)
    control: ControlConfig = field(default_factory=ControlConfig)

    def __post_init__(self) -> None:
        weights = (self.representation.itc_weight, self.representation.itm_weight)
        pairs = self.data.batch_size * self.train.gradient_accumulation_steps * int(os.environ.get("WORLD_SIZE", "1"))
        if self.objective == "representation" and pairs < 2 and any(weights):
            raise ConfigError("data.batch_size is 1: contrast and matching tell pairs apart, use 2 or more.")


@dataclass(frozen=True)
class BuildContext:
    """What an objective is built from."""

    config: RunConfig
    corpus: Sequence[str]  # sentences for new tokenizers
    pixels: torch.Tensor  # (B, 3, S, S) references, to calibrate a new image encoder


def autoencoder(material: BuildContext) -> Objective:
    """Build the objective of the autoencoder stage."""
    config = material.config
    parts = initialization.load_parts(config.model)
    if not config.autoencoder.train_encoder:  # a decoder alone, of an encoder that has learned
        initialization.require_parts(parts, "vae")
    vae = initialization.init_vae(parts, config.model)
    distance = initialization.perceptual_distance(config.autoencoder.lpips) if config.autoencoder.perceptual else None
    return Autoencoder(vae, distance, config.autoencoder)


def text_to_image(material: BuildContext) -> Objective:
    """Build the objective of the text-to-image stage."""
    config = material.config
    model = initialization.init_model(
        initialization.load_parts(config.model), config.model, material.corpus, material.pixels
    )
    check_size(config, model)
    return TextToImage(model, initialization.noising_from(model.scheduler), config.text_to_image)


def representation(material: BuildContext) -> Objective:
    """Build the objective of stage 1 of BLIP-Diffusion."""
    config = material.config
    parts = initialization.load_parts(config.model)
    initialization.init_subject_encoder(parts, config.model, material.corpus, material.pixels)
    assert parts.subject_encoder is not None and parts.reference is not None
    grid = is_placed(SHAPES[config.model.preset].unet)
    heads = _heads(config, parts.subject_encoder.qformer.config, grid=grid)
    return Representation(parts.subject_encoder, parts.qformer_tokenizer, parts.reference, heads, config.representation)


def subject(material: BuildContext) -> Objective:
    """Build the objective of stage 2 of BLIP-Diffusion."""
    config = material.config
    model = initialization.init_model(
        initialization.load_parts(config.model), config.model, material.corpus, material.pixels
    )
    check_size(config, model)
    heads = _heads(config, model.subject_encoder.qformer.config, grid=bool(model.place_width))
    noising = initialization.noising_from(model.scheduler)
    return SubjectRepresentation(model, noising, heads["reconstruction"], config.subject)


def _heads(config: RunConfig, shapes: QFormerConfig, *, grid: bool) -> nn.ModuleDict:
    size = config.data.synthetic.object_crop_size
    return initialization.init_heads(shapes, size, config.model.init_from, grid=grid)


def _trained(material: BuildContext) -> tuple[Parts, BlipDiffusion]:
    """Return the parts and the model of a stage that begins with a whole trained model."""
    config = material.config
    parts = initialization.load_parts(config.model)
    initialization.require_parts(parts, "subject_encoder", "text_encoder", "unet", "vae")
    model = initialization.init_model(parts, config.model, material.corpus, material.pixels)
    check_size(config, model)
    return parts, model


def consistency(material: BuildContext) -> Objective:
    """Build the objective of consistency distillation; the model becomes its teacher."""
    _, model = _trained(material)
    return Consistency(model, initialization.noising_from(model.scheduler), material.config.consistency)


def control(material: BuildContext) -> Objective:
    """Build the objective of structure control of a trained model."""
    config, (parts, model) = material.config, _trained(material)
    torch.manual_seed(config.model.seed)
    return StructureControl(
        model,
        initialization.noising_from(model.scheduler),
        config.control,
        t2i_adapters=parts.t2i_adapters,
        consistency_lora=parts.consistency_lora,
    )


def check_size(config: RunConfig, model: BlipDiffusion) -> None:
    """Raise `ConfigError` if images are composed at another size than the model's."""
    own, size = int(model.unet.config.sample_size) * model.latents.factor, config.data.synthetic.size
    if size != own:
        raise ConfigError(f"data.synthetic.size is {size}, and this model draws {own} pixels: set it to {own}.")


OBJECTIVES: dict[str, Callable[[BuildContext], Objective]] = {
    "autoencoder": autoencoder,
    "text_to_image": text_to_image,
    "representation": representation,
    "subject": subject,
    "consistency": consistency,
    "control": control,
}


def run(
    path: Path,
    folder: Path,
    *,
    overrides: Sequence[str] = (),
    resume: bool | Literal["latest"] | Path = False,
    extra_hooks: Sequence[Callable[[RunConfig, AssetLibrary], Hook]] = (),
) -> Result:
    """Train what a TOML file says: checkpoints, logs, pages of samples, and the exported weights.

    Args:
        path: The TOML file, see `configs/` and `RunConfig`.
        folder: Where the run is written.
        overrides: Values that replace the file's, such as `"train.steps=9"`; the last one wins.
        resume: `True` or `"latest"` continues from the newest undamaged checkpoint, or starts if there is none; a path
            continues from that checkpoint.
        extra_hooks: Functions of the configuration and the whole asset library that return further hooks.

    Returns:
        The step that was reached, the samples seen, the seconds spent and why the run stopped.

    Raises:
        ConfigError: If the file has unknown keys or unusable values.
        DataError: If the asset library is missing or damaged.
        CheckpointError: If parts are missing or do not fit, or if the folder holds a run and `resume` is false.
        InputError: If nothing can be written to `folder`.
        DivergedError: If a loss, a gradient or a weight is not finite.

    Example:
        >>> train(Path("configs/debug/subject.toml"), Path("runs/debug"), overrides=["train.steps=9"])
    """
    config = configuration.build(RunConfig, configuration.read(path, overrides))
    check_writable(folder)
    with nullcontext() if int(os.environ.get("RANK", "0")) else locked(folder):
        if not int(os.environ.get("RANK", "0")):
            remove_partials(folder)
        return _run(config, folder, resume, extra_hooks)


def _run(
    config: RunConfig,
    folder: Path,
    resume: bool | Literal["latest"] | Path,
    extra_hooks: Sequence[Callable[[RunConfig, AssetLibrary], Hook]],
) -> Result:
    text = configuration.to_toml(config)
    begun = bool(checkpointing.complete(folder / CHECKPOINTS)) and (folder / START).is_dir()
    if begun:  # a world that has changed since must not change what a word's number is
        config = replace(config, model=replace(config.model, init_from=(folder / START,)))
    data = open_data(config.data, config.objective, seed=config.train.seed, device=_device(config))
    if extra_hooks and data.library is None:
        raise ConfigError("--eval-during-training needs the asset library that MiniBench is made of as data.path.")
    further = [make(config, data.library) for make in extra_hooks if data.library is not None]
    torch.manual_seed(config.model.seed)
    material = BuildContext(config, data.corpus(), data.batches(0)["reference"].cpu())
    objective = OBJECTIVES[config.objective](material)
    if not begun:  # nothing is left of an attempt that came to no checkpoint
        _keep_start(objective, folder / START)
    hooks: list[Hook] = [data.held_out(), *further] if config.train.sample_every else []
    return fit(
        objective,
        data.batches,
        config.train,
        folder=folder,
        resume=resume,
        hooks=hooks,
        config_text=text,
    )


def _keep_start(objective: Objective, folder: Path) -> None:
    if int(os.environ.get("RANK", "0")):
        return
    with atomic_dir(folder) as partial:
        objective.export(partial)


def _device(config: RunConfig) -> torch.device:
    """Return this process's device."""
    device = device_of(config.train.device)
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if device.type == "cuda" else device
