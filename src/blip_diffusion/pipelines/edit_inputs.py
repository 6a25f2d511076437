"""What editing is given: a photo at the model's size, a mask of it, and numbers, all checked before anything runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from diffusers import LCMScheduler
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from blip_diffusion import images
from blip_diffusion.diffusion import masks
from blip_diffusion.diffusion.forward_process import Noising
from blip_diffusion.diffusion.inversion import Method
from blip_diffusion.errors import InputError
from blip_diffusion.framing import Box, box_in_place_of, box_of_mask
from blip_diffusion.pipelines.checks import number, whole_number
from blip_diffusion.pipelines.host import PipelineHost
from blip_diffusion.pipelines.inputs import PipelineInputs
from blip_diffusion.references import find_subject, subject_mask

MaskSource = Image.Image | Literal["difference", "subject", "none"]
"""A mask of the photo's size, white where it may change; or how it is found."""
FOUND = ("difference", "subject", "none")
MAX_FEATHER, MAX_RESAMPLINGS = 64, 20
OPTIONS = frozenset(
    {
        *("subject_embeds", "negative_prompt", "height", "width", "num_inference_steps", "guidance_scale"),
        *("guidance_rescale", "num_images_per_prompt", "generator", "resize_mode", "box", "output_type"),
        *("controlnet", "controlnet_conditioning_scale", "control_guidance_start", "control_guidance_end"),
        "control_resample",
        "prompt_weighting",
    }
)
"""Arguments of the pipeline's call that an edit takes too."""


@dataclass
class EditOutput(BaseOutput):
    """Edited images, and the mask (mode L, white where the photo may have changed) of all of them."""

    images: Any
    mask: Image.Image


@dataclass(frozen=True)
class EditMask:
    """Where an image may change: of latents (1, 1, h, w), and of pixels (1, 1, H, W). A latent may reach further."""

    latents: Tensor
    pixels: Tensor

    def image(self) -> Image.Image:
        """Return the pixels' mask, mode L."""
        return images.to_pil(self.pixels.expand(-1, 3, -1, -1))[0].convert("L")

    def box(self) -> Box | None:
        """Return the box of what it covers."""
        return box_of_mask(self.pixels[0, 0].cpu())


def check_edit(
    host: PipelineHost, inversion: Any, strength: Any, feather: Any, threshold: Any = 0.5, resamplings: Any = 1
) -> None:
    """Raise `InputError` for arguments out of range, and for presets that draw in too few steps."""
    if inversion not in get_args(Method):
        raise InputError(f"inversion is {inversion!r}: use {', '.join(get_args(Method)[:-1])} or none.")
    if not number("strength", strength, 0, 1):
        raise InputError("strength is 0: use a number above 0; 1 changes most.")
    whole_number("feather", feather, 0, MAX_FEATHER)
    number("mask_threshold", threshold, 0, 1)
    whole_number("resamplings", resamplings, 1, MAX_RESAMPLINGS)
    if not host.preset.uses_cfg or isinstance(host.default_scheduler, LCMScheduler):
        raise InputError("A model or preset that draws in a few steps can't edit: use the preset fast, or none.")


def check_given(options: Mapping[str, Any]) -> None:
    """Raise `InputError` for options that are none of an edit's."""
    for name in options.keys() - OPTIONS:
        raise InputError(f"There is no argument {name!r} of an edit: use {', '.join(sorted(OPTIONS))}.")


def check_plain_engine(host: PipelineHost, inputs: PipelineInputs) -> None:
    """Raise `InputError` where attention control can't reach the attention maps."""
    if host.preset.engine != "torch" or host.preset.deepcache_interval > 1:
        raise InputError("Attention control needs the engine torch and no cached features: use another preset.")
    if inputs.guess_mode:
        raise InputError("Attention control and guess_mode exclude each other: give one of them.")


def given_mask(mask: Any, photo: "Photo", factor: int) -> "tuple[EditMask | None, str]":
    """Return a user's mask, or else how it is found. Raises `InputError` for what is neither."""
    if isinstance(mask, str) and mask in FOUND:
        return None, mask
    return photo.mask(mask, factor), ""


def noising_from(host: PipelineHost) -> Noising:
    """Return the forward process of the model."""
    kind = host.default_scheduler.config.prediction_type
    if kind == "sample":
        raise InputError("Models that predict the clean image can't edit: use one that predicts epsilon or v.")
    return Noising.from_scheduler(host.default_scheduler)


@dataclass(frozen=True)
class Photo:
    """A photo as it is edited: cut about its middle to the shape of the image, and resized."""

    original: Image.Image  # upright RGB
    image: Image.Image
    pixels: Tensor  # (1, 3, H, W) in [0, 1]

    @classmethod
    def read(cls, photo: Any, height: int, width: int) -> "Photo":
        """Cut and resize a photo. Raises `InputError` for what is none."""
        if not isinstance(photo, Image.Image):
            raise InputError(f"image is a {type(photo).__name__}: use a PIL image, one photo at a time.")
        images.check_size(photo, "The photo")
        upright = images.as_rgb(photo)
        fitted = cls._fit(upright, height, width)
        return cls(upright, fitted, images.to_tensor([fitted]))

    @staticmethod
    def _fit(image: Image.Image, height: int, width: int) -> Image.Image:
        """Cut an image about its middle to the wanted shape, and resize it."""
        scale = max(width / image.width, height / image.height)
        wide, high = width / scale, height / scale
        left, top = (image.width - wide) / 2, (image.height - high) / 2
        box = (left, top, left + wide, top + high)
        same = image.size == (width, height)
        return image if same else image.resize((width, height), Image.Resampling.BICUBIC, box=box)

    def mask(self, given: Any, factor: int) -> EditMask:
        """Return a user's mask, cut as the photo is.

        Raises:
            InputError: If it is no image, has another size than the photo, or covers nothing.
        """
        if not isinstance(given, Image.Image):
            raise InputError(f"mask is {given!r}: use an image, difference, subject or none.")
        mask = given.convert("L")
        if mask.size != self.original.size:
            raise InputError(f"The mask has {mask.size} pixels and the photo {self.original.size}: make them equal.")
        height, width = self.pixels.shape[-2:]
        fitted = images.to_tensor([self._fit(mask, height, width).convert("RGB")])[:, :1]
        return check_covers(edit_mask((fitted > 0.5).float(), factor))


def edit_mask(pixels: Tensor, factor: int) -> EditMask:
    """Return the mask of pixels (1, 1, H, W), with the latents that it touches."""
    return EditMask(masks.latent_mask(pixels, factor), pixels)


def mask_of_latents(latents: Tensor, factor: int) -> EditMask:
    """Return the mask of latents (1, 1, h, w), with all of their pixels."""
    return EditMask(latents, masks.pixel_mask(latents, factor))


def whole_mask(like: Tensor, factor: int) -> EditMask:
    """Return the mask of all of an image with latents (1, C, h, w)."""
    return mask_of_latents(torch.ones_like(like[:1, :1]), factor)


def check_covers(mask: EditMask) -> EditMask:
    """Return a mask. Raises `InputError` if it covers nothing."""
    if not float(mask.pixels.max()):
        raise InputError("The mask is empty where the photo is cut: make what is to change white.")
    return mask


def found_mask(host: PipelineHost, photo: Photo, factor: int) -> EditMask:
    """Return where the model's subject finder sees the photo's subject, with a margin.

    Raises:
        InputError: If the model has no subject finder, or it finds nothing.
    """
    mask = subject_mask(host.model, photo.image)
    if mask is None:
        raise InputError("This model has no subject finder: use the mask difference, or give an image.")
    latents = masks.latent_mask((mask[None, None] > 0.5).float(), factor)
    if not float(latents.max()):
        raise InputError("No subject was found in the photo: use the mask difference, or give an image.")
    return mask_of_latents(latents, factor)


def subject_box(host: PipelineHost, photo: Photo, mask: EditMask | None, aspects: Sequence[float]) -> Box | None:
    """Return where the new subject stands: within a user's mask, or where the photo's subject is.

    `None` for models without placed tokens, and where no subject is found.
    """
    if not host.model.place_width:
        return None
    old = find_subject(host.model, photo.image) if mask is None else mask.box()
    if old is None:
        return None
    aspect, shape = (aspects[0] if aspects else old.width / old.height), photo.image.width / photo.image.height
    box = box_in_place_of(old, aspect, inside=mask is not None, shape=shape)
    return box if box.width > 0.02 and box.height > 0.02 else None


def seeded_like(generators: Sequence[torch.Generator]) -> torch.Generator:
    """Return a generator of the mask's noises: the same for equal seeds, and the images' own are not moved."""
    return torch.Generator().manual_seed(generators[0].initial_seed() % 2**63)
