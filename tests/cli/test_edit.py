"""`edit` and `inpaint` from outside: what is written, that it can be made again, and mistakes found at once."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from blip_diffusion.cli.main import main
from blip_diffusion.generation.png_metadata import decode

Run = Callable[..., int]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dog: Image.Image) -> None:
    """Relative paths lie in a folder with a photo, its mask and a reference."""
    monkeypatch.chdir(tmp_path)
    dog.save("dog.png")
    photo = Image.effect_noise((48, 32), 80).convert("RGB")
    mask = Image.new("L", photo.size)
    for page, colour in ((photo, "brown"), (mask, 255)):
        ImageDraw.Draw(page).rectangle((18, 8, 29, 23), fill=colour)
    photo.save("photo.png")
    mask.save("mask.png")
    for name, picture in {
        "black.png": Image.new("L", photo.size),
        "pixel.png": Image.new("RGB", (1, 1)),
        "red.png": Image.new("RGB", photo.size, "red"),
    }.items():
        picture.save(name)


@pytest.fixture
def call(tiny_folder: Path) -> Run:
    def run(command: str, *arguments: object) -> int:
        return main([str(a) for a in (command, *arguments, "--model", tiny_folder, "--seed", 3, "--steps", 3)])

    return run


def pixels(path: str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


EDIT = ("edit", "photo.png", "--from", "cat")
INPAINT = ("inpaint", "photo.png", "--category", "dog")
REFERENCE = ("--reference", "dog.png")
TWO = ("generate", "in snow", *REFERENCE, "--category", "dog", *REFERENCE, "--category", "dog")


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((*EDIT, "--to", "dog", *REFERENCE, "--prompt", "on the beach", "--keep-attention", 0.5), "on-the-beach-3.png"),
        ((*EDIT, "--to", "dog", "--mask", "mask.png", "--inversion", "ddpm"), "cat-to-dog-3.png"),
        (("inpaint", "photo.png", "in snow", "--mask", "mask.png", *REFERENCE, "--category", "dog"), "in-snow-3.png"),
    ],
    ids=["edit", "words", "inpaint"],
)
def test_an_edit_is_made_again(call: Run, arguments: tuple[object, ...], name: str) -> None:
    assert call(*arguments) == 0
    first = Path("out", name).read_bytes()
    request, _ = decode(Path("out", name))
    assert request.edit is not None and request.edit.photo.path == "photo.png" and len(request.edit.photo.sha256) == 64
    assert main([str(arguments[0]), "--reproduce", f"out/{name}", "--out", "again"]) == 0
    assert Path("again", name).read_bytes() == first


def test_pixels_outside_the_mask_are_the_photo_cut_square(call: Run) -> None:
    assert call(*EDIT, "--to", "dog", "--mask", "mask.png", *REFERENCE) == 0
    kept = pixels("mask.png")[:, 8:40] == 0
    assert np.array_equal(pixels("out/cat-to-dog-3.png")[kept], pixels("photo.png")[:, 8:40][kept])


def test_a_changed_photo_is_named(call: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*EDIT, "--to", "dog") == 0
    Image.open("photo.png").rotate(180).save("photo.png")
    assert main(["generate", "--reproduce", "out/cat-to-dog-3.png", "--out", "again"]) == 2
    assert "photo.png has changed" in capsys.readouterr().err and not Path("again/cat-to-dog-3.png").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("edit", "photo.png"), "--from"),
        (("edit", "none.png", "--from", "cat"), "none.png"),
        ((*EDIT, "--mask", "none.png"), "none.png"),
        ((*EDIT, "--mask", "dog.png"), "(64, 48)"),
        ((*EDIT, "--mask", "black.png"), "The mask is empty"),
        ((*EDIT, "--mask", "subject"), "no subject finder"),
        (("edit", "pixel.png", "--from", "cat"), "1 x 1 pixels"),
        (("edit", "red.png", "--from", "cat"), "The photo has only one colour"),
        ((*EDIT, "--to", " "), "category is empty"),
        ((*EDIT, "--box", 0.6, 0, 0.4, 1), "The box is"),
        ((*EDIT, "--strength", "0"), "--strength"),
        ((*EDIT, "--keep-shape"), "--keep-attention"),
        ((*EDIT, *REFERENCE, "--subject", "rex.safetensors"), "exclude"),
        ((*EDIT, "--preset", "turbo", "--lora", "none.safetensors"), "none.safetensors"),
        (("inpaint", "photo.png", "--mask", "mask.png"), "--category"),
        ((*INPAINT, "--mask", "black.png"), "The mask is empty"),
        ((*INPAINT, "--mask", "dog.png"), "(64, 48)"),
        (("inpaint", "pixel.png", "--category", "dog", "--mask", "pixel.png"), "1 x 1 pixels"),
        ((*TWO, *TWO[2:6], *TWO[2:6], *TWO[2:6]), "give each subject a box or a mask"),
        ((*TWO, "--box", 0, 0, 0.5, 1, "--box", 0.5, 0, 1.5, 1), "lie within the image"),
        ((*TWO, "--region-mask", "mask.png", "--region-mask", "mask.png"), "in the proportions of the image"),
        ((*TWO, "--region-mask", "red.png", "--region-mask", "none.png"), "none.png"),
        (("inpaint", "photo.png", "--mask", "mask.png", "--category", "dog", "--resamplings", "0"), "--resamplings"),
    ],
    ids=lambda value: str(value)[-24:],
)
def test_bad_input_is_one_sentence(
    call: Run, arguments: tuple[object, ...], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*arguments) == 2
    error = capsys.readouterr().err
    assert named in error and error.count("\n") == 1 and not list(Path().glob("out/*.png"))
