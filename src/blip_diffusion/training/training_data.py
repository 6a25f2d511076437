"""Training data of a run: composites of the asset library, or images with captions, by the kind of `data.path`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch

from blip_diffusion.data.batches import Batches
from blip_diffusion.data.captioned.batches import CaptionedBatches
from blip_diffusion.data.captioned.image_folder import read_folder
from blip_diffusion.data.captioned.rows import CaptionedImage, check_categories
from blip_diffusion.data.captioned.shards import read_shards, shards_of
from blip_diffusion.data.synthetic.assets import AssetLibrary
from blip_diffusion.data.synthetic.pair_sampler import PairSampler
from blip_diffusion.data.synthetic.pair_spec import SyntheticConfig
from blip_diffusion.data.synthetic.tokenizers import tokenizer_corpus
from blip_diffusion.errors import ConfigError
from blip_diffusion.fileio import path_exists
from blip_diffusion.training.sample_callback import SampleCallback

CALLBACK_BATCH, PROBES, CALLBACK_SEED = 8, 8, 99
WITH_SUBJECT = ("subject", "consistency", "control", "inpaint", "prior", "upscale")
"""Objectives whose pairs are of a subject and its category; the others take images and captions as they are."""
MOST = {"batch_size": 2**16, "pool_batch_size": 2**16, "pool": 2**24, "workers": 2**10}
"""Largest numbers of a configuration."""
MAX_CORPUS = 200_000
"""Captions that new tokenizers are trained on."""


@dataclass(frozen=True)
class DataConfig:
    """Training data: the packed asset library and how pairs are composed from it, or one's own images with captions."""

    path: Path = Path("world/world.zip")  # or a folder of images with captions, a folder of tar shards, a shard
    licences: Literal["all", "permissive"] = "all"  # of the asset library
    category: str = ""  # of images with captions that don't name theirs, such as "dog"
    batch_size: int = 16  # pairs in a micro-batch
    pool: int = 0
    """With the objectives `language` and `representation`: number of batches of images that steps draw from, their
    frozen features cached."""
    pool_batch_size: int = 0  # pairs in a composed batch of the pool; 0: `batch_size`
    pool_every: int = 1  # steps between two new batches of the pool, until it is full
    workers: int = 0
    """Processes that compose batches; 0: a thread of the training process."""
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"data.batch_size is {self.batch_size}: use 1 or more.")
        for name, most in MOST.items():
            if getattr(self, name) > most:
                raise ConfigError(f"data.{name} is {getattr(self, name)}: use at most {most}.")
        if self.pool < 0:
            raise ConfigError(f"data.pool is {self.pool}: use 0 for new images in each step, or a number of batches.")
        if self.pool_batch_size < 0 or self.pool_every < 1:
            raise ConfigError("data.pool_batch_size must be 0 or more, and data.pool_every 1 or more.")
        if self.pool and self.pool * self.pool_batch_size < (self.batch_size if self.pool_batch_size else 0):
            raise ConfigError(
                f"data.pool is {self.pool} batches of {self.pool_batch_size}, fewer pairs than a batch of "
                f"{self.batch_size} needs: raise data.pool."
            )
        if self.workers < 0:
            raise ConfigError(f"data.workers is {self.workers}: use 0 for none, or a number of processes.")


@dataclass(frozen=True)
class TrainingData:
    """Batches, the sentences that new tokenizers are trained on, and held-out samples.

    Args:
        batches: The batch of an index.
        corpus: Returns the sentences.
        held_out: Returns the hook that samples and scores held-out pairs, or any pairs if none are held out.
        library: The whole asset library; `None` for one's own images.
    """

    batches: Batches
    corpus: Callable[[], Sequence[str]]
    held_out: Callable[[], SampleCallback]
    library: AssetLibrary | None = None


def open_data(config: DataConfig, objective: str, *, seed: int, device: torch.device) -> TrainingData:
    """Open the training data of a run.

    Raises:
        ConfigError: If a setting has no effect on such data.
        DataError: If the data are missing or damaged.
    """
    shards = shards_of(config.path)
    if not shards and not path_exists(config.path, Path.is_dir):
        if config.category:
            raise ConfigError(
                "data.category has no effect on the asset library, which names all categories: remove it."
            )
        return _of_library(config, seed, device)
    if config.licences != "all":
        raise ConfigError("data.licences has no effect on images of your own: remove it.")
    if config.synthetic.geometry:
        raise ConfigError(
            "Images of your own have no depth and normals: use the asset library, or another control.hint."
        )
    rows = read_shards(shards) if shards else read_folder(config.path)
    rows = [replace(row, category=row.category or config.category) for row in rows]
    if objective in (*WITH_SUBJECT, "representation"):
        check_categories(rows)
    return _of_images(rows, config, objective, seed, device)


def _of_library(config: DataConfig, seed: int, device: torch.device) -> TrainingData:
    whole = AssetLibrary.load(config.path, geometry=config.synthetic.geometry)
    world = whole.subset(permissive=config.licences == "permissive")
    batches = PairSampler(world, config.synthetic, batch_size=config.batch_size, seed=seed, device=device)

    def held_out() -> SampleCallback:
        split = "heldout" if any(row.split == "heldout" for row in world.cutouts) else config.synthetic.split
        compose = replace(config.synthetic, split=split)
        return _callback(PairSampler(world, compose, batch_size=CALLBACK_BATCH, seed=CALLBACK_SEED, device=device))

    return TrainingData(batches, lambda: tokenizer_corpus(world), held_out, whole)


def _of_images(
    rows: Sequence[CaptionedImage], config: DataConfig, objective: str, seed: int, device: torch.device
) -> TrainingData:
    kept = [row for row in rows if row.held_out]

    def batches(some: Sequence[CaptionedImage], batch_size: int, seed: int) -> CaptionedBatches:
        return CaptionedBatches(
            some,
            size=config.synthetic.size,
            object_crop_size=config.synthetic.object_crop_size,
            batch_size=batch_size,
            seed=seed,
            with_subject=objective in WITH_SUBJECT,
            device=device,
        )

    train = [row for row in rows if not row.held_out]
    return TrainingData(
        batches(train, config.batch_size, seed),
        lambda: [text for row in train[:MAX_CORPUS] for text in (row.caption, row.category) if text],
        lambda: _callback(batches(kept or train, CALLBACK_BATCH, CALLBACK_SEED)),
    )


def _callback(batches: Batches) -> SampleCallback:
    return SampleCallback(batches(0), [batches(index) for index in range(1, 1 + PROBES)])
