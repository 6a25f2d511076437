"""Real subjects of the categories that the study measures: composites, and their subject tokens."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from blip_diffusion.data.benchmarks.minibench import bench_sampler, first_rows, pair_spec_of
from blip_diffusion.data.synthetic.assets import AssetLibrary
from blip_diffusion.data.synthetic.prompt_templates import PromptSpec
from blip_diffusion.errors import DataError
from blip_diffusion.model import BlipDiffusion

SCENE = "on a plain white background"
BATCH = 16


@dataclass(frozen=True)
class RealSubjects:
    """Composites of N subjects on a white background, with the tokens of their references."""

    categories: list[str]
    references: Tensor  # (N, 3, S, S) in [0, 1]
    images: Tensor  # (N, 3, S, S): the true images of the prompt
    tokens: Tensor  # (N, Q, D)

    def rows(self, category: str) -> list[int]:
        """Return the rows of a category."""
        return [row for row, name in enumerate(self.categories) if name == category]


def chosen_categories(world: AssetLibrary, count: int, *, shown: int) -> list[str]:
    """Return the categories with most training subjects of those with held-out subjects.

    Args:
        world: The assets.
        count: Number of categories.
        shown: Training subjects that are generated; a category must have more, to which the probe is fitted.

    Returns:
        The categories, largest first.

    Raises:
        DataError: If there are fewer such categories.
    """
    trained, held_out = (
        Counter(world.cutouts[row].category for row in first_rows(world, split=split).values())
        for split in ("train", "heldout")
    )
    fitting = [name for name, size in trained.most_common() if size > shown and name in held_out]
    if len(fitting) < count:
        raise DataError(
            f"The dataset has {len(fitting)} categories with held-out subjects and more than {shown} training subjects:"
            " ask for at most that many."
        )
    return fitting[:count]


@torch.no_grad()
def real_subjects(
    model: BlipDiffusion, world: AssetLibrary, categories: Sequence[str], *, split: str, per_category: int | None = None
) -> RealSubjects:
    """Compose subjects of some categories, and encode their references.

    Args:
        model: The model that encodes them.
        world: The assets.
        categories: Their categories.
        split: "train" or "heldout".
        per_category: Most subjects of a category; default: all.

    Returns:
        The subjects, in the order of the categories.
    """
    rows = list(first_rows(world, split=split).values())
    chosen = [
        row for name in categories for row in [r for r in rows if world.cutouts[r].category == name][:per_category]
    ]
    sampler, parts = bench_sampler(world, model.image_size), []
    for start in range(0, len(chosen), BATCH):
        rng = random.Random(f"subjects {split} {start}")
        specs = [pair_spec_of(sampler, row, PromptSpec(scene=SCENE), rng) for row in chosen[start : start + BATCH]]
        batch = sampler.render(specs, rng)
        tokens = model.subject_tokens(batch["reference"], batch["category"]).float()
        parts.append((batch["category"], batch["reference"], batch["target"], tokens))
    names, *tensors = zip(*parts, strict=True)
    return RealSubjects([name for some in names for name in some], *(torch.cat(some) for some in tensors))
