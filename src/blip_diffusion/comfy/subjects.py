"""Types of node outputs beside images: subjects, LoRAs, controls, and generated images with their request."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from torch import Tensor

from blip_diffusion.comfy.tensors import reference_files
from blip_diffusion.errors import InputError
from blip_diffusion.generation.request import ControlInput, GenerationRequest, read_control, read_reference
from blip_diffusion.generation.subject_refs import SubjectRef, subject_ref
from blip_diffusion.images import ResizeMode

MODEL_DEFAULT = "model default"
"""Option of `resize_mode`: the model's own."""


@dataclass(frozen=True)
class SubjectInput:
    """A subject: reference images, or tuned subjects with their shares in a mixture.

    Args:
        category: What the subject is.
        references: PNG bytes of reference images; the mean of their tokens is used.
        resize_mode: How references become square; `None` for the model's mode.
        tuned: Tuned subjects, in place of references.
    """

    category: str
    references: tuple[bytes, ...] = field(default=(), repr=False)
    resize_mode: ResizeMode | None = None
    tuned: tuple[SubjectRef, ...] = ()


@dataclass(frozen=True)
class GeneratedImages:
    """The request of generated images, and the prompt and the seed of each of them."""

    request: GenerationRequest
    images: tuple[tuple[str, int], ...]


def subject_from_images(
    image: Tensor, category: str, resize_mode: str = MODEL_DEFAULT, background: Tensor | None = None
) -> SubjectInput:
    """Return the subject of images.

    Args:
        image: IMAGE (B, H, W, 3), images of one subject.
        category: What the subject is, for example "dog".
        resize_mode: "crop", "squash", "pad", "subject", or `MODEL_DEFAULT`.
        background: MASK, 1 at the background, which becomes white.

    Raises:
        InputError: If the category is empty, or an image is too small or too large.
    """
    check_category(category)
    mode = None if resize_mode == MODEL_DEFAULT else cast(ResizeMode, resize_mode)
    references = tuple(read_reference(file) for file in reference_files(image, background))
    return SubjectInput(category.strip(), references, mode)


def subject_from_file(path: Path) -> SubjectInput:
    """Return a tuned subject. Raises `CheckpointError` if the file can't be read."""
    ref = subject_ref(path)
    return SubjectInput(ref.category, tuned=(ref,))


def mix(subjects: Sequence[SubjectInput], weights: Sequence[float]) -> SubjectInput:
    """Return a mixture of tuned subjects.

    Args:
        subjects: Tuned subjects, or mixtures of them.
        weights: The weight of each; they are normalised to the sum 1.

    Returns:
        The mixture, with the category of the largest weight.

    Raises:
        InputError: If a subject has references instead, or the weights add up to 0.
    """
    if any(not subject.tuned for subject in subjects):
        raise InputError("Only tuned subjects can be mixed: connect outputs of Load Tuned Subject.")
    total = sum(weights)
    if not total:
        raise InputError("The weights of the subjects add up to 0: change one of them.")
    refs: list[SubjectRef] = []
    for subject, weight in zip(subjects, weights, strict=True):
        share = weight / total / sum(ref.weight for ref in subject.tuned)
        refs += [dataclasses.replace(ref, weight=ref.weight * share) for ref in subject.tuned]
    return SubjectInput(max(refs, key=lambda ref: ref.weight).category, tuned=tuple(refs))


def control_from_image(
    image: Tensor, kind: str, scale: float = 1.0, controlnet: str = "", end: float = 1.0
) -> ControlInput:
    """Compute the control map of an IMAGE (1, H, W, 3); see `read_control`.

    Raises:
        InputError: If there are several images, `end` is out of range, or the annotator is not installed.
    """
    files = reference_files(image)
    if len(files) != 1:
        raise InputError(f"There are {len(files)} control images: connect one.")
    return read_control(kind, files[0], scale, controlnet.strip(), end=end)


def check_category(category: str) -> None:
    """Raise `InputError` for an empty category."""
    if not category.strip():
        raise InputError("The category is empty: name what the subject is, for example dog.")
