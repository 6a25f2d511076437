from pathlib import Path

import pytest

from blip_diffusion.cli.main import build_parser
from blip_diffusion.cli.subject_flags import SubjectPaths, blend_weights, subject_scale, subjects_of, target_of
from blip_diffusion.errors import InputError

A, B = Path("a.png"), Path("b.png")
LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)
TWO = "--reference a.png --category dog --reference b.png --category cat"
BOXES = "--box 0 0 0.5 1 --box 0.5 0 1 1"


@pytest.mark.parametrize(
    ("line", "subjects"),
    [
        ("--reference a.png --reference b.png --category dog", [SubjectPaths([A, B], "dog", "dog", None, None)]),
        (
            f"{TWO} {BOXES} --target-category dog --target-category lion",
            [SubjectPaths([A], "dog", "dog", LEFT, None), SubjectPaths([B], "cat", "lion", RIGHT, None)],
        ),
        (
            f"{TWO} --region-mask a.png --region-mask b.png",
            [SubjectPaths([A], "dog", "dog", None, A), SubjectPaths([B], "cat", "cat", None, B)],
        ),
        (
            f"{TWO} --blend 1,2 --box 0 0 0.5 1",
            [SubjectPaths([A], "dog", "dog", LEFT, None), SubjectPaths([B], "cat", "cat", None, None)],
        ),
    ],
)
def test_subjects(line: str, subjects: list[SubjectPaths]) -> None:
    assert subjects_of(build_parser().parse_args(["generate", "x", *line.split()])) == subjects


@pytest.mark.parametrize(
    "line",
    [
        "--reference a.png --category dog --category cat",
        f"{TWO} --box 0 0 1 1",
        f"{TWO} {BOXES} --region-mask a.png --region-mask b.png",
        f"{TWO} {BOXES} --blend 1,1",
        f"{TWO} --target-category a --target-category b --target-category c",
    ],
)
def test_subjects_that_do_not_match(line: str) -> None:
    with pytest.raises(InputError):
        subjects_of(build_parser().parse_args(["generate", "x", *line.split()]))


@pytest.mark.parametrize(("weights", "target"), [("0.6,0.4", "dog"), ("0.4,0.6", "cat"), ("1,1", "dog")])
def test_a_mixture_is_its_heavier_subject(weights: str, target: str) -> None:
    assert target_of(build_parser().parse_args(["generate", "x", *TWO.split(), "--blend", weights])) == target


def test_numbers() -> None:
    assert blend_weights("0.25,0.75") == (0.25, 0.75) and blend_weights(None) == ()
    assert subject_scale("0.5") == (0.5, 0.5, 0.5) and subject_scale("up=0.5,down=0") == (0.0, 1.0, 0.5)
    for parse, text in ((blend_weights, "1,nan"), (subject_scale, "left=1"), (subject_scale, "up=")):
        with pytest.raises(InputError):
            parse(text)
