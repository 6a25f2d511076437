"""Style filters, also on dark and grey subjects."""

import colorsys

import pytest
import torch
from torch import Tensor

from blip_diffusion.data.synthetic import styles
from blip_diffusion.data.synthetic.backgrounds import PALETTE
from blip_diffusion.data.synthetic.prompt_templates import PAINTS, STYLES


def image() -> Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def subject(colour: tuple[float, float, float]) -> tuple[Tensor, Tensor]:
    """A square with a lighter square inside: premultiplied colour and alpha."""
    alpha = torch.zeros(1, 1, 64, 64)
    alpha[..., 12:52, 12:52] = 1
    shade = torch.ones(1, 1, 64, 64)
    shade[..., 24:40, 24:40] = 1.5
    return torch.tensor(colour).view(1, 3, 1, 1) * shade * alpha, alpha


def hue(rgb: Tensor) -> float:
    return colorsys.rgb_to_hsv(*rgb.tolist())[0]


def test_every_style_has_a_filter() -> None:
    assert {*styles.FILTERS, "sketch", "silhouette"} == set(STYLES)


@pytest.mark.parametrize("name", styles.FILTERS)
def test_filters_change_the_image_and_keep_shape_and_range(name: str) -> None:
    before = image()
    after = styles.FILTERS[name](before)
    assert after.shape == before.shape and after.min() >= 0 and after.max() <= 1
    assert (after - before).abs().mean() > 0.05


def test_black_and_white_has_no_colour() -> None:
    after = styles.black_and_white(image())
    assert torch.equal(after[:, 0], after[:, 1]) and torch.equal(after[:, 0], after[:, 2])


def test_pixel_art_consists_of_blocks() -> None:
    blocks = styles.pixel_art(image(), blocks=16).unfold(2, 4, 4).unfold(3, 4, 4)
    assert float((blocks.amax((-1, -2)) - blocks.amin((-1, -2))).max()) == 0


def test_pixel_art_keeps_grey_grey() -> None:
    grey = torch.tensor([0.47, 0.5, 0.52]).view(1, 3, 1, 1).expand(1, 3, 64, 64)
    after = styles.pixel_art(grey)
    assert float((after.amax(1) - after.amin(1)).max()) < 0.01


def test_blurry_removes_fine_detail() -> None:
    assert styles.blurry(image()).std() < 0.4 * image().std()


@pytest.mark.parametrize("colour", [(0.07, 0.07, 0.08), (0.62, 0.64, 0.6), (0.5, 0.1, 0.1)])
def test_sketch_is_similar_for_dark_and_bright_subjects(colour: tuple[float, float, float]) -> None:
    drawing = styles.sketch(*subject(colour))[0, 0]
    paper, outline, inner = drawing[2, 2], drawing[32, 11:13].min(), drawing[32, 23:25].min()
    assert paper > 0.9
    assert outline < 0.5, "the outline is a dark line"
    assert inner < drawing[18, 18] - 0.1, "so are the edges inside"
    assert drawing[18, 18] > 0.5, "and what they enclose stays light"


@pytest.mark.parametrize("name", PAINTS)
@pytest.mark.parametrize("colour", [(0.07, 0.07, 0.08), (0.5, 0.5, 0.5), (0.1, 0.2, 0.6), (0.62, 0.62, 0.6)])
def test_paint_recolours_any_subject(name: str, colour: tuple[float, float, float]) -> None:
    before, alpha = subject(colour)
    after = styles.paint(before, alpha, torch.tensor([PALETTE[name]]))
    mean = after.sum((0, 2, 3)) / alpha.sum()
    apart = abs(hue(mean) - hue(torch.tensor(PALETTE[name])))
    assert min(apart, 1 - apart) < 0.03
    assert (mean.max() - mean.min()) > 0.15
    assert after[0, :, 30, 30].sum() > after[0, :, 15, 15].sum() + 0.1, "shading stays"
    assert (after <= alpha + 1e-6).all()


def test_silhouette_is_dark_where_the_subject_is() -> None:
    before, alpha = subject((0.9, 0.8, 0.7))
    assert styles.silhouette(before, alpha).max() < 0.1
