"""Subject fidelity without trained networks, on plain backgrounds: `shape` and `detail`.

The mask of a generated subject is the part of the image that differs from its background. The background is fitted to
the image's border. Generated and true subject are moved to the same centroid and scaled to the same area, so that
position and size don't count. `shape` is the IoU of both masks. `detail` is the correlation of the pixels inside the
true mask.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from blip_diffusion.data.benchmarks.dreambench import Bench, BenchPrompt
from blip_diffusion.data.benchmarks.minibench import first_rows
from blip_diffusion.data.synthetic.assets import AssetLibrary
from blip_diffusion.data.synthetic.backgrounds import PALETTE
from blip_diffusion.evaluation.generators.conditions import OTHER_SUBJECT, VAE_RECONSTRUCTION
from blip_diffusion.evaluation.instances import Instance
from blip_diffusion.evaluation.metrics.similarity import MetricInfo
from blip_diffusion.images import open_image, to_tensor

GRID, MARGIN = 64, 3.0
"""Cells of the common frame, and its side in square roots of the subject's area."""
BORDER, OUTLIER, DIFFERENT = 0.05, 0.15, 0.18
"""The border's share of a side; colour distances of outliers in the border, and of the subject elsewhere."""
HIDDEN = 0.15
"""The largest share of a subject that may have the colour of its background."""
_PLAIN = re.compile(r"on a plain (\w+) background")


def plain_colour(prompt: BenchPrompt) -> str:
    """Return the colour of a prompt's plain background; empty for other prompts."""
    match = _PLAIN.fullmatch(prompt.after)
    return match[1] if match and match[1] in PALETTE and not prompt.before else ""


def has_plain_backgrounds(bench: Bench) -> bool:
    """Return whether all prompts of a benchmark have a plain background."""
    return all(plain_colour(prompt) for prompt in (*bench.objects, *bench.creatures))


def foreground(pixels: Tensor) -> Tensor:
    """Return the mask (B, 1, S, S) of pixels that differ from the background of images (B, 3, S, S) in [0, 1]."""
    distance = (pixels - _fitted_background(pixels)).norm(dim=1, keepdim=True)
    return (F.avg_pool2d((distance > DIFFERENT).float(), 3, stride=1, padding=1) > 0.5).float()  # without single pixels


def _fitted_background(pixels: Tensor) -> Tensor:
    """Fit a quadratic surface per channel to the border of images, without outliers."""
    size = pixels.shape[-1]
    at = torch.linspace(-1, 1, size)
    y, x = torch.meshgrid(at, at, indexing="ij")
    terms = torch.stack([torch.ones_like(x), x, y, x * x, x * y, y * y]).flatten(1)  # (6, S * S)
    on_border = (torch.maximum(x.abs(), y.abs()) > 1 - 2 * BORDER).flatten()
    border, basis = pixels.flatten(2)[..., on_border], terms[:, on_border]  # (B, 3, M), (6, M)
    usual = border.median(dim=2, keepdim=True).values
    weights = ((border - usual).norm(dim=1) < OUTLIER).float()[:, None]  # (B, 1, M)
    gram = (basis * weights) @ basis.T + 1e-3 * torch.eye(len(basis))  # (B, 6, 6)
    offsets = ((border - usual) * weights) @ basis.T  # (B, 3, 6)
    fitted = torch.linalg.solve(gram, offsets.transpose(1, 2)).transpose(1, 2) @ terms
    return (fitted + usual).view_as(pixels)


def to_common_frame(pixels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Move subjects to the middle and scale them to the same area.

    Args:
        pixels: Images (B, 3, S, S).
        mask: Their subjects (B, 1, S, S) in [0, 1].

    Returns:
        Images (B, 3, GRID, GRID) and masks (B, 1, GRID, GRID). An empty mask stays empty.
    """
    at = torch.linspace(-1, 1, mask.shape[-1] + 1)
    at = (at[1:] + at[:-1]) / 2
    area = mask.sum((1, 2, 3)).clamp(min=1e-6)
    x, y = (mask.sum((1, 2)) @ at) / area, (mask.sum((1, 3)) @ at) / area
    side = MARGIN * (area / mask[0].numel()).sqrt()  # in frames, which is half of it in [-1, 1]
    zero = torch.zeros_like(side)
    theta = torch.stack([torch.stack([side, zero, x], 1), torch.stack([zero, side, y], 1)], 1)  # (B, 2, 3)
    grid = F.affine_grid(theta, [len(mask), 1, GRID, GRID], align_corners=False)
    moved = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    return moved, F.grid_sample(mask, grid, align_corners=False)


def mask_iou(a: Tensor, b: Tensor) -> Tensor:
    """Return the IoU (B,) of soft masks (B, 1, S, S)."""
    return torch.minimum(a, b).sum((1, 2, 3)) / torch.maximum(a, b).sum((1, 2, 3)).clamp(min=1e-6)


def masked_correlation(a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
    """Return the correlation (B,) of images (B, 3, S, S) over a mask (B, 1, S, S), each channel minus its mean."""

    def centred(pixels: Tensor) -> Tensor:
        mean = (pixels * mask).sum((2, 3), keepdim=True) / mask.sum((2, 3), keepdim=True).clamp(min=1e-6)
        return ((pixels - mean) * mask).flatten(1)

    return F.cosine_similarity(centred(a), centred(b), dim=1)


@dataclass(frozen=True)
class _Truth:
    """The subjects of a benchmark in the common frame, by name, and backgrounds that would hide a part of them."""

    index: dict[str, int]
    pixels: Tensor  # (N, 3, GRID, GRID)
    masks: Tensor  # (N, 1, GRID, GRID)
    hidden: dict[tuple[str, str], bool]  # by subject and colour


class PixelFidelity:
    """A metric that compares a generated subject with the benchmark's drawing."""

    def __init__(self, info: MetricInfo, compare: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor], truth: _Truth):
        self.info, self._compare, self._truth = info, compare, truth

    def __call__(self, images: Sequence[Path], instances: Sequence[Instance]) -> dict[str, Tensor]:
        """Return the score of each image (B,); NaN if the background has the colour of the subject."""
        scores = torch.tensor([self._score(path, one) for path, one in zip(images, instances, strict=True)])
        return {next(iter(self.info.scores)): scores}

    def _score(self, path: Path, instance: Instance) -> float:
        truth = self._truth
        if truth.hidden[instance.subject.name, plain_colour(instance.prompt)]:
            return float("nan")
        pixels = to_tensor([open_image(path)])
        aligned, mask = to_common_frame(pixels, foreground(pixels))
        row = truth.index[instance.subject.name]
        return float(self._compare(aligned, mask, truth.pixels[[row]], truth.masks[[row]]))


def shape_metric(bench: Bench, world: AssetLibrary) -> PixelFidelity:
    """Build `shape`: the IoU of the masks."""
    info = _info("shape", "iou", "mask IoU", "IoU of the subject's mask with the drawing's")
    return PixelFidelity(info, lambda _aligned, mask, _pixels, truth: mask_iou(mask, truth), _truth(bench, world))


def detail_metric(bench: Bench, world: AssetLibrary) -> PixelFidelity:
    """Build `detail`: the correlation of the pixels inside the mask."""
    protocol = "correlation of the pixels inside the drawing's mask, each channel minus its mean"
    info = _info("detail", "correlation", "pixel correlation", protocol)
    return PixelFidelity(info, _detail, _truth(bench, world))


def _detail(aligned: Tensor, mask: Tensor, pixels: Tensor, truth: Tensor) -> Tensor:
    inside = -F.max_pool2d(-(truth > 0.99).float(), 3, stride=1, padding=1)  # without the outermost cells
    return masked_correlation(aligned, pixels, inside) * (mask.sum((1, 2, 3)) > 0)


def _info(name: str, score: str, label: str, protocol: str) -> MetricInfo:
    return MetricInfo(
        name, "subject", "pixels", "no network", "the subject is what differs from a quadratic fit to the border",
        f"{protocol}, after moving both to the same centroid and area", {score: label},
        bounds=(OTHER_SUBJECT, VAE_RECONSTRUCTION),
    )  # fmt: skip


def _truth(bench: Bench, world: AssetLibrary) -> _Truth:
    rows = first_rows(world)
    cutouts = world.pixels[[rows[subject.identity] for subject in bench.subjects]].float() / 255  # (N, 4, S, S)
    pixels, masks = to_common_frame(cutouts[:, :3], cutouts[:, 3:])
    colours = {plain_colour(prompt) for prompt in (*bench.objects, *bench.creatures)}
    hidden = {
        (subject.name, colour): _hidden_share(cutout, colour) > HIDDEN
        for subject, cutout in zip(bench.subjects, cutouts, strict=True)
        for colour in colours
    }
    return _Truth({subject.name: i for i, subject in enumerate(bench.subjects)}, pixels, masks, hidden)


def _hidden_share(cutout: Tensor, colour: str) -> float:
    """Return the share of a cut-out (4, S, S) that has a background's colour."""
    distance = (cutout[:3] - torch.tensor(PALETTE[colour])[:, None, None]).norm(dim=0)
    return float((cutout[3] * (distance < DIFFERENT)).sum() / cutout[3].sum())
