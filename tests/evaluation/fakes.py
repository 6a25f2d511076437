"""Feature extractors without weights, a synthetic MiniBench, and generators with known scores."""

import zlib
from collections.abc import Sequence
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from blip_diffusion.evaluation.features.preprocessing import square_pixels
from blip_diffusion.evaluation.generators.baselines import composite, reference_copy
from blip_diffusion.evaluation.generators.conditions import GeneratorSet
from blip_diffusion.evaluation.generators.model import ImageGenerator
from blip_diffusion.evaluation.instances import Instance
from blip_diffusion.images import fit_square, open_image
from tests.data.synthetic.synthetic_world import make_world

WORLD = make_world()
SIZE = 32


def needs(*packages: str) -> pytest.MarkDecorator:
    """Skip a test if one of these packages, which contain weights, is not installed."""
    missing = [name for name in packages if find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"the package {''.join(missing[:1])} is not installed")


class Middle:
    """Colours of the middle of an image, where the subject is, and their squares."""

    family = "toy"
    backbone = "colours of the middle"
    preprocessing = "32 x 32"

    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        cells = F.avg_pool2d(square_pixels(images, SIZE)[:, :, 12:20, 12:20], 4).flatten(1)
        return torch.cat([cells, cells**2], dim=1)


class Everything:
    """Colours of all cells of an image, and their squares."""

    family = "toy"
    backbone = "colours"
    preprocessing = "32 x 32"

    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        cells = F.avg_pool2d(square_pixels(images, SIZE), 4).flatten(1)
        return torch.cat([cells, cells**2], dim=1)


class Patches:
    """Colours of 8 x 8 cells, and their squares; it keeps the images that it encodes."""

    def __init__(self) -> None:
        self.encoded: list[Image.Image] = []

    def patch_features(self, images: Sequence[Image.Image]) -> Tensor:
        self.encoded += images
        cells = F.avg_pool2d(square_pixels(images, SIZE), SIZE // 8)
        return torch.cat([cells, cells**2], dim=1)

    def image_and_patch_features(self, images: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
        return Everything()(images), self.patch_features(images)


class Bag:
    """A text encoder in which each word has a direction."""

    backbone = "bag of words"

    def __call__(self, texts: Sequence[str]) -> Tensor:
        return F.normalize(torch.stack([sum(map(_direction, s.split()), torch.zeros(64)) for s in texts]), dim=1)


def _direction(word: str) -> Tensor:
    return torch.randn(64, generator=torch.Generator().manual_seed(zlib.crc32(word.encode())))


def identity(pixels: Tensor) -> Tensor:
    """An autoencoder that loses nothing."""
    return pixels


def perfect() -> ImageGenerator:
    """Generate the ground truth."""
    return composite(WORLD, size=SIZE)


def copying(instances: Sequence[Instance]) -> list[Image.Image]:
    """Generate a copy of the reference."""
    return [fit_square(open_image(reference_copy(instance)), SIZE) for instance in instances]


def generator_set(generator: ImageGenerator) -> GeneratorSet:
    """Make a set of one generator, which shows another instance if it is given no subject."""
    return GeneratorSet(
        {"zero-shot": generator, "no-subject": composite(WORLD, size=SIZE, other=True)}, identity, SIZE, WORLD
    )
