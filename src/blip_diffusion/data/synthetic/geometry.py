"""Depth and normals of 3D subjects: their form in the asset library, and on composites.

A cut-out's planes are bytes (3, 64, 64), half as fine as its pixels: the normal's x (right) and y (up) as 128 + 127 n,
where z is towards the viewer, and 255 / (1 + d), where d is the distance behind the subject's nearest point in longest
sides of its image. This is an inverse depth, 1 at the nearest point and 0 at infinity, which doesn't change with the
subject's size in the composite. What lies beside the subject is filled, so that resampling adds no border.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from blip_diffusion.data.synthetic.resample import read_windows, resample_matrix

Planes = NDArray[np.uint8]

SIDE = 64  # of a cut-out's planes, whose frame is that of its pixels
PER_SHEET, COLUMNS = 64, 8
FLAT = (128, 128, 255)
"""Planes of a cut-out without geometry, such as a hat: it faces the viewer, as near as the subject's nearest point."""


def planes_of(geometry: Image.Image, alpha: Image.Image) -> Planes:
    """Return the planes (3, 64, 64) of a view's geometry and alpha, in a centred frame of 128 pixels."""
    frame, mask = Image.new("RGB", (2 * SIDE, 2 * SIDE)), Image.new("L", (2 * SIDE, 2 * SIDE))
    corner = ((2 * SIDE - alpha.width) // 2, (2 * SIDE - alpha.height) // 2)
    frame.paste(geometry.resize(alpha.size, Image.Resampling.BOX), corner)
    mask.paste(alpha, corner)
    weight = np.asarray(mask, np.float32)[..., None]
    values = np.concatenate([np.asarray(frame, np.float32) * weight, weight], axis=2)
    levels = [_halved(values)]
    while len(levels[-1]) > 1:
        levels.append(_halved(levels[-1]))
    filled = levels.pop()
    for level in reversed(levels):
        filled = np.where(level[..., 3:] > 0, level, filled.repeat(2, axis=0).repeat(2, axis=1))
    colours: Planes = (filled[..., :3] / np.maximum(filled[..., 3:], 1e-6)).round().astype(np.uint8)
    return colours.transpose(2, 0, 1)


def _halved(values: NDArray[np.float32]) -> NDArray[np.float32]:
    side = len(values) // 2
    return values.reshape(side, 2, side, 2, -1).sum((1, 3))


def sheet_of(planes: Sequence[Planes]) -> Image.Image:
    """Return a grey image of the planes of at most `PER_SHEET` cut-outs: three tiles for each, row by row."""
    tiles = np.zeros((PER_SHEET, 3, SIDE, SIDE), np.uint8)
    tiles[: len(planes)] = np.stack(planes)
    rows = tiles.reshape(-1, 3 * COLUMNS, SIDE, SIDE).transpose(0, 2, 1, 3)
    return Image.fromarray(rows.reshape(-1, 3 * COLUMNS * SIDE))


def planes_in(sheet: Image.Image) -> Planes:
    """Return the planes (64, 3, 64, 64) of a sheet. Raises `ValueError` for an image of another size."""
    width, height = 3 * COLUMNS * SIDE, PER_SHEET // COLUMNS * SIDE
    if sheet.size != (width, height):
        raise ValueError(f"a sheet of geometry is {sheet.width} x {sheet.height}, not {width} x {height}")
    tiles = np.asarray(sheet.convert("L")).reshape(-1, SIDE, 3 * COLUMNS, SIDE).transpose(0, 2, 1, 3)
    return tiles.reshape(PER_SHEET, 3, SIDE, SIDE)


def read_planes(planes: Tensor, windows: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the depth (P, 1, S, S) and the normals (P, 3, S, S) in windows of cut-outs.

    Args:
        planes: Planes (P, 3, 64, 64) of the cut-outs, bytes.
        windows: (P, 3): left, top and side of each window, in sides of the cut-outs' frames.
        size: Side of the result in pixels.
    """
    values = planes.float()
    across = (values[:, :2] - 128) / 127
    toward = (1 - across.square().sum(1, keepdim=True)).clamp(min=0).sqrt()
    left, top, side = (windows * SIDE).T
    rows, columns = (resample_matrix(start, side, SIDE, size, repeat_edges=True) for start in (top, left))
    read = read_windows(torch.cat([across, toward, values[:, 2:] / 255], dim=1), rows, columns)
    return read[:, 3:], F.normalize(read[:, :3], dim=1)


def warp_normals(normals: Tensor, grid: Tensor) -> Tensor:
    """Return the normals (B, 3, H, W) of surfaces whose depth is sampled at a grid, as `warp_images` samples it.

    The depth z(φ(p)) has the slope Jᵀ ∇z with the Jacobian J of φ, and a normal's x and y are -z times that slope.
    """
    inside = 1 - ((grid + 1) % 4 - 2).abs()  # the mirroring beyond the borders
    sampled = F.grid_sample(normals, inside.to(normals), padding_mode="border", align_corners=False)
    down, right = torch.gradient(inside.to(normals), dim=(1, 2))  # (B, H, W, 2) each
    height, width = normals.shape[2:]
    slope = torch.stack([sampled[:, 0], -sampled[:, 1]], dim=-1)  # the image's y is down
    x, y = (slope * right).sum(-1) * width / 2, (slope * down).sum(-1) * height / 2
    return F.normalize(torch.stack([x, -y, sampled[:, 2]], dim=1), dim=1)


def mirror_normals(normals: Tensor) -> Tensor:
    """Return the normals (B, 3, H, W) of mirrored surfaces: the x of a normal changes its sign."""
    return normals.flip(-1) * normals.new_tensor([-1.0, 1.0, 1.0]).view(1, 3, 1, 1)
