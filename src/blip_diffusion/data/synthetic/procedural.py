"""Render procedural backgrounds: plain colours, gradients, rooms, landscapes and floors.

Each renderer takes colours (P, K, 3, 1, 1), the horizon (P, 1, 1, 1), a size S and a generator, and returns images
(P, 3, S, S).
"""

from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn import functional as F


def _render_plain(colours: Tensor, _horizon: Tensor, size: int, rng: Generator) -> Tensor:
    y, x = _grid(size, rng)
    falloff = _uniform(len(colours), 0.0, 0.10, rng)
    return colours[:, 0] * (1 - falloff * ((x - 0.5) ** 2 + (y - 0.5) ** 2) * 2)


def _render_gradient(colours: Tensor, _horizon: Tensor, size: int, rng: Generator) -> Tensor:
    y, x = _grid(size, rng)
    angle = _uniform(len(colours), -1.0, 1.0, rng) * torch.pi
    along = ((x - 0.5) * angle.cos() + (y - 0.5) * angle.sin()) * 0.9 + 0.5
    return torch.lerp(colours[:, 0].expand(-1, 3, size, size), colours[:, 1], along.clamp(0, 1))


def _render_room(colours: Tensor, horizon: Tensor, size: int, rng: Generator) -> Tensor:
    y, x = _grid(size, rng)
    lamp = _uniform(len(colours), 0.1, 0.9, rng)
    wall = colours[:, 0] * (1.04 - 0.22 * ((x - lamp) ** 2 + (y - 0.2) ** 2))
    floor = colours[:, 1] * (0.82 + 0.22 * _below(y, horizon))
    board = (colours[:, 0] * 0.5 + 0.42).clamp(max=1)  # the skirting board
    image = torch.where(y < horizon - 0.025, wall, board)
    return torch.where(y < horizon, image, floor)


def _render_land(colours: Tensor, horizon: Tensor, size: int, rng: Generator) -> Tensor:
    return _land(colours, horizon, size, rng, clouds=True)


def _render_beach(colours: Tensor, horizon: Tensor, size: int, rng: Generator) -> Tensor:
    y, x = _grid(size, rng)
    n = len(colours)
    edge = horizon + 0.015 * (x * _uniform(n, 4, 9, rng) + _uniform(n, 0, 6, rng)).sin()
    far = horizon - _uniform(n, 0.12, 0.22, rng)
    waves = 1 + 0.10 * (_noise(n, size, (size // 3, size // 16), rng) - 0.5)
    sea = torch.lerp(colours[:, 1] * 0.4 + colours[:, 4] * 0.6, colours[:, 4], _below(y, far)) * waves
    land = _land(colours, horizon, size, rng, clouds=True)
    image = torch.where(y < far, land, torch.where(y < edge, sea, land))
    foam = ((y - edge).abs() < 0.012).float() * 0.6
    return image * (1 - foam) + foam


def _render_night(colours: Tensor, horizon: Tensor, size: int, rng: Generator) -> Tensor:
    y, _ = _grid(size, rng)
    image = _land(colours, horizon, size, rng, clouds=False)
    stars = torch.rand(len(colours), 1, size, size, generator=rng, device=rng.device)
    glow = ((stars - 0.985) / 0.015).clamp(min=0) * (y < horizon - 0.03)
    return torch.maximum(image, glow.sqrt())


def _render_wood(colours: Tensor, horizon: Tensor, size: int, rng: Generator) -> Tensor:
    u, depth, fade = _floor(horizon, size, rng)
    plank = (u * 5 + _uniform(len(colours), 0, 1, rng)).floor()
    tone = _hash(plank, (depth * 1.5 + _hash(plank, plank * 0) * 3).floor())
    grain = 0.2 * (_noise(len(colours), size, (size // 2, size // 8), rng) - 0.5)
    floor = torch.lerp(colours[:, 2].expand(-1, 3, size, size), colours[:, 1], 0.5 + (tone - 0.5) * fade + grain)
    return _before_wall(colours[:, 0], floor, horizon, size, rng)


def _render_checker(colours: Tensor, horizon: Tensor, size: int, rng: Generator) -> Tensor:
    u, depth, fade = _floor(horizon, size, rng)
    shift = _uniform(len(colours), 0, 1, rng)
    edge = 0.5 * size / 24
    waves = (u * 2.6 + shift).mul(torch.pi).sin() * (depth * 2.2 + shift).mul(torch.pi).sin()
    tiles = (waves * edge * fade).clamp(-0.5, 0.5) * fade + 0.5
    floor = torch.lerp(colours[:, 2].expand(-1, 3, size, size), colours[:, 1], tiles)
    return _before_wall(colours[:, 0], floor, horizon, size, rng)


def _render_brick(colours: Tensor, horizon: Tensor, size: int, rng: Generator) -> Tensor:
    y, x = _grid(size, rng)
    n = len(colours)
    courses = _uniform(n, 9, 14, rng).floor()
    v = y * courses
    u = x * courses * 0.45 + (v.floor() % 2) * 0.5 + _uniform(n, 0, 1, rng)
    mortar = torch.maximum((v % 1 < 0.14).float(), (u % 1 < 0.07).float())
    tone = 0.84 + 0.32 * _hash(u.floor(), v.floor() + courses)
    grain = 1 + 0.12 * (_noise(n, size, (size // 2, size // 2), rng) - 0.5)
    wall = torch.lerp(colours[:, 0] * tone, colours[:, 1].expand(-1, 3, size, size), mortar) * grain
    pavement = colours[:, 2] * (0.85 + 0.2 * _below(y, horizon)) * grain
    return torch.where(y < horizon, wall, pavement)


RENDERERS: dict[str, Callable[[Tensor, Tensor, int, Generator], Tensor]] = {
    "plain": _render_plain,
    "gradient": _render_gradient,
    "room": _render_room,
    "grass": _render_land,
    "snow": _render_land,
    "desert": _render_land,
    "sunset": _render_land,
    "beach": _render_beach,
    "night": _render_night,
    "wood": _render_wood,
    "checker": _render_checker,
    "brick": _render_brick,
}


def _land(colours: Tensor, horizon: Tensor, size: int, rng: Generator, *, clouds: bool) -> Tensor:
    """Render sky above gently rolling ground whose grain grows towards the viewer."""
    y, x = _grid(size, rng)
    n = len(colours)
    hills = 0.012 * (x * _uniform(n, 3, 11, rng) + _uniform(n, 0, 6, rng)).sin() - 0.01
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
    lit = wall * (1.03 - 0.2 * (x - _uniform(len(wall), 0.1, 0.9, rng)) ** 2)
    image = torch.where(y < horizon - 0.025, lit, wall * 0.8)
    return torch.where(y < horizon, image, floor)


def _floor(horizon: Tensor, size: int, rng: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return floor coordinates across and in depth, and the contrast (0 to 1) of a pattern there."""
    y, x = _grid(size, rng)
    depth = (1 - horizon) / (y - horizon).clamp(min=1e-3)  # (P, 1, S, 1), 1 at the lower edge
    across = (x - 0.5) * depth * 1.4
    return across, depth, (2.2 / depth).clamp(max=1)


def _grid(size: int, rng: Generator) -> tuple[Tensor, Tensor]:
    """Return y (1, 1, S, 1) and x (1, 1, 1, S) of pixel centres in [0, 1]."""
    at = (torch.arange(size, device=rng.device) + 0.5) / size
    return at.view(1, 1, -1, 1), at.view(1, 1, 1, -1)


def _below(y: Tensor, horizon: Tensor) -> Tensor:
    return ((y - horizon) / (1 - horizon).clamp(min=0.05)).clamp(0, 1)


def _uniform(n: int, low: float, high: float, rng: Generator) -> Tensor:
    return low + (high - low) * torch.rand(n, 1, 1, 1, generator=rng, device=rng.device)


def _noise(n: int, size: int, cells: tuple[int, int], rng: Generator) -> Tensor:
    """Return smooth noise (n, 1, S, S) in [0, 1] with a number of cells down and across."""
    coarse = torch.rand(n, 1, *cells, generator=rng, device=rng.device)
    return F.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=False)


def _hash(a: Tensor, b: Tensor) -> Tensor:
    """Return a pseudo-random number in [0, 1) for each pair of whole numbers."""
    return ((a * 127.1 + b * 311.7).sin() * 43758.5453) % 1
