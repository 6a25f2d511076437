"""Does a generator draw one picture again and again, or one that it was trained on? Distances of whole pictures."""

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from blip_diffusion import images
from blip_diffusion.data.synthetic import backgrounds
from blip_diffusion.data.synthetic.assets import World
from blip_diffusion.data.synthetic.pair_sampler import Composer, ComposerConfig
from blip_diffusion.evaluation.generators.conditions import Row
from blip_diffusion.evaluation.metrics.statistics import Estimate, centred_cosine, estimate

SAMPLE, COMPOSED, CROPS = 16, 128, 2
Look = Callable[[Sequence[Path]], Tensor]
"""Picture files to features of whole pictures (B, F)."""


@dataclass(frozen=True)
class Neighbour:
    """A picture, and the nearest one that the generator may have been trained on; files below the report's folder."""

    file: str
    nearest: str
    cosine: float


def distances(look: Look, row: Row) -> Estimate | None:
    """1 - cosine among the copies of each prompt, a mean over subjects; `None` where each prompt has but one."""
    groups: dict[tuple[str, int], list[int]] = defaultdict(list)
    for i, case in enumerate(row.cases):
        groups[case.subject.name, case.number].append(i)
    units = F.normalize(look(row.pictures), dim=1)
    found: dict[str, list[float]] = defaultdict(list)
    for (subject, _), rows in groups.items():
        if len(rows) > 1:
            apart = 1 - units[rows] @ units[rows].T
            found[subject].append(apart[~torch.eye(len(rows), dtype=torch.bool)].mean().item())
    if not found:
        return None
    return estimate(torch.tensor([[sum(some) / len(some) for some in found.values()]]))


def training_pictures(world: World, folder: Path, *, size: int) -> list[Path]:
    """Crops of every training scene and composites of training subjects, kept in a folder: what may be memorised."""
    composer = Composer(world, ComposerConfig(size=size), batch_size=COMPOSED, seed=0)
    scenes = [row for row, scene in enumerate(world.scenes) if scene.split == "train"]
    paths = [folder / f"composite-{i:03d}.png" for i in range(COMPOSED)]
    paths += [folder / f"scene-{row:03d}-{i}.png" for row in scenes for i in range(CROPS)]
    if not all(path.is_file() for path in paths):
        folder.mkdir(parents=True, exist_ok=True)
        pixels = [composer(0)["target"], *(_crops(world, row, size) for row in scenes)]
        for path, picture in zip(paths, images.to_pictures(torch.cat(pixels)), strict=True):
            picture.save(path)
    return paths


def _crops(world: World, row: int, size: int) -> Tensor:
    """(C, 3, S, S) of one scene, as the composer cuts it."""
    rng, (height, width) = random.Random(f"crops {row}"), world.scene_pixels.shape[2:]
    cut = [backgrounds.photograph(row, world.scenes[row], height, width, rng) for _ in range(CROPS)]
    return backgrounds.draw(cut, world.scene_pixels, size, torch.Generator().manual_seed(0)).clamp(0, 1)


def neighbours(look: Look, pictures: Sequence[Path], bank: Sequence[Path]) -> list[tuple[Path, Path, float]]:
    """Of a sample of pictures, spread over them: each, the nearest of the bank, and their centred cosine."""
    count = min(SAMPLE, len(pictures))
    chosen = [pictures[(2 * i + 1) * len(pictures) // (2 * count)] for i in range(count)]
    known = look(bank)
    centre = known.mean(0)
    values, places = centred_cosine(look(chosen), known, centre, centre).max(dim=1)
    return [(path, bank[j], v) for path, j, v in zip(chosen, places.tolist(), values.tolist(), strict=True)]
