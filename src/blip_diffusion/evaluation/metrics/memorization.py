"""Diversity and memorisation: distances between generated images, and to training images."""

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from blip_diffusion.data.synthetic import backgrounds
from blip_diffusion.data.synthetic.assets import AssetLibrary
from blip_diffusion.data.synthetic.pair_sampler import PairSampler
from blip_diffusion.data.synthetic.pair_spec import SyntheticConfig
from blip_diffusion.evaluation.generators.conditions import ConditionResult
from blip_diffusion.evaluation.metrics.statistics import Estimate, bootstrap_ci, centred_cosine
from blip_diffusion.fileio import atomic_file
from blip_diffusion.images import to_pil

SAMPLED_IMAGES, COMPOSITES, CROPS = 16, 128, 2
FeatureFn = Callable[[Sequence[Path]], Tensor]
"""Image files to features of whole images (B, F)."""


@dataclass(frozen=True)
class NearestTrainingImage:
    """A generated image and the nearest training image; files below the report's folder."""

    file: str
    nearest: str
    cosine: float


def sample_diversity(features: FeatureFn, result: ConditionResult) -> Estimate | None:
    """Return the mean of 1 - cosine between the samples of a prompt; `None` if each prompt has only one."""
    groups: dict[tuple[str, int], list[int]] = defaultdict(list)
    for i, instance in enumerate(result.instances):
        groups[instance.subject.name, instance.prompt_index].append(i)
    units = F.normalize(features(result.images), dim=1)
    by_subject: dict[str, list[float]] = defaultdict(list)
    for (subject, _), rows in groups.items():
        if len(rows) > 1:
            distances = 1 - units[rows] @ units[rows].T
            by_subject[subject].append(distances[~torch.eye(len(rows), dtype=torch.bool)].mean().item())
    if not by_subject:
        return None
    return bootstrap_ci(torch.tensor([[sum(values) / len(values) for values in by_subject.values()]]))


def training_bank(world: AssetLibrary, folder: Path, *, size: int) -> list[Path]:
    """Write images like those of training: crops of every scene, and composites of training subjects."""
    sampler = PairSampler(world, SyntheticConfig(size=size), batch_size=COMPOSITES, seed=0)
    scenes = [row for row, scene in enumerate(world.scenes) if scene.split == "train"]
    paths = [folder / f"composite-{i:03d}.png" for i in range(COMPOSITES)]
    paths += [folder / f"scene-{row:03d}-{i}.png" for row in scenes for i in range(CROPS)]
    if not all(path.is_file() for path in paths):
        folder.mkdir(parents=True, exist_ok=True)
        pixels = [sampler(0)["target"], *(_scene_crops(world, row, size) for row in scenes)]
        for path, image in zip(paths, to_pil(torch.cat(pixels)), strict=True):
            with atomic_file(path) as partial:
                image.save(partial)
    return paths


def _scene_crops(world: AssetLibrary, row: int, size: int) -> Tensor:
    """Return crops (C, 3, S, S) of one scene, cropped as by the sampler."""
    rng, (height, width) = random.Random(f"crops {row}"), world.scene_pixels.shape[2:]
    crops = [backgrounds.photograph(row, world.scenes[row], height, width, rng) for _ in range(CROPS)]
    return backgrounds.render(crops, world.scene_pixels, size, torch.Generator().manual_seed(0)).clamp(0, 1)


def nearest_training_images(
    features: FeatureFn, images: Sequence[Path], bank: Sequence[Path]
) -> list[tuple[Path, Path, float]]:
    """Find, for a sample spread over the images, the closest image of the bank and their centred cosine."""
    count = min(SAMPLED_IMAGES, len(images))
    chosen = [images[(2 * i + 1) * len(images) // (2 * count)] for i in range(count)]
    bank_features = features(bank)
    centre = bank_features.mean(0)
    values, indices = centred_cosine(features(chosen), bank_features, centre, centre).max(dim=1)
    return [(path, bank[j], v) for path, j, v in zip(chosen, indices.tolist(), values.tolist(), strict=True)]
