"""A training run from its configuration: asset library, parts, objective and loop."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from blip_diffusion import config as configuration
from blip_diffusion.argument_checks import function, listed, one_text
from blip_diffusion.data.batches import Batches
from blip_diffusion.data.synthetic.assets import AssetLibrary
from blip_diffusion.data.synthetic.pair_sampler import CaptionSampler, PairSampler
from blip_diffusion.devices import device_of
from blip_diffusion.errors import ConfigError
from blip_diffusion.fileio import as_path, atomic_dir, check_writable, locked_run
from blip_diffusion.training import checkpointing
from blip_diffusion.training.builders import OBJECTIVES, BuildContext
from blip_diffusion.training.objective import Objective
from blip_diffusion.training.objectives.control import GEOMETRIC
from blip_diffusion.training.objectives.language import LanguageStage
from blip_diffusion.training.objectives.representation import Representation
from blip_diffusion.training.objectives.sentences import Sentences
from blip_diffusion.training.pooled_batches import PooledBatches
from blip_diffusion.training.run import CHECKPOINTS, DTYPES, Result, accelerate_precision
from blip_diffusion.training.run_config import RunConfig
from blip_diffusion.training.trainer import Hook, fit
from blip_diffusion.training.training_data import DataConfig, open_data
from blip_diffusion.training.worker_batches import WorkerBatches

PRIOR_REFERENCES = 256
"""References by whose subject tokens a prior is standardised."""
POOLED = {
    "reference": ("reference", "reference_caption", "category", "identity"),
    "target": ("target", "caption", "category", "identity"),
}
"""What is read of batches whose features are pooled, by the described image."""
START = "start"
"""Folder of a run's initial model: resuming needs neither the earlier stages nor the same asset library."""


def run(
    path: str | Path,
    folder: str | Path,
    *,
    overrides: Sequence[str] = (),
    resume: bool | str | Path = False,
    extra_hooks: Sequence[Callable[[RunConfig, AssetLibrary], Hook]] = (),
) -> Result:
    """Train the objective of a TOML file; write checkpoints, logs, pages of samples, and the exported weights.

    Args:
        path: The TOML file, see `configs/` and `RunConfig`.
        folder: Where the run is written.
        overrides: Values that replace the file's, such as `"train.steps=9"`; the last one wins.
        resume: `True` or `"latest"` continues from the newest undamaged checkpoint, or starts with a warning if there
            is none; a path continues from that checkpoint.
        extra_hooks: Functions of the configuration and the whole asset library that return further hooks.

    Returns:
        The step that was reached, the number of samples, the seconds spent and why the run stopped.

    Raises:
        ConfigError: If the file has unknown keys or unusable values.
        DataError: If the asset library is missing or damaged.
        CheckpointError: If parts are missing or do not fit, or if the folder holds a run and `resume` is false.
        InputError: If nothing can be written to `folder`.
        DivergedError: If a loss, a gradient or a weight is not finite.

    Example:
        >>> train(Path("configs/debug/subject.toml"), Path("runs/debug"), overrides=["train.steps=9"])
    """
    path, folder = as_path("path", path), as_path("folder", folder)
    overrides = [one_text("an override", override) for override in listed("overrides", overrides, "texts")]
    if not isinstance(resume, bool) and not (isinstance(resume, str) and resume == "latest"):
        resume = as_path("resume", resume)
    for make in listed("extra_hooks", extra_hooks, "functions"):
        function("a hook", make, "the configuration", "the asset library", optional=False)
    config = configuration.build(RunConfig, configuration.read(path, overrides))
    check_writable(folder)
    if int(os.environ.get("RANK", "0")):  # the main process holds the lock
        return _run(config, folder, resume, extra_hooks)
    with locked_run(folder):
        checkpointing.recover(folder / CHECKPOINTS)
        return _run(config, folder, resume, extra_hooks)


def _run(
    config: RunConfig,
    folder: Path,
    resume: bool | str | Path,
    extra_hooks: Sequence[Callable[[RunConfig, AssetLibrary], Hook]],
) -> Result:
    text = configuration.to_toml(config)
    resumed = bool(checkpointing.complete(folder / CHECKPOINTS)) and (folder / START).is_dir()
    if resumed:  # tokenizers must not change with the asset library
        config = replace(config, model=replace(config.model, init_from=(folder / START,)))
    composed = _composed(config)
    data = open_data(composed, config.objective, seed=config.train.seed, device=_batch_device(config))
    if extra_hooks and data.library is None:
        raise ConfigError("--eval-during-training needs the asset library that MiniBench is made of as data.path.")
    further = [make(config, data.library) for make in extra_hooks if data.library is not None]
    torch.manual_seed(config.model.seed)
    first = [data.batches(index) for index in range(_calibration_batches(config))]
    pixels = torch.cat([batch["reference"].cpu() for batch in first])
    categories = [category for batch in first for category in batch["category"]]
    material = BuildContext(config, data.corpus(), pixels, categories)
    objective = OBJECTIVES[config.objective](material)
    if not resumed:  # an attempt without a checkpoint starts again
        _keep_start(objective, folder / START)
    hooks: list[Hook] = [data.held_out(), *further] if config.train.sample_every else []
    return fit(
        objective,
        _batches(config, objective, data.batches),
        config.train,
        folder=folder,
        resume=resume,
        hooks=hooks,
        config_text=text,
    )


def _calibration_batches(config: RunConfig) -> int:
    """Return how many batches of references the parts that are new are calibrated by."""
    return -(-PRIOR_REFERENCES // config.data.batch_size) if config.objective == "prior" else 1


def _composed(config: RunConfig) -> DataConfig:
    """Return the settings of the pairs that are composed at once, with depth and normals if the hint is one of them."""
    size = (config.data.pool and config.data.pool_batch_size) or config.data.batch_size
    geometric = config.objective == "control" and config.control.hint in GEOMETRIC
    synthetic = replace(config.data.synthetic, geometry=config.data.synthetic.geometry or geometric)
    return replace(config.data, batch_size=size, synthetic=synthetic)


def _batches(config: RunConfig, objective: Objective, batches: Batches) -> Callable[[int], Any]:
    if config.data.pool:
        if not isinstance(objective, LanguageStage | Representation):
            raise ConfigError("data.pool is for the objectives language and representation: set it to 0.")
        device = _device(config)
        return PooledBatches(
            WorkerBatches(batches, config.data.workers, POOLED[objective.config.image]),
            objective.encode,
            config.data.pool,
            batch_size=config.data.batch_size,
            every=config.data.pool_every * config.train.gradient_accumulation_steps * _processes(),
            seed=config.train.seed,
            device=device,
            dtype=torch.float16,
            autocast=DTYPES[accelerate_precision(device, config.train)],
        )
    if isinstance(objective, Sentences) and isinstance(batches, PairSampler):
        return CaptionSampler(batches)  # without images
    return WorkerBatches(batches, config.data.workers) if config.data.workers else batches


def _keep_start(objective: Objective, folder: Path) -> None:
    if int(os.environ.get("RANK", "0")):
        return
    with atomic_dir(folder) as partial:
        objective.export(partial)


def _processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _batch_device(config: RunConfig) -> torch.device:
    """Return where batches are composed: on the CPU by worker processes, which cannot use a GPU after a fork."""
    return torch.device("cpu") if config.data.workers else _device(config)


def _device(config: RunConfig) -> torch.device:
    """Return this process's device."""
    device = device_of(config.train.device)
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if device.type == "cuda" else device
