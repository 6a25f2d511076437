"""Convert a body to a `GenerationRequest`. Image sizes are checked before decoding, and nothing is fetched."""

import base64
import binascii
import io
from collections.abc import Sequence
from typing import Any, Literal

from blip_diffusion.generation.edit_request import MASK_METHODS, EditInput
from blip_diffusion.generation.request import ControlInput, GenerationRequest, read_control, read_reference
from blip_diffusion.generation.subject_inputs import SubjectInput
from blip_diffusion.serving.edits import edit_input
from blip_diffusion.serving.http.problems import Problem
from blip_diffusion.serving.http.schemas import (
    MAX_CONTROLS,
    MAX_IMAGES,
    MAX_STEPS,
    ControlBody,
    EditOptions,
    ImageOptions,
    JobBody,
    References,
    SubjectBody,
    SubjectShare,
)
from blip_diffusion.serving.job_service import JobService

MIN_SIDE, MAX_SIDE = 16, 1024
MAX_MIXTURE = 16
MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF")
"""First bytes of PNG, JPEG and WebP files. Pillow reads many more formats, some by external programs."""


def build_request(
    service: JobService,
    options: ImageOptions,
    references: Sequence[bytes],
    *,
    more_subjects: tuple[SubjectInput, ...] = (),
    region_mode: Literal["attention", "multidiffusion"] = "attention",
    edit: EditInput | None = None,
) -> GenerationRequest:
    """Return the request of a body.

    Args:
        service: The service with models and subjects.
        options: The body.
        references: Image files of the subject; none for a stored subject, or an edit by words alone.
        more_subjects: Further subjects.
        region_mode: See `GenerationRequest`.
        edit: How a photo is edited. `None`: images are generated.

    Raises:
        Problem: If there is no subject, two of them, or an image or a size that can't be used.
        BlipDiffusionError: If a value is out of range, or a subject is unknown.
    """
    shares = _shares(options.subject)
    if (references and shares) or not (references or shares or edit):
        raise Problem(
            422, "no_subject", "Give a reference image with its category, or a stored subject.", param="reference"
        )
    refs = tuple(service.subject_ref(share.id, share.weight) for share in shares)
    largest = max(refs, key=lambda ref: ref.weight).category if refs else ""
    category = options.category or largest or (edit.source_category if edit else "")
    width, height = options.sides
    if not all(side is None or MIN_SIDE <= side <= MAX_SIDE for side in (width, height)):
        raise Problem(422, "invalid_input", f"size: use {MIN_SIDE} to {MAX_SIDE} pixels a side.", param="size")
    first, *more = [decode_image(one) for one in references] or [b""]
    return GenerationRequest(
        prompts=(options.prompt,),
        reference=service.subject_reference(refs[0].path) if refs else first,
        more_references=tuple(more),
        more_subjects=more_subjects,
        region_mode=region_mode,
        category=category,
        target_category=options.target_category or category,
        model=options.model or service.settings.default_model,
        num_images=options.n,
        seed=options.seed,
        steps=options.steps,
        guidance_scale=options.guidance_scale,
        negative_prompt=options.negative_prompt,
        width=width,
        height=height,
        subjects=refs,
        resize_mode=options.resize_mode,
        box=options.box,
        controls=tuple(_control(one) for one in options.controls),
        preset=options.chosen_preset,
        edit=edit,
    )


def check_reproduced(request: GenerationRequest) -> None:
    """Raise `Problem` for the request of an uploaded PNG that has more than a body may have."""
    images, sides = len(request.prompts) * request.num_images, (request.width, request.height)
    if images > MAX_IMAGES:
        raise Problem(422, "invalid_input", f"The file asks for {images} images: use one of at most {MAX_IMAGES}.")
    if len(request.controls) > MAX_CONTROLS:
        raise Problem(422, "invalid_input", f"The file has more controls than {MAX_CONTROLS}: use another.")
    if request.steps is not None and request.steps > MAX_STEPS:
        raise Problem(422, "invalid_input", f"The file asks for {request.steps} steps: use at most {MAX_STEPS}.")
    if not all(side is None or MIN_SIDE <= side <= MAX_SIDE for side in sides):
        raise Problem(422, "invalid_input", f"The file asks for sides of other than {MIN_SIDE} to {MAX_SIDE} pixels.")


def references_of(body: References) -> dict[str, Any]:
    """Return the references of a JSON body as arguments of `build_request`."""
    reference = decode_data_url(body.reference)
    return {
        "references": [] if reference is None else [reference],
        "more_subjects": tuple(_subject_input(one) for one in body.more_subjects),
        "region_mode": body.region_mode,
    }


def _subject_input(body: SubjectBody) -> SubjectInput:
    reference = decode_image(decode_data_url(body.reference) or b"")
    return SubjectInput((reference,), body.category, body.target_category or body.category, body.box)


def _control(body: ControlBody) -> ControlInput:
    data = decode_data_url(body.image, "controls") or b""
    if not data.startswith(MAGIC):
        raise Problem(422, "invalid_input", "controls: the image is not a PNG, JPEG or WebP file.", param="controls")
    return read_control(body.kind, io.BytesIO(data), body.scale, end=body.end, networks=False)


def build_edit(
    service: JobService, options: EditOptions, kind: Literal["edit", "inpaint"], photo: bytes, mask: bytes | None
) -> EditInput:
    """Return the edit of a body. Its photo and its mask are saved in the store.

    Args:
        service: The service with the store.
        options: The body.
        kind: Replace a subject, or paint into the mask.
        photo: An image file.
        mask: An image file, if one was sent.

    Raises:
        Problem: If a file has a format that is not read, or a field is missing or has no effect.
        InputError: If photo and mask don't fit together.
    """
    for name, data in (("photo", photo), ("mask", mask)):
        if data is not None and not data.startswith(MAGIC):
            raise Problem(422, "invalid_input", f"The {name} is not a PNG, JPEG or WebP file.", param=name)
    if mask is None and (options.mask or "auto") not in MASK_METHODS:
        raise Problem(422, "invalid_input", "mask: use auto, subject, none, or an image.", param="mask")
    if options.keep_shape and not options.keep_attention:
        raise Problem(422, "invalid_input", "keep_shape has no effect without keep_attention.", param="keep_shape")
    return edit_input(
        service.store,
        photo,
        mask,
        kind=kind,
        source_category=(options.source_category or "") if kind == "edit" else "",
        mask=MASK_METHODS[options.mask or "auto"] if mask is None else "difference",
        inversion=options.inversion,
        strength=options.strength,
        keep_attention=options.keep_attention,
        keep_shape=options.keep_shape,
        resamplings=options.resamplings,
        feather=options.feather,
    )


def edit_of(service: JobService, body: JobBody) -> EditInput | None:
    """Return the edit of a job's body; `None` for images that are generated."""
    if body.kind == "generate":
        for name in ("photo", *EditOptions.model_fields):
            if name in body.model_fields_set:
                raise Problem(422, "invalid_input", f"{name} has no effect on the kind generate.", param=name)
        return None
    photo = decode_data_url(body.photo, "photo")
    if photo is None:
        raise Problem(422, "invalid_input", "photo: send the photo to edit, as a data URL.", param="photo")
    mask = decode_data_url(body.mask, "mask") if (body.mask or "").startswith("data:") else None
    return build_edit(service, body, body.kind, photo, mask)


def decode_image(data: bytes) -> bytes:
    """Return an uploaded image as a reference: upright RGB, PNG. Its size is checked before it is decoded."""
    if not data.startswith(MAGIC):
        raise Problem(422, "invalid_input", "The reference is not a PNG, JPEG or WebP file.", param="reference")
    return read_reference(io.BytesIO(data))


def decode_data_url(url: str | None, field: str = "reference") -> bytes | None:
    """Return the bytes of a data URL. Other URLs are refused: the server fetches nothing for a client."""
    if url is None:
        return None
    head, _, body = url.partition(",")
    if not (head.startswith("data:image/") and head.endswith(";base64")):
        raise Problem(422, "invalid_input", f"{field}: use a data URL, data:image/png;base64,…", param=field)
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Problem(422, "invalid_input", f"{field}: the data URL is not valid base64.", param=field) from error


def _shares(subject: str | list[SubjectShare] | None) -> list[SubjectShare]:
    shares = [SubjectShare(id=subject, weight=1.0)] if isinstance(subject, str) else subject or []
    if len(shares) > MAX_MIXTURE:
        raise Problem(422, "invalid_input", f"subject: use at most {MAX_MIXTURE} subjects.", param="subject")
    return shares
