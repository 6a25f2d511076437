"""Helpers of the tests of tuning: photos of a subject, and their latents."""

from pathlib import Path

import torch
from PIL import Image

from blip_diffusion.data.photos import Photo, PhotoBatch, PhotoBatches, squares
from blip_diffusion.model import BlipDiffusion


def photographs(dog: Image.Image, count: int = 3) -> list[Photo]:
    """The same subject, a little turned."""
    return [Photo(f"{turn}.png", dog.rotate(4 * turn, fillcolor="lightblue")) for turn in range(count)]


def written(dog: Image.Image, folder: Path, count: int = 3) -> Path:
    folder.mkdir(parents=True)
    for photo in photographs(dog, count):
        photo.image.save(folder / photo.name)
    return folder


@torch.no_grad()
def photo_batch(model: BlipDiffusion, dog: Image.Image, *, prior: bool = False) -> PhotoBatch:
    pixels, masks = squares(photographs(dog), 32)
    latents = model.latents.encode(pixels).float()
    return PhotoBatches(latents, masks, batch_size=3, prior=latents.flip(-1) if prior else None)(0)
