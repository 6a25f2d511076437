"""Convert a body to a `GenerationRequest`. Image sizes are checked before decoding, and nothing is fetched."""

import base64
import binascii
import io

from blip_diffusion.generation.request import GenerationRequest, read_reference
from blip_diffusion.serving.http.problems import Problem
from blip_diffusion.serving.http.schemas import ImageOptions, SubjectShare
from blip_diffusion.serving.job_service import JobService

MAX_SIDE = 1024
MAX_MIXTURE = 16
MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF")
"""First bytes of PNG, JPEG and WebP files. Pillow reads many more formats, some by external programs."""


def build_request(service: JobService, options: ImageOptions, reference: bytes | None) -> GenerationRequest:
    """Return the request of a body.

    Args:
        service: The service with models and subjects.
        options: The body.
        reference: An image file, if one was sent.

    Raises:
        Problem: If there is no subject, two of them, or an image or a size that can't be used.
        BlipDiffusionError: If a value is out of range, or a subject is unknown.
    """
    shares = _shares(options.subject)
    if (reference is None) == (not shares):
        raise Problem(
            422, "no_subject", "Give a reference image with its category, or a stored subject.", param="reference"
        )
    refs = tuple(service.subject_ref(share.id, share.weight) for share in shares)
    category = options.category or (max(refs, key=lambda ref: ref.weight).category if refs else "")
    width, height = options.sides
    if max(width or 0, height or 0) > MAX_SIDE:
        raise Problem(422, "invalid_input", f"size: use at most {MAX_SIDE} pixels a side.", param="size")
    return GenerationRequest(
        prompts=(options.prompt,),
        reference=service.subject_reference(refs[0].path) if refs else decode_image(reference or b""),
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
        preset=options.chosen_preset,
    )


def decode_image(data: bytes) -> bytes:
    """Return an uploaded image as a reference: upright RGB, PNG. Its size is checked before it is decoded."""
    if not data.startswith(MAGIC):
        raise Problem(422, "invalid_input", "The reference is not a PNG, JPEG or WebP file.", param="reference")
    return read_reference(io.BytesIO(data))


def decode_data_url(url: str | None) -> bytes | None:
    """Return the bytes of a data URL. Other URLs are refused: the server fetches nothing for a client."""
    if url is None:
        return None
    head, _, body = url.partition(",")
    if not (head.startswith("data:image/") and head.endswith(";base64")):
        raise Problem(422, "invalid_input", "reference: use a data URL, data:image/png;base64,…", param="reference")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Problem(
            422, "invalid_input", "reference: the data URL is not valid base64.", param="reference"
        ) from error


def _shares(subject: str | list[SubjectShare] | None) -> list[SubjectShare]:
    shares = [SubjectShare(id=subject, weight=1.0)] if isinstance(subject, str) else subject or []
    if len(shares) > MAX_MIXTURE:
        raise Problem(422, "invalid_input", f"subject: use at most {MAX_MIXTURE} subjects.", param="subject")
    return shares
