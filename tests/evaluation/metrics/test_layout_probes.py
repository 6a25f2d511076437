"""Counts, positions and accessories are predicted for images of squares."""

import random

import pytest
import torch
from PIL import Image

from blip_diffusion.data.synthetic.prompt_templates import PromptSpec
from blip_diffusion.evaluation.metrics.layout_probes import (
    AXES,
    CELLS,
    PLACES,
    LayoutProbes,
    axes_of,
    fit_layout_probes,
    layout_features,
    place_of,
    repetition_features,
)
from tests.evaluation.fakes import Patches

SIDE = 64
ACCESSORIES = {"hat": "blue", "balloon": "green", "tree": "black", "apple": "white"}
CENTRES = {"left": (0.25, 0.5), "right": (0.75, 0.5), "top": (0.5, 0.27), "": (0.5, 0.5)}


def paste(image: Image.Image, colour: str, x: float, y: float, side: float) -> None:
    half = side / 2
    box = [round(SIDE * value) for value in (x - half, y - half, x + half, y + half)]
    image.paste(colour, tuple(box))


def drawing(request: PromptSpec, rng: random.Random) -> tuple[Image.Image, torch.Tensor]:
    """Draw red squares as a request says, and their mask."""
    image, mask = Image.new("RGB", (SIDE, SIDE), "grey"), Image.new("L", (SIDE, SIDE))
    xs = {1: [CENTRES[request.position][0]], 2: [0.27, 0.73], 3: [0.19, 0.5, 0.81]}[request.count]
    for x in xs:
        at = x + rng.uniform(-0.03, 0.03), CENTRES[request.position][1] + rng.uniform(-0.03, 0.03)
        paste(image, "red", *at, 0.25)
        mask.paste(255, _box(*at))
    if request.accessory:
        left, top, right, bottom = PLACES[place_of(request.accessory)]
        paste(image, ACCESSORIES[request.accessory], (left + right) / 2, (top + bottom) / 2, 0.2)
    pixels = torch.frombuffer(bytearray(mask.tobytes()), dtype=torch.uint8).view(1, SIDE, SIDE) / 255
    return image, pixels


def _box(x: float, y: float) -> tuple[int, int, int, int]:
    left, top, right, bottom = (round(SIDE * v) for v in (x - 0.125, y - 0.125, x + 0.125, y + 0.125))
    return left, top, right, bottom


def requests() -> list[PromptSpec]:
    counts = [PromptSpec(count=count) for count in (2, 3)]
    positions = [PromptSpec(position=position) for position in ("left", "right", "top")]
    return [PromptSpec()] * 6 + counts + positions + [PromptSpec(accessory=word) for word in ACCESSORIES]


@pytest.fixture(scope="module")
def probes() -> LayoutProbes:
    rng, shown = random.Random(0), requests() * 6
    pairs = [drawing(request, rng) for request in shown]
    images, extractor = [image for image, _ in pairs], Patches()
    patches = extractor.patch_features(images)
    return fit_layout_probes(extractor, images, patches, torch.stack([mask for _, mask in pairs]), shown)


def test_counts_are_named(probes: LayoutProbes) -> None:
    rng, shown = random.Random(1), requests() * 2
    images = [drawing(request, rng)[0] for request in shown]
    assert probes.count(images) == [str(request.count) for request in shown]


@pytest.mark.parametrize("axes", ["row", "column", "row column"])
def test_positions_are_named_on_their_axes(probes: LayoutProbes, axes: str) -> None:
    rng, shown = random.Random(1), [request for request in requests() if request.count == 1] * 2
    images = [drawing(request, rng)[0] for request in shown]
    named = {word for axis in axes.split() for word in AXES[axis]}
    expected = [request.position if request.position in named else "centre" for request in shown]
    assert probes.position(axes, images) == expected


def test_a_position_names_only_its_axes() -> None:
    positions = ("left", "bottom", "top right", "centre")
    assert [axes_of(position) for position in positions] == ["column", "row", "row column", "row column"]


def test_copies_are_similar_at_their_distance() -> None:
    shares, patches = torch.zeros(1, 1, CELLS, CELLS), torch.randn(1, 64, CELLS, CELLS)
    shares[..., 2:5, 1:3] = shares[..., 2:5, 5:7] = 1
    patches[..., 5:7] = patches[..., 1:3]
    area, weighted, cosine = repetition_features(shares, patches)[0].view(-1, 3)[4 - 1].tolist()
    assert (area, weighted, cosine) == pytest.approx((0.5, 0.5, 1.0))
    patches[..., 5:7] *= -1
    assert repetition_features(shares, patches)[0].view(-1, 3)[4 - 1, 2] == pytest.approx(-1.0)
    assert repetition_features(0 * shares, patches).isfinite().all()


@pytest.mark.parametrize("place", PLACES)
def test_accessories_are_named_at_their_place(probes: LayoutProbes, place: str) -> None:
    rng = random.Random(2)
    shown = [request for request in requests() if not request.accessory or place_of(request.accessory) == place]
    images = [drawing(request, rng)[0] for request in shown if request.count == 1 and not request.position]
    names = [request.accessory for request in shown if request.count == 1 and not request.position]
    assert set(names) > {""} and probes.accessory(place, images) == names


def test_a_map_is_described_by_its_moments() -> None:
    shares = torch.zeros(1, 1, CELLS, CELLS)
    shares[0, 0, 2:4, 5:7] = 1
    moments = layout_features(shares)[0, 2 * CELLS :][:5]
    torch.testing.assert_close(moments, torch.tensor([0.75, 0.375, 0.0625, 0.0625, 4 / 64]))
    assert layout_features(0 * shares).isfinite().all()
