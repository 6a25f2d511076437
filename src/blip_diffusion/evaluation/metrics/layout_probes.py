"""Layout probes of the metric `text`: number, position and accessory of subjects.

A probe predicts a coarse mask of the subject patch by patch. Column and row are classified from the mask, and count
from the similarity of the masked patches to those at each horizontal distance: copies of a subject repeat its features.
An accessory is classified in the crop where MiniBench composites it: on the head, at the top right, or beside the
subject.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from blip_diffusion.data.synthetic.prompt_templates import PromptSpec
from blip_diffusion.evaluation.features.linear_probe import (
    LinearClassifier,
    LinearProbe,
    fit_classifier,
    fit_logistic,
    fit_probe,
)
from blip_diffusion.framing import WORN

CELLS = 8
PLACES = {"head": (0.27, 0.02, 0.73, 0.48), "top right": (0.56, 0.08, 1.0, 0.52), "beside": (0.56, 0.50, 1.0, 0.94)}
"""Crops (left, top, right, bottom) in [0, 1] in which accessories are classified."""
AXES = {"row": ("top", "bottom"), "column": ("left", "right")}
"""The words of a position that name its row and its column."""
SAMPLED_PATCHES = 16
"""Number of patches per image to which the mask's probe is fitted."""


class PatchExtractor(Protocol):
    """A network that maps each image to a grid of features."""

    def patch_features(self, images: Sequence[Image.Image]) -> Tensor:
        """Return features (B, F, CELLS, CELLS) of RGB images of any size."""
        ...

    def image_and_patch_features(self, images: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
        """Return one vector (B, G) for each image, and the features of its patches."""
        ...


def place_of(accessory: str) -> str:
    """Return the place of an accessory in MiniBench."""
    return "head" if accessory in WORN else "top right" if accessory == "balloon" else "beside"


def axes_of(position: str) -> str:
    """Return the axes that a position names: "row", "column", or both for a corner and the centre.

    "at the left" names a column only: a subject that stands on the ground at the left may be at the bottom left.
    """
    named = [axis for axis, words in AXES.items() if any(word in words for word in position.split())]
    return " ".join(named or AXES)


@dataclass(frozen=True)
class LayoutProbes:
    """Fitted probes, and the network whose features they classify."""

    extractor: PatchExtractor
    subject: LinearProbe
    centre: Tensor  # (1, F, 1, 1), the mean patch
    counts: LinearClassifier
    axes: dict[str, LinearClassifier]  # by axis
    accessories: dict[str, LinearClassifier]  # by crop

    def count(self, images: Sequence[Image.Image]) -> list[str]:
        """Return the predicted number of subjects in each image."""
        patches = self.extractor.patch_features(images)
        return self.counts(repetition_features(subject_map(self.subject, patches), patches - self.centre))

    def position(self, axes: str, images: Sequence[Image.Image]) -> list[str]:
        """Return the predicted position of each image on some axes, as `axes_of` names them."""
        features = layout_features(subject_map(self.subject, self.extractor.patch_features(images)))
        words = zip(*(self.axes[axis](features) for axis in axes.split()), strict=True)
        return [" ".join(filter(None, row)) or "centre" for row in words]

    def accessory(self, place: str, images: Sequence[Image.Image]) -> list[str]:
        """Return the predicted accessory in a crop of each image; empty for none."""
        return self.accessories[place](crop_features(self.extractor, place, images))


def fit_layout_probes(
    extractor: PatchExtractor,
    images: Sequence[Image.Image],
    patches: Tensor,
    masks: Tensor,
    requests: Sequence[PromptSpec],
) -> LayoutProbes:
    """Fit the probes.

    Args:
        extractor: The network of features.
        images: B training images.
        patches: Their patch features (B, F, CELLS, CELLS).
        masks: (B, 1, S, S) in [0, 1], the masks of their subjects.
        requests: The B prompt specifications that the images were composited from.
    """
    subject = _fit_subject_map(patches, F.interpolate(masks, (CELLS, CELLS), mode="area"))
    shares, centre = subject_map(subject, patches), patches.mean((0, 2, 3), keepdim=True)
    repetition = repetition_features(shares, patches - centre)
    counts = fit_logistic(repetition, [str(request.count) for request in requests], rest="1")
    axes = _fit_axes(layout_features(shares), requests)
    accessories = {place: _fit_accessories(extractor, place, images, requests) for place in PLACES}
    return LayoutProbes(extractor, subject, centre, counts, axes, accessories)


def subject_map(probe: LinearProbe, patches: Tensor) -> Tensor:
    """Predict the subject's share (B, 1, CELLS, CELLS) of each patch (B, F, CELLS, CELLS)."""
    context = _with_context(patches)
    rows = context.permute(0, 2, 3, 1).flatten(0, 2)
    return probe(rows).view(len(patches), 1, CELLS, CELLS).clamp(0, 1)


def layout_features(shares: Tensor) -> Tensor:
    """Return features (B, F) of maps (B, 1, CELLS, CELLS): profiles, centroid, spread and area."""
    at = (torch.arange(CELLS) + 0.5) / CELLS
    total = shares.sum((1, 2, 3)).clamp(min=1e-6)
    columns, rows = shares.sum((1, 2)), shares.sum((1, 3))
    x, y = columns @ at / total, rows @ at / total
    wide = (columns @ at**2 / total - x**2).clamp(min=0).sqrt()
    high = (rows @ at**2 / total - y**2).clamp(min=0).sqrt()
    moments = torch.stack([x, y, wide, high, total / CELLS**2], dim=1)
    return torch.cat([columns, rows, moments, moments**2], dim=1)


def repetition_features(shares: Tensor, patches: Tensor) -> Tensor:
    """Return features (B, F) that tell how well a subject matches itself at each horizontal distance.

    Args:
        shares: The subject's share (B, 1, CELLS, CELLS) of each patch.
        patches: Features (B, F, CELLS, CELLS) minus their mean over images and patches.

    Returns:
        For each distance: the overlap of the mask with itself, the overlap weighted by the cosine of the features, and
        the mean cosine in the overlap.
    """
    directions, total = F.normalize(patches, dim=1), shares.square().sum((1, 2, 3)).clamp(min=1e-6)
    features = []
    for distance in range(1, CELLS - 1):
        overlap = shares[..., :-distance] * shares[..., distance:]
        cosines = (directions[..., :-distance] * directions[..., distance:]).sum(1, keepdim=True)
        area, similar = overlap.sum((1, 2, 3)), (overlap * cosines).sum((1, 2, 3))
        features += [area / total, similar / total, similar / area.clamp(min=0.1)]
    return torch.stack(features, dim=1)


def crop_features(extractor: PatchExtractor, place: str, images: Sequence[Image.Image]) -> Tensor:
    """Return features (B, F) of a crop of images: means over the crop and over its middle."""
    patches = _in_batches(extractor, [_crop(image, PLACES[place]) for image in images])
    quarter = CELLS // 4
    return torch.cat([patches.mean((2, 3)), patches[:, :, quarter:-quarter, quarter:-quarter].mean((2, 3))], dim=1)


def _crop(image: Image.Image, box: tuple[float, float, float, float]) -> Image.Image:
    left, top, right, bottom = box
    width, height = image.size
    return image.crop((round(left * width), round(top * height), round(right * width), round(bottom * height)))


def image_and_patch_features(extractor: PatchExtractor, images: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
    """Return one vector (B, G) for each of many images, and the features of its patches, encoded in batches."""
    parts = [extractor.image_and_patch_features(images[rows]) for rows in _batches(len(images))]
    vectors, patches = zip(*parts, strict=True)
    return torch.cat(vectors), torch.cat(patches)


def _in_batches(extractor: PatchExtractor, images: Sequence[Image.Image]) -> Tensor:
    return torch.cat([extractor.patch_features(images[rows]) for rows in _batches(len(images))])


def _batches(count: int, size: int = 32) -> list[slice]:
    return [slice(start, start + size) for start in range(0, count, size)]


def _with_context(patches: Tensor) -> Tensor:
    """Concatenate each patch with the means of its neighbours and of the image: (B, 3 F, CELLS, CELLS)."""
    near = F.avg_pool2d(patches, 3, stride=1, padding=1, count_include_pad=False)
    return torch.cat([patches, near, patches.mean((2, 3), keepdim=True).expand_as(patches)], dim=1)


def _fit_subject_map(patches: Tensor, shares: Tensor) -> LinearProbe:
    """Fit a probe from random patches of each image to the subject's share of the patch."""
    rng = torch.Generator().manual_seed(0)
    chosen = torch.stack([torch.randperm(CELLS**2, generator=rng)[:SAMPLED_PATCHES] for _ in patches])  # (B, P)
    context = _with_context(patches).flatten(2)  # (B, 3 F, CELLS * CELLS)
    rows = context.gather(2, chosen[:, None].expand(-1, context.shape[1], -1)).transpose(1, 2).flatten(0, 1)
    return fit_probe(rows, shares.flatten(1).gather(1, chosen).flatten()[:, None], ridge=1.0)


def _fit_axes(features: Tensor, requests: Sequence[PromptSpec]) -> dict[str, LinearClassifier]:
    """Fit a classifier of each axis to images of one subject; the label of its middle is empty."""
    single = [i for i, request in enumerate(requests) if request.count == 1]
    labels = {
        axis: [next((word for word in requests[i].position.split() if word in words), "") for i in single]
        for axis, words in AXES.items()
    }
    return {axis: fit_logistic(features[single], labels[axis]) for axis in AXES}


def _fit_accessories(
    extractor: PatchExtractor, place: str, images: Sequence[Image.Image], requests: Sequence[PromptSpec]
) -> LinearClassifier:
    """Fit a classifier of the accessories of a crop, or none, to images without other attributes."""
    chosen = [i for i, request in enumerate(requests) if _is_training_image(request, place)]
    features = crop_features(extractor, place, [images[i] for i in chosen])
    return fit_classifier(features, [requests[i].accessory for i in chosen])


def _is_training_image(request: PromptSpec, place: str) -> bool:
    """Return whether an image has an accessory in a crop, or one subject in the middle without one."""
    if request.accessory:
        return place_of(request.accessory) == place
    return request.count == 1 and not request.position and not request.style
