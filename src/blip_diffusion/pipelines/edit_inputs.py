"""The inputs of `edit` and `inpaint`, checked before the networks run: photo, masks and numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from diffusers import LCMScheduler
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from blip_diffusion import images
from blip_diffusion.argument_checks import choice, flag, number, whole_number
from blip_diffusion.diffusion import masks
from blip_diffusion.diffusion.forward_process import Noising
from blip_diffusion.diffusion.inversion import Method
from blip_diffusion.errors import InputError, quoted
from blip_diffusion.framing import Box, box_in_place_of, box_of_mask
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.pipelines.attention_alignment import AttentionControl
from blip_diffusion.pipelines.host import PipelineHost
from blip_diffusion.pipelines.inputs import PipelineInputs
from blip_diffusion.references import find_subject, subject_mask

MaskSource = Image.Image | Literal["difference", "subject", "none"]
"""A mask of the photo's size, white where it may change, or the method that predicts one."""
PREDICTED_MASKS = ("difference", "subject", "none")
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
"""Arguments of the pipeline's call that `edit` and `inpaint` also take."""


@dataclass
class EditOutput(BaseOutput):
    """Edited images, and their common mask (mode L, white where the photo may have changed)."""

    images: Any
    mask: Image.Image


@dataclass(frozen=True)
class EditMask:
    """The region that may change, as masks of latents (1, 1, h, w) and of pixels (1, 1, H, W).

    Latents that the mask of pixels covers in part are covered.
    """

    latents: Tensor
    pixels: Tensor

    def image(self) -> Image.Image:
        """Return the mask of pixels as an image, mode L."""
        return images.to_pil(self.pixels.expand(-1, 3, -1, -1))[0].convert("L")

    def box(self) -> Box | None:
        """Return the bounding box of the mask."""
        return box_of_mask(self.pixels[0, 0].cpu())


def check_edit(
    host: PipelineHost, inversion: Any, strength: Any, feather: Any, threshold: Any = 0.5, resamplings: Any = 1
) -> None:
    """Raise `InputError` for arguments out of range, and for presets with too few steps."""
    choice("inversion", inversion, get_args(Method))
    if not number("strength", strength, 0, 1):
        raise InputError("strength is 0: use a number above 0; 1 changes most.")
    whole_number("feather", feather, 0, MAX_FEATHER)
    number("mask_threshold", threshold, 0, 1)
    whole_number("resamplings", resamplings, 1, MAX_RESAMPLINGS)
    if not host.preset.uses_cfg or isinstance(host.default_scheduler, LCMScheduler):
        raise InputError("A model or preset that samples in a few steps can't edit: use the preset fast, or none.")


def check_given(options: Mapping[str, Any]) -> None:
    """Raise `InputError` for options that `edit` and `inpaint` don't take."""
    for name in options.keys() - OPTIONS:
        raise InputError(f"edit and inpaint have no argument {name!r}: use {', '.join(sorted(OPTIONS))}.")


def check_switches(describe_source: Any, attention: Any) -> None:
    """Raise `InputError` unless one is a switch, and the other an `AttentionControl` or `None`."""
    flag("describe_source", describe_source)
    if attention is not None and not isinstance(attention, AttentionControl):
        raise InputError(f"attention is {quoted(attention)}: use an AttentionControl, or None.")


def check_plain_engine(host: PipelineHost, inputs: PipelineInputs) -> None:
    """Raise `InputError` for presets and arguments under which attention maps can't be replaced."""
    if host.preset.engine != "torch" or host.preset.deepcache_interval > 1:
        raise InputError("Attention control needs the engine torch and no cached features: use another preset.")
    if inputs.guess_mode:
        raise InputError("Attention control and guess_mode exclude each other: give one of them.")


def given_mask(mask: Any, photo: "Photo", factor: int) -> "tuple[EditMask | None, str]":
    """Return a user's mask, or the method that predicts one. Raises `InputError` for any other value."""
    if isinstance(mask, str) and mask in PREDICTED_MASKS:
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
    """A photo, centre-cropped to the proportions of the output and resized, and the box of its subject, if found."""

    original: Image.Image  # upright RGB
    image: Image.Image
    pixels: Tensor  # (1, 3, H, W) in [0, 1]
    subject: Box | None = None

    @classmethod
    def read(cls, photo: Any, height: int, width: int) -> "Photo":
        """Crop and resize a photo. Raises `InputError` if it is not an image or has an unusable size."""
        if not isinstance(photo, Image.Image):
            raise InputError(f"image is a {type(photo).__name__}: use a PIL image, one photo at a time.")
        images.check_size(photo, "The photo")
        upright = images.as_rgb(photo)
        fitted = cls._fit(upright, height, width)
        return cls(upright, fitted, images.to_tensor([fitted]))

    def with_subject(self, model: BlipDiffusion) -> "Photo":
        """Return the photo with the box of its subject, for a model with placed tokens."""
        return replace(self, subject=find_subject(model, self.image)) if model.place_width else self

    @staticmethod
    def _fit(image: Image.Image, height: int, width: int) -> Image.Image:
        """Centre-crop an image to the output's proportions, and resize it."""
        scale = max(width / image.width, height / image.height)
        wide, high = width / scale, height / scale
        left, top = (image.width - wide) / 2, (image.height - high) / 2
        box = (left, top, left + wide, top + high)
        same = image.size == (width, height)
        return image if same else image.resize((width, height), Image.Resampling.BICUBIC, box=box)

    def mask(self, given: Any, factor: int) -> EditMask:
        """Return a user's mask, cropped and resized like the photo.

        Raises:
            InputError: If it is not an image, has another size than the photo, or is empty.
        """
        if not isinstance(given, Image.Image):
            raise InputError(f"mask is {quoted(given)}: use an image, difference, subject or none.")
        mask = given.convert("L")
        if mask.size != self.original.size:
            raise InputError(f"The mask has {mask.size} pixels and the photo {self.original.size}: make them equal.")
        height, width = self.pixels.shape[-2:]
        fitted = images.to_tensor([self._fit(mask, height, width).convert("RGB")])[:, :1]
        return check_covers(edit_mask((fitted > 0.5).float(), factor))


def edit_mask(pixels: Tensor, factor: int) -> EditMask:
    """Return a mask of pixels (1, 1, H, W) with the mask of the latents that it touches."""
    return EditMask(masks.latent_mask(pixels, factor), pixels)


def mask_of_latents(latents: Tensor, factor: int) -> EditMask:
    """Return a mask of latents (1, 1, h, w) with the mask of their pixels."""
    return EditMask(latents, masks.pixel_mask(latents, factor))


def whole_mask(like: Tensor, factor: int) -> EditMask:
    """Return the mask of a whole image with latents (1, C, h, w)."""
    return mask_of_latents(torch.ones_like(like[:1, :1]), factor)


def check_covers(mask: EditMask) -> EditMask:
    """Return the mask. Raises `InputError` if it is empty."""
    if not float(mask.pixels.max()):
        raise InputError("The mask is empty after cropping: paint the region that may change white.")
    return mask


def subject_finder_mask(host: PipelineHost, photo: Photo, factor: int) -> EditMask:
    """Return the mask of the photo's subject from the model's subject finder, with a margin.

    Raises:
        InputError: If the model has no subject finder, or the finder detects no subject.
    """
    mask = subject_mask(host.model, photo.image)
    if mask is None:
        raise InputError("This model has no subject finder: use the mask difference, or give an image.")
    latents = masks.latent_mask((mask[None, None] > 0.5).float(), factor)
    if not float(latents.max()):
        raise InputError("No subject was found in the photo: use the mask difference, or give an image.")
    return mask_of_latents(latents, factor)


def subject_box(host: PipelineHost, photo: Photo, mask: EditMask | None, aspects: Sequence[float]) -> Box | None:
    """Return the box of the new subject, from a user's mask or from the photo's subject.

    It is `None` for models without placed tokens, and for photos in which no subject is detected.
    """
    if not host.model.place_width:
        return None
    old = photo.subject if mask is None else mask.box()
    if old is None:
        return None
    aspect, shape = (aspects[0] if aspects else old.width / old.height), photo.image.width / photo.image.height
    box = box_in_place_of(old, aspect, inside=mask is not None, shape=shape)
    return box if box.width > 0.02 and box.height > 0.02 else None


def mask_generator(generators: Sequence[torch.Generator]) -> torch.Generator:
    """Return a generator for the mask's noise with the first image's seed; the images' generators don't advance."""
    return torch.Generator().manual_seed(generators[0].initial_seed() % 2**63)
