"""Networks that need no weights, a MiniBench of the drawn world, and generators whose scores are known beforehand."""

import zlib
from collections.abc import Sequence
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from blip_diffusion.evaluation.features.preprocessing import square_pixels
from blip_diffusion.evaluation.generators.baselines import composite, reference
from blip_diffusion.evaluation.generators.conditions import GeneratorSet
from blip_diffusion.evaluation.generators.model import ImageGenerator
from blip_diffusion.evaluation.instances import Instance
from blip_diffusion.images import fit_square, open_picture
from tests.data.synthetic_world import make_world

WORLD = make_world()
SIZE = 32


def needs(*packages: str) -> pytest.MarkDecorator:
    """Skips a test where one of them, which carries weights, is not installed."""
    missing = [name for name in packages if find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"the package {''.join(missing[:1])} is not installed")


class Middle:
    """A network: the colours of the middle of a image, where a toy's subject stands, and their square_pixels."""

    family = "toy"
    backbone = "colours of the middle"
    preprocessing = "32 x 32"

    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        cells = F.avg_pool2d(square_pixels(images, SIZE)[:, :, 12:20, 12:20], 4).flatten(1)
        return torch.cat([cells, cells**2], dim=1)


class Everything:
    """A network: colours of an eighth of the image."""

    family = "toy"
    backbone = "colours"
    preprocessing = "32 x 32"

    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        cells = F.avg_pool2d(square_pixels(images, SIZE), 4).flatten(1)
        return torch.cat([cells, cells**2], dim=1)


class Bag:
    """A space of sentences: each word has a direction."""

    backbone = "bag of words"

    def __call__(self, sentences: Sequence[str]) -> Tensor:
        return F.normalize(torch.stack([sum(map(_direction, s.split()), torch.zeros(64)) for s in sentences]), dim=1)


def _direction(word: str) -> Tensor:
    return torch.randn(64, generator=torch.Generator().manual_seed(zlib.crc32(word.encode())))


def same(pixels: Tensor) -> Tensor:
    """An autoencoder that loses nothing."""
    return pixels


def perfect() -> ImageGenerator:
    """Draws the ground truth."""
    return composite(WORLD, size=SIZE)


def copying(instances: Sequence[Instance]) -> list[Image.Image]:
    """Hands the reference back."""
    return [fit_square(open_picture(reference(instance)), SIZE) for instance in instances]


def generators(draw: ImageGenerator) -> GeneratorSet:
    """A generator; told nothing of the subject, it draws another instance."""
    return GeneratorSet({"zero-shot": draw, "no-subject": composite(WORLD, size=SIZE, other=True)}, same, SIZE, WORLD)
