"""Convert the Edit tab's form to a generation request. Imports no torch and no Gradio."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from blip_diffusion import images
from blip_diffusion.errors import InputError
from blip_diffusion.generation.request import GenerationRequest, read_reference
from blip_diffusion.serving.edits import edit_input
from blip_diffusion.serving.page.form import MAX_STEPS, NO_PRESET

if TYPE_CHECKING:
    from blip_diffusion.serving.job_service import JobService

REPLACE, PAINT = "Replace the subject", "Paint into the mask"
BRUSH, FILE = "Brush", "File"
FOUND = {"Predicted": "difference", "Subject finder": "subject", "Whole photo": "none"}
"""Masks that the model finds, by their names on the page."""
MASKS = (*FOUND, BRUSH, FILE)
INVERSIONS = ("direct", "ddpm", "ddim", "none")
MAX_EDITS = 4


@dataclass(frozen=True)
class EditForm:
    """The values of the Edit form, in the order of its fields.

    Args:
        photo: Path of the uploaded photo, if there is one.
        kind: `REPLACE` or `PAINT`.
        source_category: What is in the photo.
        category: The new subject's category.
        prompt: The scene; may be empty.
        mask: One of `MASKS`.
        painted: What the brush has painted, as images with transparency.
        mask_file: Path of the uploaded mask, if there is one.
        reference: Path of the new subject's reference, if there is one.
        subject: Id of a tuned subject, or empty.
        strength: Share of the steps.
        num_images: Edits with successive seeds.
        seed: Seed of the first.
        model: A name from the service's settings.
        preset: A preset, or `NO_PRESET`.
        inversion: See `EditInput`.
        steps: Sampling steps; 0 for the model's.
    """

    photo: str | None
    kind: str
    source_category: str
    category: str
    prompt: str
    mask: str
    painted: Sequence[Image.Image]
    mask_file: str | None
    reference: str | None
    subject: str
    strength: float
    num_images: int
    seed: int
    model: str
    preset: str
    inversion: Any
    steps: int


def to_request(form: EditForm, service: JobService) -> GenerationRequest:
    """Return the request of a form; its photo and its mask are saved in the store.

    Raises:
        InputError: If a value is missing or out of range, or a file can't be used.
        UnknownId: If the subject has been removed.
    """
    if not form.photo:
        raise InputError("There is no photo: upload the photo to edit.")
    if form.reference and form.subject:
        raise InputError("There are a reference and a tuned subject: use one of them.")
    if not 1 <= form.num_images <= MAX_EDITS:
        raise InputError(f"The number of images is {form.num_images}: use 1 to {MAX_EDITS}.")
    if not 0 <= form.steps <= MAX_STEPS:
        raise InputError(f"The number of steps is {form.steps}: use up to {MAX_STEPS}, or 0.")
    replaces = form.kind == REPLACE
    if replaces and not form.source_category.strip():
        raise InputError("The category in the photo is empty: name what is there, for example dog.")
    photo = Path(form.photo).read_bytes()
    mask = _mask_file(form, photo)
    if mask is None and not replaces:
        raise InputError("There is no mask: draw one with the brush, or upload one.")
    edit = edit_input(
        service.store,
        photo,
        mask,
        kind="edit" if replaces else "inpaint",
        source_category=form.source_category.strip() if replaces else "",
        mask=FOUND.get(form.mask, "difference"),
        inversion=form.inversion if replaces else "direct",
        strength=form.strength,
    )
    subjects = (service.subject_ref(form.subject),) if form.subject else ()
    category = form.category.strip() or (subjects[0].category if subjects else edit.source_category)
    if not category:
        raise InputError("The new subject's category is empty: name it, for example cat.")
    reference = read_reference(Path(form.reference)) if form.reference else b""
    return GenerationRequest(
        prompts=(form.prompt.strip(),),
        reference=service.subject_reference(form.subject) if subjects else reference,
        category=category,
        target_category=category,
        model=form.model,
        num_images=int(form.num_images),
        seed=int(form.seed),
        steps=int(form.steps) or None,
        subjects=subjects,
        preset="" if form.preset == NO_PRESET else form.preset,
        edit=edit,
    )


def _mask_file(form: EditForm, photo: bytes) -> bytes | None:
    """Return the mask as a file: the uploaded one, or what the brush has painted. `None`: the model finds it."""
    if form.mask == FILE:
        if not form.mask_file:
            raise InputError("There is no mask file: upload one, or choose another mask.")
        return Path(form.mask_file).read_bytes()
    if form.mask != BRUSH:
        return None
    size = images.open_image(io.BytesIO(photo)).size
    painted = [
        np.asarray(layer.convert("RGBA").resize(size, Image.Resampling.NEAREST))[..., 3] for layer in form.painted
    ]
    if not painted or not np.max(painted):
        raise InputError("Nothing is painted: paint over what may change, or choose another mask.")
    return images.png_bytes(Image.fromarray(np.where(np.max(painted, axis=0) > 0, 255, 0).astype(np.uint8)))
