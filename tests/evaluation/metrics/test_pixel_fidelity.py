"""Shape and detail scores of a drawing that is moved, inverted inside, or has another shape."""

import pytest
import torch
from torch import Tensor

from blip_diffusion.data.benchmarks.dreambench import Bench
from blip_diffusion.errors import InputError
from blip_diffusion.evaluation.generators.conditions import GeneratorSet
from blip_diffusion.evaluation.metrics.pixel_fidelity import foreground, mask_iou, masked_correlation, to_common_frame
from blip_diffusion.evaluation.metrics.registry import MetricBuilder, build_metrics
from tests.evaluation.fakes import SIZE, WORLD, identity

SIDE = 128


def disc(x: float, y: float, radius: float, *, inverted: bool = False) -> Tensor:
    """(1, 3, S, S): a disc with a lighter right half on a blue gradient."""
    at = torch.linspace(0, 1, SIDE)
    row, column = torch.meshgrid(at, at, indexing="ij")
    inside = ((column - x) ** 2 + (row - y) ** 2).sqrt() < radius
    half = (column > x) != inverted
    image = torch.stack([0.2 + 0.1 * row, 0.3 + 0.1 * row, 0.8 + 0.1 * column])
    return torch.where(inside, torch.where(half, 0.9, 0.6) * torch.tensor([1.0, 0.9, 0.2])[:, None, None], image)[None]


def scores(a: Tensor, b: Tensor) -> tuple[float, float]:
    (first, first_mask), (second, second_mask) = (to_common_frame(image, foreground(image)) for image in (a, b))
    return float(mask_iou(first_mask, second_mask)), float(masked_correlation(first, second, second_mask > 0.99))


def test_scores_ignore_position_and_size() -> None:
    shape, detail = scores(disc(0.3, 0.6, 0.15), disc(0.5, 0.5, 0.3))
    assert shape > 0.93 and detail > 0.9


def test_interior_changes_only_the_detail_score() -> None:
    shape, detail = scores(disc(0.5, 0.5, 0.3, inverted=True), disc(0.5, 0.5, 0.3))
    assert shape > 0.99 and detail < -0.8


def test_other_outline_reduces_the_shape_score() -> None:
    wide = torch.nn.functional.interpolate(disc(0.5, 0.5, 0.3)[:, :, 32:96], (SIDE, SIDE), mode="bilinear")
    assert scores(wide, disc(0.5, 0.5, 0.3))[0] < 0.75


def test_empty_image_scores_zero() -> None:
    empty = torch.full((1, 3, SIDE, SIDE), 0.5)
    assert float(foreground(empty).sum()) == 0
    assert scores(empty, disc(0.5, 0.5, 0.3))[0] == 0


def test_scene_backgrounds_are_refused(bench: Bench) -> None:
    builder = MetricBuilder(bench, bench, GeneratorSet({}, identity, SIZE, WORLD), 1)
    for name in ("shape", "detail"):
        with pytest.raises(InputError, match=f"{name} needs plain backgrounds"):
            build_metrics((name,), builder)
