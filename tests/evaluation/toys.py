"""A judge that needs no weights, a bench of the drawn world, and generators whose scores are known beforehand."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from blip_diffusion.evaluation.cases import Bench, Case, prepare
from blip_diffusion.evaluation.judges import pooled
from blip_diffusion.evaluation.scoring import Draw
from tests.data.synthetic_world import make_world

WORLD = make_world()
SCENES = ("in the forest", "in the beach", "in the space")
BENCH = Bench(("held0", "held1", "held2", "held3"), SCENES[:2], seeds=2, scenes=SCENES, probe_pictures=8)
SIZE = 32


class ColourJudge:
    """Colours of an eighth of the picture, and their squares."""

    name = "colours"
    backbone = "none"
    preprocessing = "none"

    def maps(self, pixels: Tensor) -> Tensor:
        cells = F.avg_pool2d(pixels, pixels.shape[-1] // 8)
        return torch.cat([cells, cells**2], dim=1)

    def features(self, pixels: Tensor, mask: Tensor | None = None) -> Tensor:
        return pooled(self.maps(pixels), mask)


def same(pixels: Tensor) -> Tensor:
    """An autoencoder that loses nothing."""
    return pixels


def perfect(bench: Bench = BENCH) -> Draw:
    """Draws the ground truth of whichever subject the reference shows, from any seed the same."""
    material = prepare(WORLD, bench, size=SIZE)
    truths = {_key(case): picture for case, picture in zip(material.cases, material.ground_truth, strict=True)}
    return lambda cases: torch.stack([truths[_key(case)] for case in cases])


def copying(cases: Sequence[Case]) -> Tensor:
    """Hands the reference back."""
    return torch.stack([case.reference for case in cases])


def other_instance(bench: Bench = BENCH) -> Draw:
    """Draws the floor."""
    material = prepare(WORLD, bench, size=SIZE)
    floors = {case.seed: picture for case, picture in zip(material.cases, material.other_instance, strict=True)}
    return lambda cases: torch.stack([floors[case.seed] for case in cases])


def _key(case: Case) -> tuple[float, str]:
    return float(case.reference.double().sum()), case.prompt
