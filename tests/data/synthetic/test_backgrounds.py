"""Backgrounds match their phrases."""

import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from blip_diffusion.data.synthetic import backgrounds
from blip_diffusion.data.synthetic.backgrounds import PALETTE, Background

from .synthetic_world import make_world

SIZE = 48
KINDS = ("plain", "gradient", "room", "grass", "beach", "snow", "desert", "sunset", "night", "wood", "checker", "brick")


def draw(drops: list[Background], seed: int = 0) -> Tensor:
    return backgrounds.render(drops, make_world().scene_pixels, SIZE, torch.Generator().manual_seed(seed))


def nearest_name(colour: Tensor) -> str:
    return min(PALETTE, key=lambda name: float((torch.tensor(PALETTE[name]) - colour).norm()))


@pytest.mark.parametrize("colour", PALETTE)
def test_plain_background_has_the_colour_of_its_word(colour: str) -> None:
    rng = random.Random(0)
    for image in draw([backgrounds.plain(colour, rng) for _ in range(8)]):
        assert nearest_name(image.mean((1, 2))) == colour
        assert image.std((1, 2)).max() < 0.05


def test_room_has_two_colours_divided_by_the_horizon() -> None:
    rng = random.Random(1)
    rooms = [backgrounds.procedural_kind("room", rng) for _ in range(30)]
    for room, image in zip(rooms, draw(rooms), strict=True):
        assert nearest_name(image[:, :20].mean((1, 2))) == room.names[0], room.phrase
        assert nearest_name(image[:, -4:].mean((1, 2))) == room.names[1], room.phrase


def test_gradient_interpolates_two_colours() -> None:
    rng = random.Random(2)
    drops = [backgrounds.procedural_kind("gradient", rng) for _ in range(20)]
    for drop, image in zip(drops, draw(drops), strict=True):
        pixels = image.flatten(1).T
        ends = [min(float((pixels - torch.tensor(PALETTE[name])).norm(dim=1).min()), 9.0) for name in drop.names]
        assert max(ends) < 0.15, drop.phrase


@pytest.mark.parametrize("kind", KINDS)
def test_procedural_scenes_are_finite_and_reproducible(kind: str) -> None:
    drops = [backgrounds.procedural_kind(kind, random.Random(i)) for i in range(4)]
    first, again, other = draw(drops), draw(drops), draw(drops, seed=1)
    assert first.shape == (4, 3, SIZE, SIZE)
    assert torch.isfinite(first).all() and first.min() >= 0 and first.max() <= 1
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert all(drop.phrase in set(backgrounds.phrases()) for drop in drops)


def test_snow_is_brighter_than_night() -> None:
    rng = random.Random(3)
    night, snow = draw([backgrounds.procedural_kind(kind, rng) for kind in ("night", "snow")]).mean((1, 2, 3))
    assert snow > night + 0.4


def test_plain_colours_differ_from_the_subject() -> None:
    rng = random.Random(4)
    names = {backgrounds.procedural_kind("plain", rng, away_from=PALETTE["red"]).names[0] for _ in range(200)}
    names |= {backgrounds.plain_reference(rng, PALETTE["white"]).names[0] for _ in range(200)}
    assert {"blue", "green"} < names
    assert "white" in {backgrounds.procedural_kind("plain", rng, away_from=PALETTE["red"]).names[0] for _ in range(200)}
    assert "red" not in {
        backgrounds.procedural_kind("plain", rng, away_from=PALETTE["red"]).names[0] for _ in range(200)
    }
    assert "white" not in {backgrounds.plain_reference(rng, PALETTE["white"]).names[0] for _ in range(200)}


def test_photographs_are_crops_of_their_scene() -> None:
    world, rng = make_world(), random.Random(5)
    drops = [backgrounds.photograph(i, scene, 160, 208, rng) for i, scene in enumerate(world.scenes)]
    for drop, scene, image in zip(drops, world.scenes, draw(drops), strict=True):
        expected = world.scene_pixels[drop.scene].float().mean((1, 2)) / 255 * torch.tensor(drop.light)
        torch.testing.assert_close(image.mean((1, 2)), expected.clamp(max=1), atol=0.02, rtol=0)
        assert drop.word == scene.word and drop.phrase in scene.phrases
        assert (drop.horizon is None) == (scene.word == "space")


def test_crop_returns_its_horizon() -> None:
    world, rng = make_world(), random.Random(6)
    halves = torch.zeros(1, 3, 160, 208, dtype=torch.uint8)
    halves[:, :, 96:] = 255  # the ground of a scene whose horizon is .6
    for _ in range(20):
        drop = backgrounds.photograph(0, world.scenes[0], 160, 208, rng)
        image = backgrounds.render([drop], halves, SIZE, torch.Generator())[0, 0]
        ground = (image.mean(1) < 0.45).float().mean()
        assert abs(float(ground) - (drop.horizon or 0)) < 0.03


def test_half_of_the_crops_are_mirrored_and_all_are_inside_the_photo() -> None:
    world, rng = make_world(), random.Random(8)
    ramp = torch.linspace(0, 255, 208).byte().expand(1, 3, 160, 208)
    mirrored = 0
    for _ in range(40):
        drop = replace(backgrounds.photograph(0, world.scenes[0], 160, 208, rng), light=(1.0, 1.0, 1.0))
        left, _, side = drop.crop
        line = backgrounds.render([drop], ramp, SIZE, torch.Generator())[0, 0, 24]
        torch.testing.assert_close(line[0] * 207, torch.tensor(left + side / SIZE / 2 - 0.5), atol=1.5, rtol=0)
        torch.testing.assert_close(line[-1] * 207, torch.tensor(left + side - side / SIZE / 2 - 0.5), atol=1.5, rtol=0)
        assert min(left, left + side) >= 0 and max(left, left + side) <= 208
        mirrored += bool(line[0] > line[-1])
    assert 10 < mirrored < 30


def test_procedural_scenes_are_found_by_phrase_and_word() -> None:
    rng = random.Random(7)
    for phrase in ("on grass", "on a plain red background", "in the snow"):
        drop = backgrounds.named(phrase, rng)
        assert drop is not None and drop.phrase == phrase
    drop = backgrounds.named("wooden floor", rng)
    assert drop is not None and drop.kind == "wood"
    assert backgrounds.named("in a submarine", rng) is None
