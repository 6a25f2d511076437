"""Subjects and controls of nodes."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from blip_diffusion.checkpoint.subject_file import Subject, write_subject
from blip_diffusion.comfy.subjects import SubjectInput, control_from_image, mix, subject_from_file, subject_from_images
from blip_diffusion.comfy.tensors import from_pil
from blip_diffusion.errors import CheckpointError, InputError
from blip_diffusion.generation.request import read_reference
from blip_diffusion.generation.subject_refs import SubjectRef

REX, TOM = (
    SubjectInput(word, tuned=(SubjectRef(f"{word}.safetensors", "0", category=word),)) for word in ("dog", "cat")
)


def test_references_are_those_of_a_file(dog: Image.Image, tmp_path: Path) -> None:
    dog.save(tmp_path / "dog.png")
    subject = subject_from_images(from_pil([dog, dog.rotate(90)]), " dog ", "pad")
    assert subject.references[0] == read_reference(tmp_path / "dog.png")
    assert len(subject.references) == 2 and subject.category == "dog" and subject.resize_mode == "pad"
    assert subject_from_images(from_pil([dog]), "dog").resize_mode is None


def test_a_masked_background_becomes_white_as_transparency_does(dog: Image.Image, tmp_path: Path) -> None:
    mask = torch.zeros(1, dog.height, dog.width)
    mask[:, :10] = 1
    cut = dog.copy()
    cut.putalpha(Image.fromarray(((1 - mask[0]) * 255).byte().numpy()))
    cut.save(tmp_path / "cut.png")
    assert subject_from_images(from_pil([dog]), "dog", background=mask).references == (
        read_reference(tmp_path / "cut.png"),
    )


def test_a_category_is_needed(dog: Image.Image) -> None:
    with pytest.raises(InputError, match="The category is empty"):
        subject_from_images(from_pil([dog]), " ")


def test_a_tuned_subject_is_read_from_its_file(tmp_path: Path) -> None:
    write_subject(Subject("rex", "dog", torch.randn(1, 4, 32), "base"), tmp_path / "rex.safetensors")
    assert subject_from_file(tmp_path / "rex.safetensors").category == "dog"
    (tmp_path / "damaged.safetensors").write_bytes(b"no tensors")
    with pytest.raises(CheckpointError):
        subject_from_file(tmp_path / "damaged.safetensors")


def test_weights_are_shares() -> None:
    mixed = mix([REX, TOM], [1.0, 3.0])
    assert [ref.weight for ref in mixed.tuned] == pytest.approx([0.25, 0.75]) and mixed.category == "cat"
    nested = mix([mixed, TOM], [2.0, 2.0])
    assert [ref.weight for ref in nested.tuned] == pytest.approx([0.125, 0.375, 0.5])


@pytest.mark.parametrize(
    ("subjects", "weights", "sentence"),
    [
        ([REX, SubjectInput("dog", (b"png",))], [1.0, 1.0], "Only tuned subjects can be mixed"),
        ([REX, TOM], [1.0, -1.0], "add up to 0"),
    ],
    ids=["references", "zero"],
)
def test_what_cannot_be_mixed(subjects: list[SubjectInput], weights: list[float], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        mix(subjects, weights)


def test_a_control_map_is_computed(dog: Image.Image) -> None:
    control = control_from_image(from_pil([dog]), "canny", 0.5, " folder ", 0.7)
    assert control.kind == "canny" and control.scale == 0.5 and control.controlnet == "folder" and control.end == 0.7
    with pytest.raises(InputError, match="2 control images"):
        control_from_image(from_pil([dog, dog]), "canny")
