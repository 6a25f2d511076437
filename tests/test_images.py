import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from blip_diffusion import images
from blip_diffusion.data.photos import images_in
from blip_diffusion.errors import InputError

RED, WHITE = (255, 0, 0), (255, 255, 255)


@pytest.fixture
def arrow() -> Image.Image:
    """Red above, blue below; 40 wide, 24 high."""
    image = Image.new("RGB", (40, 24), "blue")
    image.paste(RED, (0, 0, 40, 12))
    return image


def saved(image: Image.Image, path: Path, **how: object) -> Path:
    image.save(path, **how)
    return path


# --------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize(
    ("orientation", "size", "red_at"),
    [(1, (40, 24), (20, 2)), (3, (40, 24), (20, 21)), (6, (24, 40), (21, 20)), (8, (24, 40), (2, 20))],
)
def test_exif_rotation(
    arrow: Image.Image, tmp_path: Path, orientation: int, size: tuple[int, int], red_at: tuple[int, int]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = images.open_image(saved(arrow, tmp_path / "turned.png", exif=exif))
    assert image.size == size and image.getpixel(red_at) == RED


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_become_white(tmp_path: Path, mode: str) -> None:
    """And what lies hidden below, black here, does not show."""
    image = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, 20, 10))
    if mode == "P":
        image = image.quantize(4)
    read = images.open_image(saved(image.convert(mode), tmp_path / "clear.png"))
    assert read.mode == "RGB" and read.getpixel((10, 15)) == WHITE
    assert read.getpixel((10, 5)) == (RED if mode != "LA" else (76, 76, 76))


def test_photos_of_iphones_are_read(arrow: Image.Image, tmp_path: Path) -> None:
    """HEIC, upright as its EXIF says; its alpha is a mask as in other formats."""
    heif = pytest.importorskip("pillow_heif")
    exif = Image.Exif()
    exif[0x0112] = 6
    path, cut = tmp_path / "IMG_1.HEIC", tmp_path / "cut.heic"
    heif.from_pillow(arrow.resize((160, 96))).save(path, quality=90, exif=exif.tobytes())
    image = images.open_image(path)
    assert image.mode == "RGB" and image.size == (96, 160)
    assert np.abs(np.subtract(image.getpixel((84, 80)), RED)).max() < 16
    arrow = arrow.resize((160, 96)).convert("RGBA")
    arrow.putalpha(Image.linear_gradient("L").resize(arrow.size).point(lambda value: 255 * (value < 128)))
    heif.from_pillow(arrow).save(cut, quality=90)
    assert np.abs(np.subtract(images.open_image(cut).getpixel((80, 80)), WHITE)).max() < 16
    alpha = images.read_image(cut, images.alpha_of)
    assert alpha is not None and alpha.getpixel((80, 10)) > 240
    assert images_in(tmp_path) == [path, cut]


@pytest.mark.parametrize("size", [0, 12, 200])
def test_a_damaged_heic_file_is_one_sentence(arrow: Image.Image, tmp_path: Path, size: int) -> None:
    heif = pytest.importorskip("pillow_heif")
    path = tmp_path / "a.heic"
    heif.from_pillow(arrow.resize((160, 96))).save(path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(InputError, match=r"a\.heic is not an image that can be read"):
        images.open_image(path)


def test_half_transparent_pixels_are_blended(tmp_path: Path) -> None:
    image = Image.new("RGBA", (20, 20), (0, 0, 0, 127))
    assert images.open_image(saved(image, tmp_path / "half.png")).getpixel((3, 3)) == (128, 128, 128)


def test_transparent_palette_colour(tmp_path: Path) -> None:
    image = Image.new("RGB", (20, 20), RED)
    path = saved(image, tmp_path / "keyed.png", transparency=RED)
    assert images.open_image(path).getpixel((3, 3)) == WHITE


def test_cmyk(tmp_path: Path) -> None:
    image = Image.new("CMYK", (20, 20), (0, 255, 255, 0))
    red, green, blue = images.open_image(saved(image, tmp_path / "print.jpg", quality=100)).getpixel((3, 3))
    assert red > 240 and green < 15 and blue < 15


def test_sixteen_bits(tmp_path: Path) -> None:
    grey = np.linspace(0, 65535, 400).astype(np.uint16).reshape(20, 20)
    read = images.open_image(saved(Image.fromarray(grey), tmp_path / "deep.png"))
    values = np.asarray(read)
    assert values.shape == (20, 20, 3)
    assert np.abs(values[..., 0] - grey / 257).max() <= 1


@pytest.mark.parametrize(
    ("image", "value"),
    [
        (np.full((20, 20), 200, np.uint16), 1),  # nearly black; the brightest pixel must not be scaled to white
        (np.full((20, 20), 65535, np.uint16), 255),
        (np.full((20, 20), 200, np.int32), 1),
        (np.full((20, 20), 32896, np.int32), 128),
        (np.full((20, 20), 0.5, np.float32), 128),
        (np.full((20, 20), 1.0, np.float32), 255),
        (np.full((20, 20), 64.0, np.float32), 64),
    ],
)
def test_value_range_depends_on_the_mode(image: np.ndarray, value: int) -> None:
    assert images.as_rgb(Image.fromarray(image)).getpixel((3, 3)) == (value,) * 3


@pytest.mark.parametrize("mode", ["1", "L"])
def test_grey(tmp_path: Path, mode: str) -> None:
    image = Image.new(mode, (20, 20), 1 if mode == "1" else 200)
    value = 255 if mode == "1" else 200
    assert images.open_image(saved(image, tmp_path / "grey.png")).getpixel((3, 3)) == (value,) * 3


# ------------------------------------------------------------------------------------------------------------ refusals


def test_unreadable_files_are_refused(arrow: Image.Image, tmp_path: Path) -> None:
    text = tmp_path / "notes.png"
    text.write_text("this is no image")
    noisy = Image.effect_noise((200, 200), 80).convert("RGB")
    buffer = io.BytesIO()
    noisy.save(buffer, "PNG")
    cut = tmp_path / "cut.png"
    cut.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    empty = tmp_path / "empty.jpg"
    empty.touch()
    for path in (text, cut, empty):
        with pytest.raises(InputError, match="not an image that can be read"):
            images.open_image(path)
    for path in (tmp_path / "nowhere.png", tmp_path):
        with pytest.raises(InputError, match="no image at"):
            images.open_image(path)


@pytest.mark.parametrize("name", ["png", "jpg", "webp", "avif", "dds"])
def test_damaged_files_raise_only_input_errors(arrow: Image.Image, tmp_path: Path, name: str) -> None:
    """Forty ways to be damaged: read all the same, or refused in words."""
    whole = saved(arrow, tmp_path / f"whole.{name}").read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / f"damaged.{name}"
    for _ in range(40):
        data = bytearray(whole)
        for offset in rng.integers(0, min(len(data), 200), 3):
            data[offset] = rng.integers(0, 256)
        path.write_bytes(bytes(data[: rng.integers(len(data) // 2, len(data) + 1)]))
        try:
            assert images.open_image(path).mode == "RGB"
        except InputError as error:
            assert str(path) in str(error)


def test_sizes(tmp_path: Path) -> None:
    tiny = saved(Image.new("RGB", (1, 1)), tmp_path / "tiny.png")
    with pytest.raises(InputError, match=r"1 x 1 pixels: use one of at least 16 x 16"):
        images.open_image(tiny)


@pytest.mark.parametrize("side", [8_100, 14_200])
def test_too_large(huge_png: Callable[[int], Path], side: int) -> None:
    """66 and 202 megapixels: before and after Pillow's own alarm. Neither is decoded."""
    with pytest.raises(InputError, match="at most 64 megapixels"):
        images.open_image(huge_png(side))


def test_truncated_header_is_refused(tmp_path: Path) -> None:
    """Pillow raises ValueError for this file."""
    path = tmp_path / "header.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sI", 4, b"IHDR", 0) + bytes(8))
    with pytest.raises(InputError, match="not an image that can be read"):
        images.open_image(path)


# ------------------------------------------------------------------------------------------------------------ squares


def test_resize_modes(arrow: Image.Image) -> None:
    wide = Image.new("RGB", (60, 20), "black")
    wide.paste("white", (20, 0, 40, 20))
    crop, squash, pad = (np.asarray(images.fit_square(wide, 20, fit)) for fit in ("crop", "squash", "pad"))
    assert crop.shape == squash.shape == pad.shape == (20, 20, 3)
    assert crop.min() == 255  # the middle third alone
    assert squash[10, 1].max() == 0 and squash[10, 10].min() == 255
    assert pad[1].min() == 255 and pad[10, 1].max() == 0  # white bars above and below
    with pytest.raises(InputError, match="use crop, squash or pad"):
        images.fit_square(wide, 20, "stretch")  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(640, 480), (333, 1000), (224, 224), (100, 75)])
def test_crop_equals_that_of_lavis(size: tuple[int, int]) -> None:
    """Short side to 224 by bicubic resampling, then the centre, as LAVIS does."""
    image = Image.effect_noise(size, 80).convert("RGB")
    scale = 224 / min(size)
    width, height = (round(side * scale) for side in size)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - 224) / 2), round((height - 224) / 2)
    expected = np.asarray(resized.crop((left, top, left + 224, top + 224)), dtype=float)
    ours = np.asarray(images.fit_square(image, 224), dtype=float)
    assert np.abs(ours - expected).max() <= 1


def test_extreme_aspect_ratio_needs_little_memory() -> None:
    """Resized as a whole before it is cut, this would be 600 MB, and 9 GB ten times as long."""
    image = Image.new("RGB", (16, 64_000), RED)
    assert images.fit_square(image, 224).getpixel((5, 5)) == RED


# ------------------------------------------------------------------------------------------------------------ tensors


def test_tensor_round_trip(arrow: Image.Image) -> None:
    pixels = images.to_tensor([arrow, arrow])
    assert pixels.shape == (2, 3, 24, 40) and pixels.dtype == torch.float32 and pixels.max() == 1
    assert [image.tobytes() for image in images.to_pil(pixels)] == [arrow.tobytes()] * 2


def test_images_are_clamped_and_rounded() -> None:
    pixels = torch.tensor([-1.0, 0.5, 2.0]).view(1, 3, 1, 1)
    assert images.to_pil(pixels)[0].getpixel((0, 0)) == (0, 128, 255)


def test_normalise() -> None:
    pixels = torch.tensor([0.5, 0.5, 1.0]).view(1, 3, 1, 1)
    assert images.normalise(pixels, (0.5, 0.25, 0), (1, 0.5, 2)).flatten().tolist() == [0, 0.5, 0.5]


def test_grid(arrow: Image.Image) -> None:
    page = images.grid([arrow] * 3, 2, gap=4)
    assert page.size == (84, 52)
    assert page.getpixel((44, 2)) == RED and page.getpixel((41, 2)) == WHITE and page.getpixel((60, 40)) == WHITE


def test_page_upsamples_small_columns() -> None:
    page = images.column_page([torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 16, 16)])
    assert page.size == (34, 34)
    assert page.getpixel((15, 15)) == (0, 0, 0) and page.getpixel((20, 15)) == WHITE


@pytest.mark.parametrize("kind", ["EPS", "PPM", "PDF", "ICO"])
def test_only_named_formats_are_opened(tmp_path: Path, arrow: Image.Image, kind: str) -> None:
    """Others start programs, as Ghostscript for EPS, whatever the file is called."""
    path = tmp_path / "dog.png"
    arrow.save(path, kind)
    with pytest.raises(InputError, match="is not an image that can be read: use a PNG, JPEG or WebP file"):
        images.open_image(path)


def test_minimum_image_side(tmp_path: Path) -> None:
    assert images.open_image(saved(Image.new("RGB", (16, 1024)), tmp_path / "thin.png")).size == (16, 1024)
    with pytest.raises(InputError, match="16 x 1025 pixels, which is too thin"):
        images.open_image(saved(Image.new("RGB", (16, 1025)), tmp_path / "line.png"))
