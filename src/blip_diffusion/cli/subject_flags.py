"""Flags of subjects: positions, regions, mixtures, and strength."""

from __future__ import annotations

import argparse
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from blip_diffusion.cli.values import check_file
from blip_diffusion.errors import InputError

if TYPE_CHECKING:
    from blip_diffusion.generation.subject_inputs import SubjectInput

T = TypeVar("T")
PARTS = ("down", "mid", "up")


class SubjectPaths(NamedTuple):
    """One subject of the command line."""

    references: list[Path]
    category: str
    target_category: str
    box: tuple[float, ...] | None
    mask: Path | None


def box_flag(parser: argparse.ArgumentParser) -> None:
    """Add --box."""
    parser.add_argument(
        "--box",
        type=float,
        nargs=4,
        action="append",
        default=[],
        metavar=("LEFT", "TOP", "RIGHT", "BOTTOM"),
        help="position of the subject, in [0, 1] of the image (default: from the prompt); repeat for several subjects",
    )


def several_subjects_flags(parser: argparse.ArgumentParser) -> None:
    """Add the subject scale, and the flags of regions and mixtures."""
    parser.add_argument(
        "--subject-scale",
        default="1",
        metavar="SCALE",
        help="strength of the subject, 0 to 2 (default: 1), or by block: down=0.3,mid=0.3,up=1",
    )
    parser.add_argument(
        "--region-mask",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="an image that is white in the region of one of several subjects, instead of --box",
    )
    parser.add_argument(
        "--region-mode",
        choices=("attention", "multidiffusion"),
        default="attention",
        help="how regions of several subjects are used: masked cross-attention (default), or one prediction for each",
    )
    parser.add_argument(
        "--blend", metavar="WEIGHT,WEIGHT", help="mix the subjects of several --category into one, for example 0.4,0.6"
    )
    parser.add_argument(
        "--blend-mode", choices=("linear", "spherical"), default="linear", help="interpolation (default: linear)"
    )
    parser.add_argument(
        "--blend-row",
        type=int,
        default=0,
        metavar="N",
        help="N mixtures from the first of two subjects to the second; --grid shows them in a row",
    )


SINGLE_SUBJECT: dict[str, Any] = {
    "region_mask": [],
    "region_mode": "attention",
    "blend": None,
    "blend_mode": "linear",
    "blend_row": 0,
    "subject_scale": "1",
}
"""What `several_subjects_flags` would set, for commands of one subject."""


def subjects_of(arguments: argparse.Namespace) -> list[SubjectPaths]:
    """Return the subjects of a command line.

    One category takes all references, of which the mean is used; several take one reference each.

    Raises:
        InputError: If the numbers of references, categories, boxes and masks don't match.
    """
    references, categories = arguments.reference, arguments.category
    if len(categories) > 1 and len(references) != len(categories):
        raise InputError(
            f"There are {len(references)} --reference for {len(categories)} --category: give one category, or one for "
            "each reference."
        )
    count = max(1, len(categories))
    targets = _for_each("--target-category", arguments.target_category or [""], count)
    mixes = bool(arguments.blend or arguments.blend_row)
    if mixes and len(arguments.box) > 1:
        raise InputError(f"A mixture is one subject, and there are {len(arguments.box)} --box: give one.")
    boxes = [*arguments.box, *[[]] * count][:count] if mixes else _for_each("--box", arguments.box or [[]], count)
    masks = _for_each("--region-mask", arguments.region_mask or [None], count)
    if arguments.box and arguments.region_mask:
        raise InputError("--box and --region-mask exclude each other: give one of them for all subjects.")
    groups = [[path] for path in references] if len(categories) > 1 else [references]
    named = categories or [""]
    return [
        SubjectPaths(group, category, target or category, tuple(box) or None, mask)
        for group, category, target, box, mask in zip(groups, named, targets, boxes, masks, strict=True)
    ]


def _for_each(flag: str, values: list[T], count: int) -> list[T]:
    """Return a value for each subject; one empty value stands for all."""
    if len(values) == 1 and (count == 1 or not values[0]):
        return values * count
    if len(values) != count:
        subjects = "1 subject" if count == 1 else f"{count} subjects"
        raise InputError(f"There are {len(values)} {flag} for {subjects}: give one for each.")
    return values


def check_subject_files(arguments: argparse.Namespace) -> None:
    """Raise `InputError` for mistakes in the subjects' flags, before torch is imported."""
    subjects = subjects_of(arguments)
    for path in (*arguments.reference, *arguments.region_mask):
        check_file("image", path)
    weights = blend_weights(arguments.blend)
    if (weights or arguments.blend_row) and len(subjects) < 2:
        raise InputError("There is one subject: a mixture needs two, a --reference and a --category of each.")
    if weights and arguments.blend_row:
        raise InputError("--blend and --blend-row exclude each other: give one of them.")
    subject_scale(arguments.subject_scale)


def blend_weights(text: str | None) -> tuple[float, ...]:
    """Parse 0.4,0.6."""
    return tuple(_number("--blend", part, text) for part in text.split(",")) if text else ()


def subject_scale(text: str) -> tuple[float, float, float]:
    """Parse 0.5, or down=0.3,mid=0.3,up=1; what isn't named is 1."""
    if "=" not in text:
        return (_number("--subject-scale", text, text),) * 3
    pairs = [part.partition("=") for part in text.split(",")]
    if unknown := [name for name, _, _ in pairs if name not in PARTS]:
        raise InputError(f"--subject-scale has no block {unknown[0]!r}: use down, mid and up.")
    scales = {name: _number("--subject-scale", number, text) for name, _, number in pairs}
    down, mid, up = (scales.get(name, 1.0) for name in PARTS)
    return down, mid, up


def _number(flag: str, part: str, text: str | None) -> float:
    try:
        number = float(part)
    except ValueError:
        number = float("nan")
    if not isfinite(number):
        raise InputError(f"{flag} {text} has the number {part!r}: use numbers, for example 0.5.")
    return number


def request_subjects(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of a `GenerationRequest` that several subjects, their regions and mixtures fill."""
    from blip_diffusion.generation.request import read_region_mask

    first, *more = subjects_of(arguments)
    return {
        "more_subjects": tuple(_input(one) for one in more),
        "box": first.box,
        "region_mask": read_region_mask(first.mask) if first.mask else b"",
        "region_mode": arguments.region_mode,
        "blend": blend_weights(arguments.blend),
        "blend_mode": arguments.blend_mode,
        "blend_row": arguments.blend_row,
        "subject_scale": subject_scale(arguments.subject_scale),
    }


def target_of(arguments: argparse.Namespace) -> str:
    """Return what to generate the first subject as; a mixture is generated as its heavier subject."""
    subjects, weights = subjects_of(arguments), blend_weights(arguments.blend)
    heaviest = weights.index(max(weights)) if len(weights) == len(subjects) else 0
    return subjects[heaviest].target_category


def _input(one: SubjectPaths) -> SubjectInput:
    from blip_diffusion.generation.request import read_reference, read_region_mask
    from blip_diffusion.generation.subject_inputs import SubjectInput

    references = tuple(read_reference(path) for path in one.references)
    mask = read_region_mask(one.mask) if one.mask else b""
    return SubjectInput(references, one.category, one.target_category, one.box, mask)  # type: ignore[arg-type]
