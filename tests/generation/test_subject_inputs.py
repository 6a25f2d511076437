import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from blip_diffusion.errors import InputError
from blip_diffusion.generation.output import png_with_metadata
from blip_diffusion.generation.png_metadata import decode, encode, read_request
from blip_diffusion.generation.request import GenerationRequest
from blip_diffusion.generation.run import run
from blip_diffusion.generation.subject_inputs import SubjectInput
from blip_diffusion.images import png_bytes

LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)
ORDER = {"prompts": ("on the beach",), "category": "dog", "target_category": "dog", "steps": 1}


def png(seed: int, colour: str) -> bytes:
    image = Image.new("RGB", (40, 40), "white")
    ImageDraw.Draw(image).ellipse((5 + seed, 5, 35, 35), fill=colour)
    return png_bytes(image)


DOG, CAT = png(0, "saddlebrown"), png(4, "black")
TWO = {**ORDER, "reference": DOG, "more_subjects": (SubjectInput((CAT,), "cat", "cat", RIGHT),), "box": LEFT}
MIX = {**ORDER, "reference": DOG, "more_subjects": (SubjectInput((CAT,), "cat", "cat"),)}


@pytest.mark.parametrize(
    "fields",
    [
        TWO,
        {**TWO, "region_mode": "multidiffusion", "subject_scale": (0.5, 1.0, 1.0)},
        {**MIX, "blend": (0.25, 0.75), "blend_mode": "spherical"},
        {**MIX, "more_references": (CAT,), "more_subjects": (), "subject_scale": (0.0, 0.5, 1.0)},
        MIX,
    ],
    ids=["boxes", "multidiffusion", "blend", "mean", "one sentence"],
)
def test_an_image_is_made_again_from_its_metadata(tiny_folder: Path, tmp_path: Path, fields: dict[str, Any]) -> None:
    request = GenerationRequest(**fields, model=str(tiny_folder))
    (first,) = run(request, tmp_path / "out", progress=False)
    (again,) = run(read_request(first), tmp_path / "again", progress=False)
    assert first.read_bytes() == again.read_bytes()
    plain = GenerationRequest(**ORDER, reference=DOG, model=str(tiny_folder))
    assert not np.array_equal(np.asarray(Image.open(first)), np.asarray(Image.open(run(plain, tmp_path / "plain")[0])))


def test_a_row_of_mixtures(tiny_folder: Path, tmp_path: Path) -> None:
    request = GenerationRequest(**MIX, blend_row=3, model=str(tiny_folder))
    *row, page = run(request, tmp_path, grid=tmp_path / "row.png", progress=False)
    made = [read_request(path) for path in row]
    assert [one.blend for one in made] == [(1, 0), (0.5, 0.5), (0, 1)]
    assert [one.target_category for one in made] == ["dog", "dog", "cat"]
    with Image.open(page) as image:
        assert image.size == (5 * 32 + 4 * 2, 32)
    assert read_request(page) == request
    (again,) = run(made[1], tmp_path / "again", progress=False)
    assert again.read_bytes() == row[1].read_bytes()


def test_masks_are_kept_too(tmp_path: Path) -> None:
    mask = png(1, "black")
    request = GenerationRequest(
        **{**MIX, "region_mask": mask, "more_subjects": (SubjectInput((CAT, DOG), "cat", "lion", mask=mask),)}
    )
    path = tmp_path / "image.png"

    path.write_bytes(png_with_metadata(Image.new("RGB", (8, 8)), encode(request)))
    assert decode(io.BytesIO(path.read_bytes()))[0] == request


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"box": None}, "1 boxes or masks for 2 subjects"),
        ({"box": (-0.5, 0.0, 0.5, 1.0)}, "boxes of several subjects lie within the image"),
        ({"blend": (1.0,), "box": None}, "1 weights in --blend for 2"),
        ({"blend": (0.5, 0.5)}, "A mixture is one subject"),
        ({"blend_row": 1, "box": None}, "--blend-row 1"),
        ({"more_subjects": (), "blend": (0.5, 0.5)}, "There is one subject"),
        ({"reference": b""}, "need a reference each"),
        ({"subject_scale": (1.0, 3.0, 1.0)}, "--subject-scale"),
    ],
    ids=str,
)
def test_subjects_that_do_not_fit_together(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        GenerationRequest(**TWO | change)
