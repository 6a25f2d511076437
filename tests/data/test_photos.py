"""Photos of users: conversion to squares, masks, and errors."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from blip_diffusion.data.photos import Photo, PhotoBatches, read_photos, squares
from blip_diffusion.errors import InputError


def save(image: Image.Image, path: Path, **how: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **how)  # type: ignore[arg-type]
    return path


@pytest.fixture
def folder(tmp_path: Path, dog: Image.Image) -> Path:
    """Ten photos in every mode and size, one of them broken, and a text file."""
    exif = Image.Exif()
    exif[0x0112] = 6  # lying on its side
    modes = {
        "a-rgb.png": dog,
        "b-grey.png": dog.convert("L"),
        "c-cmyk.jpg": dog.convert("CMYK"),
        "d-palette.gif": dog.convert("P"),
        "e-rgba.png": dog.convert("RGBA"),
        "f-16bit.png": Image.fromarray(np.asarray(dog.convert("L"), dtype=np.uint16) * 257),
        "g-large.webp": dog.resize((640, 480)),
        "i-tall.png": dog.resize((48, 90)),
        "j-tiff.tif": dog,
    }
    for name, image in modes.items():
        save(image, tmp_path / "photos" / name)
    save(dog, tmp_path / "photos" / "h-turned.jpg", exif=exif)
    (tmp_path / "photos" / "k-broken.jpg").write_bytes(b"\xff\xd8 this is no image")
    (tmp_path / "photos" / "notes.txt").write_text("not a photo")
    return tmp_path / "photos"


def test_photos_of_every_mode_become_square_and_broken_ones_are_named(folder: Path) -> None:
    with pytest.warns(UserWarning, match="left out. .*k-broken.jpg is not an image") as caught:
        photos = read_photos([folder])
    assert len(caught) == 1 and [photo.name[0] for photo in photos] == list("abcdefghij")
    pixels, masks = squares(photos, 32)
    assert pixels.shape == (10, 3, 32, 32) and masks.shape == (10, 1, 32, 32)
    assert pixels.isfinite().all() and pixels.min() >= 0 and pixels.max() <= 1
    colour = pixels[0]
    for letter in "cdegj":  # the same image, however it was kept
        assert (pixels["abcdefghij".index(letter)] - colour).abs().mean() < 0.06, letter
    assert (pixels[5] - pixels[1]).abs().mean() < 0.01  # 16 bits as 8
    upright = photos["abcdefghij".index("h")].image
    assert upright.size == (48, 64)


def test_images_and_files_can_be_mixed(tmp_path: Path, dog: Image.Image) -> None:
    photos = read_photos([save(dog, tmp_path / "x.png"), dog, str(tmp_path / "x.png")])
    assert [photo.name for photo in photos] == ["x.png", "photo 2", "x.png"]


@pytest.mark.parametrize(
    ("sources", "sentence"),
    [
        ([], "no photos"),
        (["nowhere.png"], "There is no photo at nowhere.png: check the path"),
        (["empty"], "no images in empty"),
        (["bad.png", "bad.png"], "None of the 2 photos can be used: bad.png is not an image"),
        (["good.png"] * 31, "31 photos: choose at most 30"),
    ],
)
def test_unusable_photos_are_refused(
    sources: list[str], sentence: str, tmp_path: Path, dog: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("bad.png").write_bytes(b"bad")
    dog.save("good.png")
    with pytest.raises(InputError, match=sentence):
        read_photos(sources)


def test_hidden_files_and_folders_are_ignored(tmp_path: Path, dog: Image.Image) -> None:
    save(dog, tmp_path / "x.png")
    (tmp_path / "._x.png").write_bytes(b"what macOS writes beside it")
    (tmp_path / ".DS_Store").touch()
    assert len(read_photos([tmp_path])) == 1
    save(dog, tmp_path / "more" / "y.png")
    with pytest.warns(UserWarning, match="more aren't read: name that folder too"):
        assert len(read_photos([tmp_path])) == 1


# --------------------------------------------------------------------------------------------------------------- masks


def spot(size: tuple[int, int]) -> Image.Image:
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).rectangle((0, 0, size[0] // 2, size[1]), fill=255)
    return mask


@pytest.mark.parametrize("colour", ["white", "black", "peru"])
def test_mask_may_be_a_cutout(tmp_path: Path, dog: Image.Image, colour: str) -> None:
    """The subject in any colour on a transparent ground."""
    cut = Image.new("RGBA", dog.size, colour)
    cut.putalpha(spot(dog.size))
    (photo,) = read_photos([save(dog, tmp_path / "dog.png")], masks=[save(cut, tmp_path / "mask.png")])
    assert photo.mask is not None and np.array_equal(np.asarray(photo.mask), np.asarray(spot(dog.size)))


def test_mask_is_given_or_transparency_or_segmented_or_none(tmp_path: Path, dog: Image.Image) -> None:
    see_through = dog.convert("RGBA")
    see_through.putalpha(spot(dog.size))
    clear, plain = save(see_through, tmp_path / "clear.png"), save(dog, tmp_path / "plain.png")
    given = save(spot(dog.size).resize((128, 96)), tmp_path / "mask.png")
    result = Image.new("L", dog.size, 200)

    def masks(**how: object) -> list[Image.Image | None]:
        return [photo.mask for photo in read_photos([clear, plain], **how)]  # type: ignore[arg-type]

    assert masks(masks="none") == [None, None]
    transparency, missing = masks()
    assert transparency is not None and missing is None
    assert np.array_equal(np.asarray(transparency), np.asarray(spot(dog.size)))
    assert masks(segmenter=lambda image: result)[1] is result
    assert masks(segmenter=lambda image: Image.new("L", image.size))[1] is None  # an empty mask
    named = masks(masks=[given, given], segmenter=lambda image: result)
    assert [mask.size for mask in named if mask] == [dog.size, dog.size]


def test_mismatched_masks_are_refused(tmp_path: Path, dog: Image.Image) -> None:
    photo = save(dog, tmp_path / "dog.png")
    with pytest.raises(InputError, match="1 masks for 2 photos"):
        read_photos([photo, photo], masks=[photo])
    with pytest.raises(InputError, match="of another shape"):
        read_photos([photo], masks=[save(Image.new("L", (99, 33), 255), tmp_path / "long.png")])
    with pytest.raises(InputError, match="is entirely black"):
        read_photos([photo], masks=[save(Image.new("L", dog.size), tmp_path / "black.png")])
    with pytest.raises(InputError, match="no masks called 'some'"):
        read_photos([photo], masks="some")  # type: ignore[arg-type]


def test_subject_outside_the_square_gives_a_warning(dog: Image.Image) -> None:
    mask = Image.new("L", dog.size)
    ImageDraw.Draw(mask).rectangle((0, 0, 4, 48), fill=255)
    with pytest.raises(InputError, match=r"subject of rex.png lies outside .* --resize-mode pad"):
        squares([Photo("rex.png", dog, mask)], 32)
    assert squares([Photo("rex.png", dog, mask)], 32, "squash")[1].any()


def test_letterbox_bars_are_not_a_subject(dog: Image.Image) -> None:
    """Of an image of 64 x 48, `pad` adds a quarter."""
    pixels, masks = squares([Photo("rex.png", dog, spot(dog.size)), Photo("ben.png", dog)], 32, "pad")
    assert pixels[0, :, :3].min() == 1  # the image's own bars stay white
    assert not masks[0, :, :3].any() and not masks[0, :, -3:].any() and masks[0, :, 16, :15].min() > 0.9
    assert masks[1].min() == 1  # there is no mask


def test_vanishing_subject_does_not_suggest_pad() -> None:
    mask = Image.new("L", (640, 480))
    mask.putpixel((0, 0), 255)
    with pytest.raises(InputError, match=r"rex\.png is too small to be visible at 16 x 16: crop the photo"):
        squares([Photo("rex.png", Image.new("RGB", mask.size), mask)], 16, "pad")


# ------------------------------------------------------------------------------------------------------------- batches


def test_batches_depend_on_the_index_and_use_all_photos_equally() -> None:
    latents = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 4, 2, 2)
    batches = PhotoBatches(latents, torch.ones(5, 1, 16, 16), batch_size=3, seed=1, prior=latents[:2] + 10)
    values = [int(value) for index in range(10) for value in batches(index)["latents"][:, 0, 0, 0]]
    assert sorted(values) == sorted([*range(5)] * 6)
    assert all(sorted(values[start : start + 5]) == [*range(5)] for start in range(0, 30, 5))
    assert len({tuple(values[start : start + 5]) for start in range(0, 30, 5)}) > 1  # not always in the same order
    again = PhotoBatches(latents, torch.ones(5, 1, 16, 16), batch_size=3, seed=1)
    assert torch.equal(again(7)["latents"], batches(7)["latents"])
    assert "prior" not in again(0) and batches(0)["prior"].shape == (3, 4, 2, 2)
    assert batches(0)["mask"].shape == (3, 1, 2, 2)


def test_single_photo_is_enough() -> None:
    batch = PhotoBatches(torch.ones(1, 4, 2, 2), torch.ones(1, 1, 4, 4), batch_size=3)(5)
    assert batch["latents"].shape == (3, 4, 2, 2)


def test_valid_photos_give_no_warning(tmp_path: Path, dog: Image.Image) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_photos([save(dog, tmp_path / "dog.png")])
