"""What stands behind a subject: crops of named scenes, and drawn places whose colour words are exact.

A `Background` is decided in words and numbers (`photograph`, `plain`, `procedural`); `draw` turns many of them into
images at once, kind by kind.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from blip_diffusion.data.synthetic.assets import Scene
from blip_diffusion.data.synthetic.prompt_templates import COLOURS
from blip_diffusion.data.synthetic.resample import read_windows, resample_matrix

RGB = tuple[float, float, float]

PALETTE: dict[str, RGB] = {
    "red": (0.85, 0.12, 0.12),
    "orange": (0.97, 0.54, 0.10),
    "yellow": (0.98, 0.88, 0.20),
    "green": (0.16, 0.62, 0.24),
    "blue": (0.15, 0.35, 0.86),
    "purple": (0.52, 0.20, 0.68),
    "pink": (0.97, 0.62, 0.76),
    "brown": (0.46, 0.29, 0.16),
    "black": (0.06, 0.06, 0.07),
    "white": (0.97, 0.97, 0.97),
    "grey": (0.55, 0.55, 0.56),
}
_NO_GROUND = 0.82  # a scene's horizon from which it has no ground to stand on: sky, space, the sea's depth
_CLOSE = 0.33  # two colours nearer than this in RGB hide one another


@dataclass(frozen=True)
class Background:
    """One background, decided down to its colours and crop; only the grain of its textures is left to chance."""

    kind: str  # "photo", or a key of `_DRAWERS`
    phrase: str  # "on the beach"
    word: str  # the class that a scene judge names: "beach"
    horizon: float | None = None  # in the finished image; None where there is no ground to stand on
    colours: tuple[RGB, ...] = ()
    names: tuple[str, ...] = ()  # the colour words in the phrase
    scene: int = -1  # row of the world, for photographs
    crop: tuple[float, float, float] = (0.0, 0.0, 1.0)  # left, top, side in source pixels; a negative side mirrors
    light: RGB = (1.0, 1.0, 1.0)


# The drawn places. Colours of a landscape: sky above, sky at the horizon, ground far, ground near.
@dataclass(frozen=True)
class _Place:
    word: str
    phrases: tuple[str, ...]
    palettes: tuple[tuple[RGB, ...], ...]
    horizon: tuple[float, float] = (0.5, 0.66)
    weight: float = 1.0


_BLUE_SKY: tuple[RGB, RGB] = ((0.28, 0.56, 0.90), (0.74, 0.88, 0.97))
_PALE_SKY: tuple[RGB, RGB] = ((0.62, 0.74, 0.88), (0.88, 0.92, 0.96))
_DARK_SKY: tuple[RGB, RGB] = ((0.02, 0.03, 0.12), (0.08, 0.11, 0.28))

_PLACES = {
    "grass": _Place("grass", ("on grass", "on the grass"), (
        (*_BLUE_SKY, (0.36, 0.60, 0.22), (0.24, 0.55, 0.14)), (*_PALE_SKY, (0.45, 0.62, 0.25), (0.30, 0.52, 0.16)))),
    "beach": _Place("beach", ("on the beach", "at the beach"), (
        (*_BLUE_SKY, (0.93, 0.84, 0.62), (0.88, 0.76, 0.52), (0.10, 0.42, 0.66)),
        (*_PALE_SKY, (0.90, 0.82, 0.66), (0.84, 0.72, 0.52), (0.16, 0.58, 0.66)))),
    "snow": _Place("snow", ("in the snow", "on the snow"), (
        (*_PALE_SKY, (0.90, 0.93, 0.97), (0.96, 0.97, 0.99)), (*_BLUE_SKY, (0.88, 0.92, 0.98), (0.95, 0.97, 1.0)))),
    "desert": _Place("desert", ("in the desert", "in a sandy desert"), (
        (*_BLUE_SKY, (0.89, 0.64, 0.34), (0.83, 0.54, 0.26)),
        ((0.40, 0.62, 0.85), (0.96, 0.87, 0.72), (0.91, 0.70, 0.40), (0.80, 0.50, 0.24)))),
    "sunset": _Place("sunset", ("at sunset", "in front of a sunset"), (
        ((0.36, 0.20, 0.46), (0.99, 0.58, 0.22), (0.25, 0.13, 0.14), (0.10, 0.06, 0.09)),
        ((0.55, 0.22, 0.38), (1.0, 0.74, 0.30), (0.22, 0.12, 0.10), (0.09, 0.05, 0.06)))),
    "night": _Place("starry night", ("under a starry sky", "at night under the stars"), (
        (*_DARK_SKY, (0.10, 0.14, 0.16), (0.05, 0.08, 0.09)), (*_DARK_SKY, (0.12, 0.11, 0.20), (0.06, 0.05, 0.11)))),
    # wall, floor light, floor dark
    "wood": _Place("wooden floor", ("on a wooden floor", "on wooden planks"), (
        ((0.90, 0.87, 0.80), (0.68, 0.46, 0.27), (0.52, 0.33, 0.18)),
        ((0.78, 0.83, 0.84), (0.78, 0.58, 0.36), (0.62, 0.43, 0.25)))),
    "checker": _Place("checkered floor", ("on a checkered floor", "on a chessboard floor"), (
        ((0.82, 0.82, 0.80), (0.95, 0.95, 0.93), (0.10, 0.10, 0.11)),
        ((0.86, 0.80, 0.70), (0.93, 0.92, 0.88), (0.14, 0.13, 0.12)))),
    # brick, mortar, pavement
    "brick": _Place("brick wall", ("in front of a brick wall", "against a brick wall"), (
        ((0.66, 0.29, 0.21), (0.80, 0.76, 0.71), (0.55, 0.54, 0.53)),
        ((0.58, 0.24, 0.18), (0.68, 0.63, 0.58), (0.46, 0.46, 0.47))), horizon=(0.76, 0.82)),
}  # fmt: skip
_GRADIENT = ("on a {} and {} gradient", "on a gradient from {} to {}")
_PLAIN = ("on a plain {} background", "on a {} background")
_ROOM = ("in a {} room with a {} floor", "inside a {} room with a {} floor")
_WALLS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white", "grey")
_FLOORS = ("brown", "grey", "white", "black", "red", "blue", "green")
_KINDS = ("plain", "gradient", "room", *_PLACES)
_WEIGHTS = (4.0, 1.0, 1.5, *(place.weight for place in _PLACES.values()))


def phrases() -> Iterator[str]:
    """Every phrase of a drawn place."""
    for place in _PLACES.values():
        yield from place.phrases
    for template in _PLAIN:
        yield from (template.format(colour) for colour in COLOURS)
    for template in _GRADIENT:
        yield from (template.format(a, b) for a in COLOURS for b in COLOURS if a != b)
    for template in _ROOM:
        yield from (template.format(a, b) for a in _WALLS for b in _FLOORS if a != b)


def procedural(rng: random.Random, *, away_from: RGB | None = None) -> Background:
    """A drawn place, its plain colours away from the subject's."""
    for _ in range(4):
        background = procedural_kind(rng.choices(_KINDS, _WEIGHTS)[0], rng, away_from=away_from)
        if away_from is None or not any(is_close(colour, away_from, 0.2) for colour in background.colours):
            break
    return background


def procedural_kind(kind: str, rng: random.Random, *, away_from: RGB | None = None) -> Background:
    """A drawn place of a kind: "plain", "gradient", "room", or one of the named places."""
    if kind == "plain":
        return plain(rng.choice(_far(COLOURS, away_from)), rng)
    if kind == "gradient":
        return _two_colours(kind, "gradient", _GRADIENT, COLOURS, COLOURS, None, rng, away_from)
    if kind == "room":
        return _two_colours(kind, "coloured room", _ROOM, _WALLS, _FLOORS, rng.uniform(0.66, 0.74), rng, away_from)
    place = _PLACES[kind]
    colours = tuple(_jitter(colour, rng) for colour in rng.choice(place.palettes))
    return Background(kind, rng.choice(place.phrases), place.word, rng.uniform(*place.horizon), colours)


def plain(colour: str, rng: random.Random) -> Background:
    """One named colour, without ground."""
    return Background(
        "plain", rng.choice(_PLAIN).format(colour), "plain", None, (_jitter(PALETTE[colour], rng),), (colour,)
    )


def plain_reference(rng: random.Random, away_from: RGB | None = None) -> Background:
    """What people put behind a subject: mostly white, often grey, now and then another colour."""
    usual = ["white"] * 8 + ["grey"] * 4 + list(COLOURS)
    return plain(rng.choice(_far(usual, away_from)), rng)


def photograph(
    index: int, scene: Scene, height: int, width: int, rng: random.Random, *, phrase: str | None = None
) -> Background:
    """A random crop of a scene of `height` x `width` pixels: three quarters to all of its height, mirrored or not."""
    side = rng.uniform(0.75, 1.0) * height
    left, top = rng.uniform(0, width - side), rng.uniform(0, height - side)
    if scene.horizon < _NO_GROUND:
        top = max(top, min(height - side, scene.horizon * height - 0.78 * side))  # some ground stays in view
    horizon = (scene.horizon * height - top) / side if scene.horizon < _NO_GROUND else None
    crop = (left + side, top, -side) if rng.random() < 0.5 else (left, top, side)
    gain, tint = rng.uniform(0.85, 1.12), rng.uniform(-0.06, 0.06)
    light = (gain * (1 + tint), gain, gain * (1 - tint))
    return Background("photo", phrase or rng.choice(scene.phrases), scene.word,
                    None if horizon is None else min(max(horizon, 0.3), 0.82),
                    scene=index, crop=crop, light=light)  # fmt: skip


def named(words: str, rng: random.Random) -> Background | None:
    """The drawn place of a phrase or class word, if there is one."""
    for kind, place in _PLACES.items():
        if words in (place.word, *place.phrases):
            drawn = procedural_kind(kind, rng)
            return drawn if words == place.word else replace(drawn, phrase=words)
    for colour in COLOURS:
        if words in [template.format(colour) for template in _PLAIN]:
            return replace(plain(colour, rng), phrase=words)
    by_word = {"plain": "plain", "gradient": "gradient", "coloured room": "room"}
    return procedural_kind(by_word[words], rng) if words in by_word else None


def draw(chosen_backgrounds: Sequence[Background], scenes: Tensor, size: int, rng: Generator) -> Tensor:
    """The images (B, 3, S, S) of chosen_backgrounds; `scenes` (M, 3, H, W) uint8 are the world's."""
    device = scenes.device
    rows: dict[str, list[int]] = defaultdict(list)
    for i, background in enumerate(chosen_backgrounds):
        rows[background.kind].append(i)
    canvas = torch.empty(len(chosen_backgrounds), 3, size, size, device=device)
    for kind, members in sorted(rows.items()):
        chosen = [chosen_backgrounds[i] for i in members]
        images = _photographs(chosen, scenes, size) if kind == "photo" else _drawn(kind, chosen, size, rng)
        canvas[torch.tensor(members, device=device)] = images
    return canvas.clamp_(0, 1)


def is_close(a: RGB, b: RGB, distance: float = _CLOSE) -> bool:
    """Whether something of colour `a` is hard to see before colour `b`."""
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) < distance**2


def _far(names: Sequence[str], colour: RGB | None) -> Sequence[str]:
    far = [name for name in names if colour is None or not is_close(PALETTE[name], colour)]
    return far or names


def _jitter(colour: RGB, rng: random.Random) -> RGB:
    """The same colour by another light: its name still holds."""
    gain = rng.uniform(0.93, 1.05)
    red, green, blue = (min(max(channel * gain + rng.uniform(-0.015, 0.015), 0.0), 1.0) for channel in colour)
    return red, green, blue


def _two_colours(kind: str, word: str, templates: tuple[str, ...], firsts: Sequence[str], seconds: Sequence[str],
                 horizon: float | None, rng: random.Random, away_from: RGB | None) -> Background:  # fmt: skip
    first = rng.choice(_far(firsts, away_from))
    second = rng.choice([name for name in _far(seconds, away_from) if name != first] or ["white"])
    colours = (_jitter(PALETTE[first], rng), _jitter(PALETTE[second], rng))
    return Background(kind, rng.choice(templates).format(first, second), word, horizon, colours, (first, second))


def _photographs(chosen_backgrounds: Sequence[Background], scenes: Tensor, size: int) -> Tensor:
    device = scenes.device
    left, top, side = torch.tensor([background.crop for background in chosen_backgrounds], device=device).T
    light = torch.tensor([background.light for background in chosen_backgrounds], device=device)  # (P, 3)
    images = scenes[torch.tensor([background.scene for background in chosen_backgrounds], device=device)].float()
    rows = resample_matrix(top, side.abs(), scenes.shape[2], size, repeat_edges=True)
    columns = resample_matrix(left, side, scenes.shape[3], size, repeat_edges=True)
    return read_windows(images, rows, columns) * (light / 255)[:, :, None, None]


def _drawn(kind: str, chosen_backgrounds: Sequence[Background], size: int, rng: Generator) -> Tensor:
    colours = torch.tensor([background.colours for background in chosen_backgrounds], device=rng.device)  # (P, K, 3)
    horizon = torch.tensor([background.horizon or 1.0 for background in chosen_backgrounds], device=rng.device)
    return _DRAWERS[kind](colours[..., None, None], horizon.view(-1, 1, 1, 1), size, rng)


# Drawers: colours (P, K, 3, 1, 1), horizon (P, 1, 1, 1) -> images (P, 3, S, S).


def _draw_plain(colours: Tensor, horizon: Tensor, size: int, rng: Generator) -> Tensor:
    y, x = _grid(size, rng)
    falloff = _chance(len(colours), 0.0, 0.10, rng)
    return colours[:, 0] * (1 - falloff * ((x - 0.5) ** 2 + (y - 0.5) ** 2) * 2)


def _draw_gradient(colours: Tensor, horizon: Tensor, size: int, rng: Generator) -> Tensor:
    y, x = _grid(size, rng)
    angle = _chance(len(colours), -1.0, 1.0, rng) * torch.pi
    along = ((x - 0.5) * angle.cos() + (y - 0.5) * angle.sin()) * 0.9 + 0.5
    return torch.lerp(colours[:, 0].expand(-1, 3, size, size), colours[:, 1], along.clamp(0, 1))


def _draw_room(colours: Tensor, horizon: Tensor, size: int, rng: Generator) -> Tensor:
    y, x = _grid(size, rng)
    lamp = _chance(len(colours), 0.1, 0.9, rng)
    wall = colours[:, 0] * (1.04 - 0.22 * ((x - lamp) ** 2 + (y - 0.2) ** 2))
    floor = colours[:, 1] * (0.82 + 0.22 * _below(y, horizon))
    board = (colours[:, 0] * 0.5 + 0.42).clamp(max=1)  # the skirting board
    image = torch.where(y < horizon - 0.025, wall, board)
    return torch.where(y < horizon, image, floor)


def _draw_land(colours: Tensor, horizon: Tensor, size: int, rng: Generator) -> Tensor:
    return _land(colours, horizon, size, rng, clouds=True)


def _draw_beach(colours: Tensor, horizon: Tensor, size: int, rng: Generator) -> Tensor:
    y, x = _grid(size, rng)
    n = len(colours)
    edge = horizon + 0.015 * (x * _chance(n, 4, 9, rng) + _chance(n, 0, 6, rng)).sin()
    far = horizon - _chance(n, 0.12, 0.22, rng)
    waves = 1 + 0.10 * (_noise(n, size, (size // 3, size // 16), rng) - 0.5)
    sea = torch.lerp(colours[:, 1] * 0.4 + colours[:, 4] * 0.6, colours[:, 4], _below(y, far)) * waves
    land = _land(colours, horizon, size, rng, clouds=True)
    image = torch.where(y < far, land, torch.where(y < edge, sea, land))
    foam = ((y - edge).abs() < 0.012).float() * 0.6
    return image * (1 - foam) + foam


def _draw_night(colours: Tensor, horizon: Tensor, size: int, rng: Generator) -> Tensor:
    y, _ = _grid(size, rng)
    image = _land(colours, horizon, size, rng, clouds=False)
    stars = torch.rand(len(colours), 1, size, size, generator=rng, device=rng.device)
    glow = ((stars - 0.985) / 0.015).clamp(min=0) * (y < horizon - 0.03)
    return torch.maximum(image, glow.sqrt())


def _draw_wood(colours: Tensor, horizon: Tensor, size: int, rng: Generator) -> Tensor:
    u, depth, fade = _floor(horizon, size, rng)
    plank = (u * 5 + _chance(len(colours), 0, 1, rng)).floor()
    tone = _hash(plank, (depth * 1.5 + _hash(plank, plank * 0) * 3).floor())
    grain = 0.2 * (_noise(len(colours), size, (size // 2, size // 8), rng) - 0.5)
    floor = torch.lerp(colours[:, 2].expand(-1, 3, size, size), colours[:, 1], 0.5 + (tone - 0.5) * fade + grain)
    return _before_wall(colours[:, 0], floor, horizon, size, rng)


def _draw_checker(colours: Tensor, horizon: Tensor, size: int, rng: Generator) -> Tensor:
    u, depth, fade = _floor(horizon, size, rng)
    shift = _chance(len(colours), 0, 1, rng)
    edge = 0.5 * size / 24
    waves = (u * 2.6 + shift).mul(torch.pi).sin() * (depth * 2.2 + shift).mul(torch.pi).sin()
    tiles = (waves * edge * fade).clamp(-0.5, 0.5) * fade + 0.5
    floor = torch.lerp(colours[:, 2].expand(-1, 3, size, size), colours[:, 1], tiles)
    return _before_wall(colours[:, 0], floor, horizon, size, rng)


def _draw_brick(colours: Tensor, horizon: Tensor, size: int, rng: Generator) -> Tensor:
    y, x = _grid(size, rng)
    n = len(colours)
    courses = _chance(n, 9, 14, rng).floor()
    v = y * courses
    u = x * courses * 0.45 + (v.floor() % 2) * 0.5 + _chance(n, 0, 1, rng)
    mortar = torch.maximum((v % 1 < 0.14).float(), (u % 1 < 0.07).float())
    tone = 0.84 + 0.32 * _hash(u.floor(), v.floor() + courses)
    grain = 1 + 0.12 * (_noise(n, size, (size // 2, size // 2), rng) - 0.5)
    wall = torch.lerp(colours[:, 0] * tone, colours[:, 1].expand(-1, 3, size, size), mortar) * grain
    pavement = colours[:, 2] * (0.85 + 0.2 * _below(y, horizon)) * grain
    return torch.where(y < horizon, wall, pavement)


_DRAWERS: dict[str, Callable[[Tensor, Tensor, int, Generator], Tensor]] = {
    "plain": _draw_plain,
    "gradient": _draw_gradient,
    "room": _draw_room,
    "grass": _draw_land,
    "snow": _draw_land,
    "desert": _draw_land,
    "sunset": _draw_land,
    "beach": _draw_beach,
    "night": _draw_night,
    "wood": _draw_wood,
    "checker": _draw_checker,
    "brick": _draw_brick,
}


def _land(colours: Tensor, horizon: Tensor, size: int, rng: Generator, *, clouds: bool) -> Tensor:
    """Sky above a gently rolling ground whose grain grows towards the viewer."""
    y, x = _grid(size, rng)
    n = len(colours)
    hills = 0.012 * (x * _chance(n, 3, 11, rng) + _chance(n, 0, 6, rng)).sin() - 0.01
    sky = torch.lerp(colours[:, 0], colours[:, 1], (y / horizon).clamp(max=1))
    if clouds:
        cover = _noise(n, size, (5, 4), rng) + 0.5 * _noise(n, size, (12, 7), rng) - 1.0
        sky = torch.lerp(sky, sky * 0.3 + 0.7, (cover * 3).clamp(0, 0.75) * (1 - y / horizon).clamp(min=0).sqrt())
    near = _below(y, horizon)
    grain = _noise(n, size, (size // 2, size // 2), rng) - 0.5 + _noise(n, size, (24, 8), rng) - 0.5
    ground = torch.lerp(colours[:, 2], colours[:, 3], near) * (1 + grain * (0.06 + 0.16 * near))
    return torch.where(y < horizon + hills, sky, ground)


def _before_wall(wall: Tensor, floor: Tensor, horizon: Tensor, size: int, rng: Generator) -> Tensor:
    y, x = _grid(size, rng)
    lit = wall * (1.03 - 0.2 * (x - _chance(len(wall), 0.1, 0.9, rng)) ** 2)
    image = torch.where(y < horizon - 0.025, lit, wall * 0.8)
    return torch.where(y < horizon, image, floor)


def _floor(horizon: Tensor, size: int, rng: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Floor coordinates across and in depth, and how much of their pattern a pixel can still show (0 to 1)."""
    y, x = _grid(size, rng)
    depth = (1 - horizon) / (y - horizon).clamp(min=1e-3)  # (P, 1, S, 1), 1 at the lower edge
    across = (x - 0.5) * depth * 1.4
    return across, depth, (2.2 / depth).clamp(max=1)


def _grid(size: int, rng: Generator) -> tuple[Tensor, Tensor]:
    """Rows (1, 1, S, 1) and columns (1, 1, 1, S) of pixel centres in [0, 1]."""
    at = (torch.arange(size, device=rng.device) + 0.5) / size
    return at.view(1, 1, -1, 1), at.view(1, 1, 1, -1)


def _below(y: Tensor, horizon: Tensor) -> Tensor:
    return ((y - horizon) / (1 - horizon).clamp(min=0.05)).clamp(0, 1)


def _chance(n: int, low: float, high: float, rng: Generator) -> Tensor:
    return low + (high - low) * torch.rand(n, 1, 1, 1, generator=rng, device=rng.device)


def _noise(n: int, size: int, cells: tuple[int, int], rng: Generator) -> Tensor:
    """Smooth noise in [0, 1] with about so many cells down and across: (n, 1, S, S)."""
    coarse = torch.rand(n, 1, *cells, generator=rng, device=rng.device)
    return F.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=False)


def _hash(a: Tensor, b: Tensor) -> Tensor:
    """A number in [0, 1) that looks random for each pair of whole numbers."""
    return ((a * 127.1 + b * 311.7).sin() * 43758.5453) % 1
