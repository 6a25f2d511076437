"""Learned distances of an edit from its photo: perceptual outside the subjects, structural over the image."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from blip_diffusion.evaluation.features.dino import DINO_B8_ID, DinoKeys
from blip_diffusion.evaluation.features.dinov2_saliency import DinoV2Saliency

Distance = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Edits and photos (N, 3, S, S) in [0, 1], and the background (N, 1, S, S), to distances (N,)."""
SIDE = 224


def background_distance(network: nn.Module) -> Distance:
    """Return a perceptual distance of two images that are black outside the background, as PIE-Bench computes LPIPS.

    Args:
        network: `Lpips`, or another distance of batches of pixels, averaged over the batch.
    """

    @torch.no_grad()
    def distance(images: Tensor, photos: Tensor, background: Tensor) -> Tensor:
        pairs = zip((images * background)[:, None], (photos * background)[:, None], strict=True)
        return torch.stack([network(image, photo) for image, photo in pairs])

    return distance


def structure(*, side: int = SIDE) -> Distance:
    """Return the structure distance (Tumanyan et al. 2022, equation 4) by the patch states of `DinoV2Saliency`.

    It is not PIE-Bench's number; see `dino_structure`.

    Args:
        side: Side in pixels to which images are resized; a multiple of 14.

    Raises:
        CheckpointError: If the network's package is not installed.
    """
    network = DinoV2Saliency(side=side)

    def states(image: Tensor) -> Tensor:
        return network.features_and_mask(image)[0]

    @torch.no_grad()
    def distance(images: Tensor, photos: Tensor, _: Tensor) -> Tensor:
        pairs = zip(images[:, None], photos[:, None], strict=True)
        return torch.cat([structure_distance(states(image), states(photo)) for image, photo in pairs])

    return distance


def dino_structure(source: str = "") -> Distance:
    """Return the structure distance as PIE-Bench computes it, by the keys of DINO ViT-B/8.

    The published code normalises pixels in [0, 255] as if they were in [0, 1], so its numbers differ; here they are in
    [0, 1].

    Args:
        source: Folder or hub id of the network in transformers' layout; by default DINO ViT-B/8's hub id.

    Raises:
        CheckpointError: If the network can't be loaded.
    """
    keys = DinoKeys(source or DINO_B8_ID)

    def distance(images: Tensor, photos: Tensor, _: Tensor) -> Tensor:
        pairs = zip(images[:, None], photos[:, None], strict=True)
        return torch.cat([structure_distance(keys(image), keys(photo)) for image, photo in pairs])

    return distance


def structure_distance(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean squared difference (B,) of the cosine self-similarities of two feature maps (B, C, h, w)."""
    return (self_similarity(a) - self_similarity(b)).square().mean((1, 2))


def self_similarity(features: Tensor) -> Tensor:
    """Return the cosine similarity (B, hw, hw) of each two positions of a feature map (B, C, h, w)."""
    unit = torch.nn.functional.normalize(features.flatten(2), dim=1)
    return unit.transpose(1, 2) @ unit
