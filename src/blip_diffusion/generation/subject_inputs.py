"""Further subjects of a request: references, category and position. Imports no torch."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from blip_diffusion import images
from blip_diffusion.errors import InputError
from blip_diffusion.framing import check_box, check_region
from blip_diffusion.generation.limits import check_letters

if TYPE_CHECKING:
    from PIL import Image

    from blip_diffusion.generation.request import GenerationRequest

MAX_ROW = 32
"""Images of a row of mixtures."""


@dataclass(frozen=True)
class SubjectInput:
    """A subject, as `GenerationRequest` has its first one.

    Args:
        references: Images of it as PNG bytes; the mean of their tokens is used.
        category: What it is.
        target_category: What to generate it as.
        box: Position of the subject: left, top, right, bottom in [0, 1] of the image.
        mask: PNG bytes of a mask, white at the subject; in place of a box.

    Raises:
        InputError: If there is no reference, the category is empty, or the box lies outside the image.
    """

    references: tuple[bytes, ...]
    category: str
    target_category: str
    box: tuple[float, float, float, float] | None = None
    mask: bytes = b""

    def __post_init__(self) -> None:
        if not self.references or not self.category.strip() or not self.target_category.strip():
            raise InputError("A subject lacks its reference or its category: give both.")
        check_letters(category=self.category, target_category=self.target_category)
        if self.box is not None:
            check_box(self.box)


def all_subjects(request: GenerationRequest) -> list[SubjectInput]:
    """Return the subjects of a request that have references, the first one included."""
    references = (request.reference, *request.more_references)
    first = SubjectInput(references, request.category, request.target_category, request.box, request.region_mask)
    return [first, *request.more_subjects]


def check_subjects(request: GenerationRequest) -> None:
    """Raise `InputError` if the subjects, regions and weights of a request don't fit together."""
    count = 1 + len(request.more_subjects)
    if request.more_subjects and (request.subjects or not request.reference):
        raise InputError("Several subjects need a reference each: --subject files mix, they don't compose.")
    if (request.blend or request.blend_row) and count == 1:
        raise InputError("There is one subject: a mixture needs two, a --reference and a --category of each.")
    if request.blend and len(request.blend) != count:
        raise InputError(f"There are {len(request.blend)} weights in --blend for {count} subjects: give one for each.")
    if request.blend_row and (count != 2 or not 2 <= request.blend_row <= MAX_ROW):
        raise InputError(
            f"--blend-row {request.blend_row} leads from one of two subjects to the other: use 2 to {MAX_ROW}."
        )
    _check_regions(request, mixes=bool(request.blend or request.blend_row))


def _check_regions(request: GenerationRequest, *, mixes: bool) -> None:
    """Raise `InputError` if the boxes and masks of a request don't fit its subjects."""
    count = 1 + len(request.more_subjects)
    regions = sum(bool(one.box or one.mask) for one in request.more_subjects)
    regions += bool(request.box or request.region_mask)
    if mixes and (any(one.box or one.mask for one in request.more_subjects) or request.region_mask):
        raise InputError("A mixture is one subject: give one --box, and no --region-mask.")
    if count == 1 and request.region_mask:
        raise InputError("--region-mask has no effect on one subject: use --box.")
    if count == 1 or mixes:
        return
    if regions not in (0, count):
        raise InputError(f"There are {regions} boxes or masks for {count} subjects: give one for each.")
    for box in (request.box, *(one.box for one in request.more_subjects)):
        if box is not None:
            check_region(box)


def subject_arguments(pipe: Any, request: GenerationRequest) -> dict[str, Any]:
    """Return the arguments of a pipeline call for several subjects: their mixture, or one image of them all."""
    parts = all_subjects(request)
    if request.blend:
        mode = request.resize_mode
        tokens = [pipe.encode_subject(opened(one.references), one.category, resize_mode=mode) for one in parts]
        return {
            "subject_embeds": pipe.blend(tokens, request.blend, request.blend_mode),
            "target_subject_category": request.target_category,
            "box": request.box,
        }
    return {
        "subjects": [_region(one) for one in parts],
        "region_mode": request.region_mode,
        "resize_mode": request.resize_mode,
    }


def opened(references: tuple[bytes, ...]) -> list[Image.Image]:
    """Return the images of a subject."""
    return [images.open_image(io.BytesIO(one)) for one in references]


def _region(one: SubjectInput) -> Any:
    from blip_diffusion.pipelines.composition import SubjectRegion

    mask = images.open_image(io.BytesIO(one.mask)) if one.mask else None
    return SubjectRegion(opened(one.references), one.category, one.box, mask, one.target_category)
