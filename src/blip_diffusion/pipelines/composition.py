"""Several subjects in one image, each in its region or all in one sentence."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from blip_diffusion.argument_checks import choice, listed
from blip_diffusion.diffusion.cross_attention import visibility_of
from blip_diffusion.errors import InputError
from blip_diffusion.framing import Box, box_of_mask, check_region
from blip_diffusion.images import to_tensor
from blip_diffusion.pipelines.broadcast import as_list
from blip_diffusion.pipelines.host import PipelineHost
from blip_diffusion.pipelines.prompt_inputs import PromptInputs, prompt_inputs
from blip_diffusion.prompts import joined_categories, subject_prompt

if TYPE_CHECKING:
    from blip_diffusion.pipelines.inputs import CallArguments

RegionMode = Literal["attention", "multidiffusion"]
REGION_MODES: tuple[RegionMode, ...] = ("attention", "multidiffusion")
Reference: TypeAlias = Image.Image | Sequence[Image.Image] | Tensor
EXCLUDED = ("reference_image", "subject_embeds", "prompt_embeds", "box")
MAX_ASPECT_ERROR = 0.02
"""Largest relative difference of a mask's proportions from the image's."""


@dataclass(frozen=True)
class SubjectRegion:
    """One of several subjects of an image, and its position.

    Args:
        reference: An image of the subject, several (their mean), or its subject tokens (1, Q, D).
        category: The subject's category: "dog".
        box: Left, top, right, bottom in [0, 1] of the image.
        mask: A mask in the proportions of the image, white at the subject; in place of a box.
        target_category: What to generate it as; by default the same.

    Example:
        >>> dog = SubjectRegion(Image.open("dog.png"), "dog", box=(0.05, 0.3, 0.45, 0.9))
        >>> cat = SubjectRegion(Image.open("cat.png"), "cat", box=(0.55, 0.3, 0.95, 0.9))
        >>> pipe("on the beach", subjects=[dog, cat]).images[0]
    """

    reference: Reference
    category: str
    box: Sequence[float] | None = None
    mask: Image.Image | None = None
    target_category: str = ""


@dataclass(frozen=True)
class Composition:
    """The checked subjects of a call with several.

    Args:
        parts: Inputs of the text encoder for each of K subjects, N prompts each.
        boxes: The box of each subject; `None` for a model without placed tokens, or without regions.
        visibility: (K, h, w) in [0, 1], where the image attends to each subject's sentence; `None`: all subjects are in
            one sentence.
        mode: Masked attention or averaged predictions.
        sentence: Inputs of the text encoder for N prompts with all subjects in each.
    """

    parts: list[PromptInputs]
    boxes: list[Box | None]
    visibility: Tensor | None
    mode: RegionMode
    sentence: PromptInputs

    @property
    def averages_predictions(self) -> bool:
        """Whether predictions are averaged (MultiDiffusion), instead of attention being masked."""
        return self.visibility is not None and self.mode == "multidiffusion"


def composition_of(host: PipelineHost, given: "CallArguments", height: int, width: int) -> Composition | None:
    """Return the subjects of a call, or `None` if it has only one.

    Args:
        host: The pipeline.
        given: The arguments of the call.
        height: Height of the latents.
        width: Width of the latents.

    Raises:
        InputError: If subjects and regions exclude each other, or all tokens don't fit into the text encoder.
    """
    choice("region_mode", given.region_mode, REGION_MODES)
    if given.subjects is None:
        return None
    subjects = _checked(given)
    single = replace(given, subjects=None)
    parts = [prompt_inputs(host, replace(single, **_arguments(subject))) for subject in subjects]
    categories = [subject.target_category or subject.category for subject in subjects]
    all_subjects = {**_arguments(subjects[0]), "target_subject_category": joined_categories(categories)}
    sentence = prompt_inputs(host, replace(single, **all_subjects))
    placed = bool(host.model.place_width)
    if all(subject.box is None and subject.mask is None for subject in subjects):
        _check_room(host, parts, categories)
        return Composition(parts, [None] * len(parts), None, given.region_mode, sentence)
    inside = torch.stack([_inside(subject, height, width) for subject in subjects])
    boxes = [_box(subject) if placed else None for subject in subjects]
    visibility = visibility_of(inside).to(host._execution_device)
    return Composition(parts, boxes, visibility, given.region_mode, sentence)


def _checked(given: "CallArguments") -> list[SubjectRegion]:
    subjects = listed("subjects", given.subjects, "SubjectRegion")
    if not subjects or not all(isinstance(subject, SubjectRegion) for subject in subjects):
        raise InputError("subjects is a list of SubjectRegion: give at least one.")
    if not all(isinstance(subject.reference, Image.Image | Tensor | list | tuple) for subject in subjects):
        raise InputError("The reference of a subject is a PIL image, a list of them, or its subject tokens.")
    for name in EXCLUDED:
        if getattr(given, name) is not None:
            raise InputError(f"{name} and subjects exclude each other: give one of them.")
    if given.source_subject_category or given.target_subject_category:
        raise InputError("With subjects, categories belong to each SubjectRegion: leave them out of the call.")
    if any(subject.box is not None and subject.mask is not None for subject in subjects):
        raise InputError("A subject has a box and a mask: give one of them.")
    regions = sum(subject.box is not None or subject.mask is not None for subject in subjects)
    if regions not in (0, len(subjects)):
        raise InputError(f"There are {regions} boxes or masks for {len(subjects)} subjects: give one for each.")
    if given.guess_mode and given.region_mode == "multidiffusion":
        raise InputError("guess_mode has no effect with region_mode multidiffusion: use attention.")
    return subjects


def _arguments(subject: SubjectRegion) -> dict[str, Any]:
    """Return the arguments of a call that describe one subject."""
    reference = subject.reference
    has_tokens = isinstance(reference, Tensor)
    return {
        "reference_image": None if has_tokens else [as_list(reference)],
        "subject_embeds": reference if has_tokens else None,
        "source_subject_category": subject.category,
        "target_subject_category": subject.target_category,
    }


def _check_room(host: PipelineHost, parts: list[PromptInputs], categories: list[str]) -> None:
    """Raise `InputError` if tokens and categories of all subjects are longer than the text encoder's input."""
    queries = host.qformer.qformer.config.queries
    tokens = sum(queries if part.subject_embeds is None else part.subject_embeds.shape[1] for part in parts)
    sentence = subject_prompt("", joined_categories(categories))
    words = len(host.tokenizer(sentence).input_ids)  # with [BOS] and [EOS]
    if tokens + words > host.model.text_length:
        raise InputError(
            f"{len(parts)} subjects take {tokens} positions of the text encoder's {host.model.text_length}, and "
            "their words more: give each subject a box or a mask."
        )


def _box(subject: SubjectRegion) -> Box | None:
    if subject.mask is None:
        return check_region(() if subject.box is None else subject.box)
    return box_of_mask(to_tensor([subject.mask.convert("RGB")])[0, 0])


def _inside(subject: SubjectRegion, height: int, width: int) -> Tensor:
    """Return the share (h, w) of each latent's area inside a subject's region."""
    if subject.mask is None:
        box = check_region(() if subject.box is None else subject.box)
        across, down = _covered(box.left, box.right, width), _covered(box.top, box.bottom, height)
        return down[:, None] * across
    mask = subject.mask
    if not isinstance(mask, Image.Image):
        raise InputError("The mask of a subject is a PIL image: Image.open reads a file.")
    if abs(mask.width * height / (mask.height * width) - 1) > MAX_ASPECT_ERROR:
        raise InputError(f"A mask is {mask.width} x {mask.height}: give one in the proportions of the image.")
    pixels = to_tensor([mask.convert("RGB")])[:, :1]
    if not (pixels > 0.5).any():
        raise InputError("The mask of a subject is empty: paint the subject white.")
    return F.interpolate(pixels, (height, width), mode="area")[0, 0]


def _covered(start: float, end: float, cells: int) -> Tensor:
    """Return the share of each of `cells` equal cells of [0, 1] that an interval covers."""
    edges = torch.arange(cells + 1) / cells
    covered: Tensor = edges[1:].clamp(max=end) - edges[:-1].clamp(min=start)
    return covered.clamp(min=0) * cells
