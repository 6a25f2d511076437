"""Convert the page's form to a generation request and back. Imports no torch and no Gradio."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, cast

from blip_diffusion.annotators import UploadKind
from blip_diffusion.errors import InputError
from blip_diffusion.generation.request import ControlInput, GenerationRequest, read_control, read_reference

if TYPE_CHECKING:
    from blip_diffusion.serving.job_service import JobService

MAX_PROMPTS, MAX_IMAGES, MAX_STEPS = 8, 8, 100
MODEL_DEFAULT, NO_PRESET = "model's default", "default"
"""Choices that leave a setting to the model."""
MAX_SUBJECTS = 3
NO_CONTROL = "none"
CONTROLS: dict[str, UploadKind] = {
    "mask of the subject": "mask",
    "edges": "canny",
    "depth map": "depth",
    "normal map": "normal",
    "other map": "map",
}
"""Kinds of control images, by their names on the page."""
WITHOUT_FIELD = {
    "width": "a size",
    "height": "a size",
    "box": "a box",
    "controls": "a control image",
    "more_references": "several references",
    "more_subjects": "several subjects",
    "subject_scale": "a subject scale",
    "loras": "LoRAs",
    "embeddings": "embeddings",
    "prompt_weighting": "weights on words",
    "upscaler": "an upscaler",
}
"""Settings of requests that the form can't hold, or not as they were given."""
DEFAULTS = {field.name: field.default for field in fields(GenerationRequest)}


@dataclass(frozen=True)
class Form:
    """The values of the Generate form, in the order of its fields.

    Args:
        prompts: One scene per line.
        reference: Path of the uploaded reference, if there is one.
        category: The subject's category.
        mixture: Ids of tuned subjects and their weights; an empty id is a free row. They replace the reference.
        num_images: Images per prompt.
        seed: Seed of the first image of each prompt.
        preset: A preset, or `NO_PRESET`.
        model: A name from the service's settings.
        target_category: What to generate it as; empty: the category.
        negative_prompt: What should not appear.
        resize_mode: How the reference becomes square, or `MODEL_DEFAULT`.
        steps: Sampling steps; 0 for the model's.
        guidance_scale: 0 for the model's.
        control: One of `CONTROLS`, or `NO_CONTROL`.
        control_image: Path of the uploaded control image, if there is one.
        control_scale: How strongly it acts.
        control_end: Share of the steps after which it no longer acts.
    """

    prompts: str
    reference: str | None
    category: str
    mixture: tuple[tuple[str, float], ...]
    num_images: int
    seed: int
    preset: str
    model: str
    target_category: str = ""
    negative_prompt: str = ""
    resize_mode: str = MODEL_DEFAULT
    steps: int = 0
    guidance_scale: float = 0.0
    control: str = NO_CONTROL
    control_image: str | None = None
    control_scale: float = 1.0
    control_end: float = 1.0


def to_request(form: Form, service: JobService) -> GenerationRequest:
    """Return the request of a form.

    Raises:
        InputError: If a value is missing or out of range, or the reference is not an image.
        UnknownId: If a subject has been removed.
    """
    prompts = tuple(line.strip() for line in form.prompts.splitlines() if line.strip())
    if not prompts:
        raise InputError("The prompt is empty: describe the scene, for example on the beach.")
    if len(prompts) > MAX_PROMPTS:
        raise InputError(f"There are {len(prompts)} prompts: use up to {MAX_PROMPTS}, one per line.")
    subjects = tuple(service.subject_ref(name, float(weight)) for name, weight in form.mixture if name)
    if not subjects and not form.reference:
        raise InputError("There is no subject: upload a reference image, or choose a tuned subject.")
    largest = max(subjects, key=lambda subject: subject.weight) if subjects else None
    category = form.category.strip() or (largest.category if largest else "")
    if not category:
        raise InputError("The category is empty: name the subject, for example dog.")
    return GenerationRequest(
        prompts=prompts,
        reference=service.subject_reference(largest.sha256)
        if largest
        else read_reference(Path(cast(str, form.reference))),
        category=category,
        target_category=form.target_category.strip() or category,
        model=form.model,
        num_images=_bounded("images per prompt", form.num_images, MAX_IMAGES),
        seed=int(form.seed),
        steps=_bounded("steps", form.steps, MAX_STEPS) if form.steps else None,
        guidance_scale=form.guidance_scale or None,
        negative_prompt=form.negative_prompt.strip(),
        subjects=subjects,
        controls=_controls(form),
        resize_mode=None if form.resize_mode == MODEL_DEFAULT or subjects else form.resize_mode,  # type: ignore[arg-type]
        preset="" if form.preset == NO_PRESET else form.preset,
    )


def _controls(form: Form) -> tuple[ControlInput, ...]:
    if form.control == NO_CONTROL:
        return ()
    if not form.control_image:
        raise InputError("There is no control image: upload one in More settings, or set Structure control to none.")
    path = Path(form.control_image)
    kind = CONTROLS[form.control]
    return (read_control(kind, path, form.control_scale, end=form.control_end, networks=False),)


def control_choices(service: JobService, model: str) -> list[str]:
    """Return the names of the kinds of control that a model serves, and `NO_CONTROL`; of all if that isn't known."""
    served = service.control_kinds(model)
    return [NO_CONTROL, *(name for name, kind in CONTROLS.items() if served is None or kind in served)]


def from_request(request: GenerationRequest, service: JobService) -> Form:
    """Return the form of a request, without its reference, which is an upload.

    Args:
        request: From a PNG file; untrusted.
        service: The service, which must have its model and its subjects.

    Raises:
        InputError: If the page can't express the request: another model, or one of `WITHOUT_FIELD`.
        UnknownId: If it needs a subject that is not in the store.
    """
    if request.model not in service.settings.models:
        raise InputError(f"The image was made by {request.model[:80]!r}: start the app with --model to use it.")
    if request.edit is not None:
        raise InputError("The image is an edit of a photo: use the tab Edit, or generate it again in Queue.")
    others = [text for name, text in WITHOUT_FIELD.items() if getattr(request, name) != DEFAULTS[name]]
    if others:
        raise InputError(
            f"The image was made with {', '.join(dict.fromkeys(others))}, which the form doesn't have: generate it "
            "again in Queue, or with blip-diffusion generate --reproduce."
        )
    if len(request.subjects) > MAX_SUBJECTS:
        raise InputError(f"The image mixes {len(request.subjects)} subjects, and the page up to {MAX_SUBJECTS}.")
    return Form(
        prompts="\n".join(request.prompts),
        reference=None,
        category=request.category,
        mixture=tuple((service.store.subject(subject.sha256).id, subject.weight) for subject in request.subjects),
        num_images=min(request.num_images, MAX_IMAGES),
        seed=request.seed,
        preset=request.preset or NO_PRESET,
        model=request.model,
        target_category="" if request.target_category == request.category else request.target_category,
        negative_prompt=request.negative_prompt,
        resize_mode=request.resize_mode or MODEL_DEFAULT,
        steps=request.steps or 0,
        guidance_scale=request.guidance_scale or 0.0,
    )


def settings_of(request: GenerationRequest) -> list[tuple[str, str]]:
    """Return the settings of a request that differ from the model's defaults, as names and texts."""
    shown: list[tuple[str, str]] = [("Prompt", " · ".join(request.prompts)), ("Category", request.category)]
    if request.target_category != request.category:
        shown.append(("Target category", request.target_category))
    shown += [("Subject", f"{one.category} {one.sha256[:12]} × {one.weight:g}") for one in request.subjects]
    if request.edit is not None:
        edit = request.edit
        shown.append(("Edit", f"{edit.kind} of photo {edit.photo.sha256[:12]}"))
        shown.append(("Mask", edit.mask_file.sha256[:12] if edit.mask_file else edit.mask))
        shown += [("In the photo", edit.source_category)] if edit.source_category else []
    shown += [("Seed", str(request.seed)), ("Model", request.model), ("Preset", request.preset or NO_PRESET)]
    optional = {
        "Steps": request.steps,
        "Guidance scale": request.guidance_scale,
        "Negative prompt": request.negative_prompt,
        "Resize mode": request.resize_mode,
        "Control": ", ".join(map(_control_text, request.controls)),
        "Box": request.box and ", ".join(f"{side:g}" for side in request.box),
        "Size": request.width and f"{request.width} x {request.height}",
        "Precision": request.dtype,
    }
    return shown + [(name, str(value)) for name, value in optional.items() if value]


def _control_text(control: ControlInput) -> str:
    end = "" if control.end == 1 else f", until {control.end:g} of the steps"
    return f"{control.kind}, scale {control.scale:g}{end}"


def _bounded(name: str, value: float, highest: int) -> int:
    if not 1 <= value <= highest:
        raise InputError(f"The number of {name} is {value}: use 1 to {highest}.")
    return int(value)
