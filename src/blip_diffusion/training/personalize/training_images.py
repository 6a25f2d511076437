"""Images for tuning: photos as squares and latents, predicted masks, and class images from the untuned model."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor

from blip_diffusion.data.photos import Photo, squares
from blip_diffusion.framing import Box, box_of_mask, crop_to_subject
from blip_diffusion.images import ResizeMode, to_pil, to_tensor
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.prompts import subject_prompt
from blip_diffusion.references import check_not_blank, find_subject, subject_mask
from blip_diffusion.sampling import sample_images
from blip_diffusion.training.personalize.config import TuneConfig

PRIOR_BATCH, PRIOR_SEED = 8, 10_000


def with_predicted_masks(model: BlipDiffusion, photos: Sequence[Photo]) -> list[Photo]:
    """Return photos with masks by the model's subject finder, where they have none; without a finder, as they are."""
    return [
        photo if photo.mask is not None else replace(photo, mask=_predicted(model, photo.image)) for photo in photos
    ]


def _predicted(model: BlipDiffusion, image: Image.Image) -> Image.Image | None:
    """Return the mask of an image, mode L; `None` if no subject is found."""
    mask = subject_mask(model, image)
    if mask is None or mask.max() < 0.5:
        return None
    return to_pil(mask.expand(1, 3, -1, -1))[0].convert("L")


def square_photos(
    model: BlipDiffusion, photos: Sequence[Photo], size: int, mode: ResizeMode | None, *, fill: float
) -> tuple[Tensor, Tensor]:
    """Return photos (P, 3, S, S) and masks (P, 1, S, S). With "subject", the subject's longest side is `fill` of S."""
    mode = mode or model.reference.resize_mode
    if mode == "subject":
        photos, mode = [_cropped(model, photo, size, fill) for photo in photos], "crop"
    pixels, masks = squares(photos, size, mode)
    for photo, square in zip(photos, to_pil(pixels), strict=True):
        check_not_blank(square, photo.name)
    return pixels, masks


def _cropped(model: BlipDiffusion, photo: Photo, size: int, fill: float) -> Photo:
    mask = None if photo.mask is None else photo.mask.convert("RGB")
    box = find_subject(model, photo.image) if mask is None else box_of_mask(to_tensor([mask])[0, 0])
    box = box or Box(0.0, 0.0, 1.0, 1.0)
    cropped = None if mask is None else crop_to_subject(mask, box, size, fill=fill).convert("L")
    return replace(photo, image=crop_to_subject(photo.image, box, size, fill=fill), mask=cropped)


@torch.no_grad()
def encode_photos(model: BlipDiffusion, pixels: Tensor) -> Tensor:
    """Encode photos (P, 3, S, S) to latents (P, C, h, w), one at a time."""
    device = next(model.vae.parameters()).device
    return torch.cat([model.latents.encode(one[None].to(device)).float().cpu() for one in pixels])


def sample_prior(model: BlipDiffusion, category: str, config: TuneConfig) -> Tensor:
    """Return latents (K, C, h, w) of class images, sampled from the untuned model."""
    states = model.text_states([subject_prompt("", category)]).detach()
    seeds = list(range(PRIOR_SEED, PRIOR_SEED + config.num_class_images))
    some = [seeds[start : start + PRIOR_BATCH] for start in range(0, len(seeds), PRIOR_BATCH)]
    return torch.cat([sample_images(model, states.expand(len(s), -1, -1), s, decoded=False).cpu() for s in some])
