"""Backgrounds: crops of named scenes, and procedural scenes whose colours match the words of the prompt.

A `Background` is described by words and numbers (`photograph`, `plain`, `procedural`); `render` renders a batch,
kind by kind.
"""

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from blip_diffusion.data.synthetic.assets import Scene
from blip_diffusion.data.synthetic.procedural import RENDERERS
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
_NO_GROUND = 0.82  # a scene with a horizon from here on has no ground: sky, space, underwater
_CLOSE = 0.33  # distance in RGB below which two colours are hard to tell apart


@dataclass(frozen=True)
class Background:
    """One background with its colours and crop; only the grain of textures is random."""

    kind: str  # "photo", or a key of `procedural.RENDERERS`
    phrase: str  # "on the beach"
    word: str  # its class for the scene metric: "beach"
    horizon: float | None = None  # in the rendered image; None without ground
    colours: tuple[RGB, ...] = ()
    names: tuple[str, ...] = ()  # the colour words in the phrase
    scene: int = -1  # row in the asset library, for photographs
    crop: tuple[float, float, float] = (0.0, 0.0, 1.0)  # left, top, side in source pixels; a negative side mirrors
    light: RGB = (1.0, 1.0, 1.0)


# Procedural scenes. Colours of a landscape: sky above, sky at the horizon, ground far, ground near.
@dataclass(frozen=True)
class _ProceduralScene:
    word: str
    phrases: tuple[str, ...]
    palettes: tuple[tuple[RGB, ...], ...]
    horizon: tuple[float, float] = (0.5, 0.66)
    weight: float = 1.0


_BLUE_SKY: tuple[RGB, RGB] = ((0.28, 0.56, 0.90), (0.74, 0.88, 0.97))
_PALE_SKY: tuple[RGB, RGB] = ((0.62, 0.74, 0.88), (0.88, 0.92, 0.96))
_DARK_SKY: tuple[RGB, RGB] = ((0.02, 0.03, 0.12), (0.08, 0.11, 0.28))

_SCENES = {
    "grass": _ProceduralScene("grass", ("on grass", "on the grass"), (
        (*_BLUE_SKY, (0.36, 0.60, 0.22), (0.24, 0.55, 0.14)), (*_PALE_SKY, (0.45, 0.62, 0.25), (0.30, 0.52, 0.16)))),
    "beach": _ProceduralScene("beach", ("on the beach", "at the beach"), (
        (*_BLUE_SKY, (0.93, 0.84, 0.62), (0.88, 0.76, 0.52), (0.10, 0.42, 0.66)),
        (*_PALE_SKY, (0.90, 0.82, 0.66), (0.84, 0.72, 0.52), (0.16, 0.58, 0.66)))),
    "snow": _ProceduralScene("snow", ("in the snow", "on the snow"), (
        (*_PALE_SKY, (0.90, 0.93, 0.97), (0.96, 0.97, 0.99)), (*_BLUE_SKY, (0.88, 0.92, 0.98), (0.95, 0.97, 1.0)))),
    "desert": _ProceduralScene("desert", ("in the desert", "in a sandy desert"), (
        (*_BLUE_SKY, (0.89, 0.64, 0.34), (0.83, 0.54, 0.26)),
        ((0.40, 0.62, 0.85), (0.96, 0.87, 0.72), (0.91, 0.70, 0.40), (0.80, 0.50, 0.24)))),
    "sunset": _ProceduralScene("sunset", ("at sunset", "in front of a sunset"), (
        ((0.36, 0.20, 0.46), (0.99, 0.58, 0.22), (0.25, 0.13, 0.14), (0.10, 0.06, 0.09)),
        ((0.55, 0.22, 0.38), (1.0, 0.74, 0.30), (0.22, 0.12, 0.10), (0.09, 0.05, 0.06)))),
    "night": _ProceduralScene("starry night", ("under a starry sky", "at night under the stars"), (
        (*_DARK_SKY, (0.10, 0.14, 0.16), (0.05, 0.08, 0.09)), (*_DARK_SKY, (0.12, 0.11, 0.20), (0.06, 0.05, 0.11)))),
    # wall, floor light, floor dark
    "wood": _ProceduralScene("wooden floor", ("on a wooden floor", "on wooden planks"), (
        ((0.90, 0.87, 0.80), (0.68, 0.46, 0.27), (0.52, 0.33, 0.18)),
        ((0.78, 0.83, 0.84), (0.78, 0.58, 0.36), (0.62, 0.43, 0.25)))),
    "checker": _ProceduralScene("checkered floor", ("on a checkered floor", "on a chessboard floor"), (
        ((0.82, 0.82, 0.80), (0.95, 0.95, 0.93), (0.10, 0.10, 0.11)),
        ((0.86, 0.80, 0.70), (0.93, 0.92, 0.88), (0.14, 0.13, 0.12)))),
    # brick, mortar, pavement
    "brick": _ProceduralScene("brick wall", ("in front of a brick wall", "against a brick wall"), (
        ((0.66, 0.29, 0.21), (0.80, 0.76, 0.71), (0.55, 0.54, 0.53)),
        ((0.58, 0.24, 0.18), (0.68, 0.63, 0.58), (0.46, 0.46, 0.47))), horizon=(0.76, 0.82)),
}  # fmt: skip
_GRADIENT = ("on a {} and {} gradient", "on a gradient from {} to {}")
_PLAIN = ("on a plain {} background", "on a {} background")
_ROOM = ("in a {} room with a {} floor", "inside a {} room with a {} floor")
_WALLS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white", "grey")
_FLOORS = ("brown", "grey", "white", "black", "red", "blue", "green")
_KINDS = ("plain", "gradient", "room", *_SCENES)
_WEIGHTS = (4.0, 1.0, 1.5, *(scene.weight for scene in _SCENES.values()))


def phrases() -> Iterator[str]:
    """Yield every phrase of a procedural background."""
    for scene in _SCENES.values():
        yield from scene.phrases
    for template in _PLAIN:
        yield from (template.format(colour) for colour in COLOURS)
    for template in _GRADIENT:
        yield from (template.format(a, b) for a in COLOURS for b in COLOURS if a != b)
    for template in _ROOM:
        yield from (template.format(a, b) for a in _WALLS for b in _FLOORS if a != b)


def word_of(phrase: str) -> str:
    """Return the class word of a phrase of `phrases`; a plain background's is its colour too: "plain blue"."""
    for scene in _SCENES.values():
        if phrase in scene.phrases:
            return scene.word
    colours = " ".join(word for word in phrase.split() if word in COLOURS)
    kind = "gradient" if "gradient" in phrase else "coloured room" if "room" in phrase else "plain"
    return f"{kind} {colours}"


def procedural(rng: random.Random, *, away_from: RGB | None = None) -> Background:
    """Choose a procedural background whose colours differ from the subject's."""
    for _ in range(4):
        background = procedural_kind(rng.choices(_KINDS, _WEIGHTS)[0], rng, away_from=away_from)
        if away_from is None or not any(is_close(colour, away_from, 0.2) for colour in background.colours):
            break
    return background


def procedural_kind(kind: str, rng: random.Random, *, away_from: RGB | None = None) -> Background:
    """Choose a procedural background of a kind: "plain", "gradient", "room", or a key of `_SCENES`."""
    if kind == "plain":
        return plain(rng.choice(_far(COLOURS, away_from)), rng)
    if kind == "gradient":
        return _two_colours(kind, "gradient", _GRADIENT, COLOURS, COLOURS, None, rng, away_from)
    if kind == "room":
        return _two_colours(kind, "coloured room", _ROOM, _WALLS, _FLOORS, rng.uniform(0.66, 0.74), rng, away_from)
    scene = _SCENES[kind]
    colours = tuple(_jitter(colour, rng) for colour in rng.choice(scene.palettes))
    return Background(kind, rng.choice(scene.phrases), scene.word, rng.uniform(*scene.horizon), colours)


def plain(colour: str, rng: random.Random) -> Background:
    """Return a background of one named colour, without ground."""
    return Background(
        "plain", rng.choice(_PLAIN).format(colour), "plain", None, (_jitter(PALETTE[colour], rng),), (colour,)
    )


def plain_reference(rng: random.Random, away_from: RGB | None = None) -> Background:
    """Choose a plain background of a reference: mostly white, often grey, sometimes another colour."""
    usual = ["white"] * 8 + ["grey"] * 4 + list(COLOURS)
    return plain(rng.choice(_far(usual, away_from)), rng)


def unnamed(background: Background) -> Background:
    """Return a background without words for it and without ground."""
    return replace(background, phrase="", word="", horizon=None)


def photograph(
    index: int, scene: Scene, height: int, width: int, rng: random.Random, *, phrase: str | None = None
) -> Background:
    """Choose a random crop of a scene: three quarters to all of its height, mirrored or not."""
    side = rng.uniform(0.75, 1.0) * height
    left, top = rng.uniform(0, width - side), rng.uniform(0, height - side)
    if scene.horizon < _NO_GROUND:
        top = max(top, min(height - side, scene.horizon * height - 0.78 * side))  # some ground stays visible
    horizon = (scene.horizon * height - top) / side if scene.horizon < _NO_GROUND else None
    crop = (left + side, top, -side) if rng.random() < 0.5 else (left, top, side)
    gain, tint = rng.uniform(0.85, 1.12), rng.uniform(-0.06, 0.06)
    light = (gain * (1 + tint), gain, gain * (1 - tint))
    return Background("photo", phrase or rng.choice(scene.phrases), scene.word,
                    None if horizon is None else min(max(horizon, 0.3), 0.82),
                    scene=index, crop=crop, light=light)  # fmt: skip


def named(words: str, rng: random.Random) -> Background | None:
    """Return the procedural background of a phrase or class word, if there is one."""
    for kind, scene in _SCENES.items():
        if words in (scene.word, *scene.phrases):
            background = procedural_kind(kind, rng)
            return background if words == scene.word else replace(background, phrase=words)
    for colour in COLOURS:
        if words in [template.format(colour) for template in _PLAIN]:
            return replace(plain(colour, rng), phrase=words)
    by_word = {"plain": "plain", "gradient": "gradient", "coloured room": "room"}
    return procedural_kind(by_word[words], rng) if words in by_word else None


def render(chosen: Sequence[Background], scenes: Tensor, size: int, rng: Generator) -> Tensor:
    """Render backgrounds to images (B, 3, S, S) in [0, 1]; `scenes` (M, 3, H, W) uint8 are the library's."""
    device = scenes.device
    rows: dict[str, list[int]] = defaultdict(list)
    for i, background in enumerate(chosen):
        rows[background.kind].append(i)
    canvas = torch.empty(len(chosen), 3, size, size, device=device)
    for kind, members in sorted(rows.items()):
        part = [chosen[i] for i in members]
        images = _photographs(part, scenes, size) if kind == "photo" else _render_procedural(kind, part, size, rng)
        canvas[torch.tensor(members, device=device)] = images
    return canvas.clamp_(0, 1)


def is_close(a: RGB, b: RGB, distance: float = _CLOSE) -> bool:
    """Return whether an object of colour `a` is hard to see on colour `b`."""
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) < distance**2


def _far(names: Sequence[str], colour: RGB | None) -> Sequence[str]:
    far = [name for name in names if colour is None or not is_close(PALETTE[name], colour)]
    return far or names


def _jitter(colour: RGB, rng: random.Random) -> RGB:
    """Vary a colour slightly, so that its name stays correct."""
    gain = rng.uniform(0.93, 1.05)
    red, green, blue = (min(max(channel * gain + rng.uniform(-0.015, 0.015), 0.0), 1.0) for channel in colour)
    return red, green, blue


def _two_colours(kind: str, word: str, templates: tuple[str, ...], firsts: Sequence[str], seconds: Sequence[str],
                 horizon: float | None, rng: random.Random, away_from: RGB | None) -> Background:  # fmt: skip
    first = rng.choice(_far(firsts, away_from))
    second = rng.choice([name for name in _far(seconds, away_from) if name != first] or ["white"])
    colours = (_jitter(PALETTE[first], rng), _jitter(PALETTE[second], rng))
    return Background(kind, rng.choice(templates).format(first, second), word, horizon, colours, (first, second))


def _photographs(chosen: Sequence[Background], scenes: Tensor, size: int) -> Tensor:
    device = scenes.device
    left, top, side = torch.tensor([background.crop for background in chosen], device=device).T
    light = torch.tensor([background.light for background in chosen], device=device)  # (P, 3)
    images = scenes[torch.tensor([background.scene for background in chosen], device=device)].float()
    rows = resample_matrix(top, side.abs(), scenes.shape[2], size, repeat_edges=True)
    columns = resample_matrix(left, side, scenes.shape[3], size, repeat_edges=True)
    return read_windows(images, rows, columns) * (light / 255)[:, :, None, None]


def _render_procedural(kind: str, chosen: Sequence[Background], size: int, rng: Generator) -> Tensor:
    colours = torch.tensor([background.colours for background in chosen], device=rng.device)  # (P, K, 3)
    horizon = torch.tensor([background.horizon or 1.0 for background in chosen], device=rng.device)
    return RENDERERS[kind](colours[..., None, None], horizon.view(-1, 1, 1, 1), size, rng)
