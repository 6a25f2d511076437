"""Images: reading, conversion between PIL and tensors, and resizing to squares.

Tensors of images are float, (B, 3, H, W), in [0, 1], unless a name says otherwise. Torch and NumPy are imported
where they are used.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal, TypeVar

from PIL import Image, ImageOps

from blip_diffusion.errors import InputError
from blip_diffusion.fileio import path_exists

if TYPE_CHECKING:
    from torch import Tensor

ResizeMode = Literal["crop", "squash", "pad", "subject"]
"""How an image becomes square: `crop` to the middle (as the original does), `squash` both sides (as diffusers does),
`pad`, or crop to the `subject`."""

Source = str | Path | IO[bytes]
"""An image's path, or an open file."""

Read = TypeVar("Read")

MIN_SIDE = 16
MAX_PIXELS = 64_000_000
MAX_ASPECT = 64
"""Largest ratio of the sides: a longer image, resized to a usual height, would take gigabytes."""
MAX_PHOTOS = 30
"""Most photos of one subject; the paper and DreamBooth use three to seven."""
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "HEIF")
"""Formats that are read; HEIF with the extra `heic`. Pillow reads others too, and runs Ghostscript for one of them."""


def open_lazily(source: Source) -> Image.Image:
    """Open a file of one of `FORMATS` without decoding it. Raises Pillow's error for any other."""
    return Image.open(source, formats=_formats())


@cache
def _formats() -> list[str]:
    """Return those of `FORMATS` that Pillow can read here. Thread-safe."""
    Image.init()
    if find_spec("pillow_heif") is not None:
        import pillow_heif

        pillow_heif.register_heif_opener()
    return [name for name in FORMATS if name in Image.OPEN]


def open_image(source: Source) -> Image.Image:
    """Open an image file as upright RGB on white. Raises `InputError` for a missing or unusable file."""
    return read_image(source, as_rgb)


def png_bytes(image: Image.Image) -> bytes:
    """Return an image as the bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def read_image(source: Source, read: Callable[[Image.Image], Read]) -> Read:
    """Apply `read` to an image file, after the checks of `open_image`."""
    name = str(Path(source)) if isinstance(source, str | Path) else "The image within"
    if isinstance(source, str | Path) and not path_exists(Path(source), Path.is_file):
        raise InputError(f"There is no image at {name}: check the path.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with open_lazily(source) as image:
                check_size(image, name)
                return read(image)
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        limit = f"{MAX_PIXELS // 10**6} megapixels"
        raise InputError(f"{name} is too large: use an image of at most {limit}.") from error
    except Exception as error:  # for damaged files, Pillow raises errors of many types
        raise InputError(f"{name} is not an image that can be read: {_advice(name)}.") from error


def _advice(name: str) -> str:
    heic = name.lower().endswith((".heic", ".heif")) and find_spec("pillow_heif") is None
    return "pip install 'blip-diffusion[heic]'" if heic else "use a PNG, JPEG or WebP file"


def check_size(image: Image.Image, name: str = "The reference") -> None:
    """Raise `InputError` for an image that is too small or too large."""
    width, height = image.size
    if min(width, height) < MIN_SIDE:
        raise InputError(f"{name} has {width} x {height} pixels: use one of at least {MIN_SIDE} x {MIN_SIDE}.")
    if width * height > MAX_PIXELS:
        raise InputError(
            f"{name} has {width * height / 1e6:.0f} megapixels: use one of at most {MAX_PIXELS // 10**6} megapixels."
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise InputError(f"{name} has {width} x {height} pixels, which is too thin to show a subject: crop it.")


def as_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to upright (EXIF) 8-bit RGB; transparent pixels become white."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = _eight_bits(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Convert 16-bit integers, which Pillow may hold in 32 bits, or floats in [0, 1] or [0, 255], to 8 bits."""
    import numpy as np

    values = np.asarray(image, dtype=np.float32)
    scale = 1 / 257 if image.mode != "F" else 255 if values.max() <= 1 else 1
    return Image.fromarray((values * np.float32(scale)).round().clip(0, 255).astype(np.uint8))


def alpha_of(image: Image.Image) -> Image.Image | None:
    """Return an image's alpha channel, upright; `None` if it has none."""
    if image.mode not in ("RGBA", "LA", "PA") and "transparency" not in image.info:
        return None
    alpha = ImageOps.exif_transpose(image).convert("RGBA").getchannel("A")
    darkest, brightest = alpha.getextrema()
    return alpha if darkest != brightest else None


def fit_square(image: Image.Image, size: int, fit: ResizeMode = "crop", *, bars: str = "white") -> Image.Image:
    """Resize an image to `size` x `size` bicubically; `bars` is the colour of padding."""
    match fit:
        case "squash":
            return image.resize((size, size), Image.Resampling.BICUBIC)
        case "pad":
            return ImageOps.pad(image, (size, size), Image.Resampling.BICUBIC, color=bars)
        case "crop":
            scale = size / min(image.size)
            width, height = (max(size, round(side * scale)) for side in image.size)
            left, top = round((width - size) / 2), round((height - size) / 2)
            x, y = image.width / width, image.height / height  # resize only the crop, which is faster for long images
            box = (left * x, top * y, (left + size) * x, (top + size) * y)
            return image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    raise InputError(f"There is no resize mode {fit!r}: use crop, squash or pad.")


def to_tensor(images: Sequence[Image.Image]) -> Tensor:
    """Convert equal-sized RGB images to (B, 3, H, W) in [0, 1]."""
    import numpy as np
    import torch

    stacked = np.stack([np.asarray(image, dtype=np.float32) for image in images])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous() / 255


def to_pil(pixels: Tensor) -> list[Image.Image]:
    """Convert pixels (B, 3, H, W) in [0, 1] to images, clamped and rounded to 8 bits."""
    array = (pixels.detach().float().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(image) for image in array]


def preprocess(pixels: Tensor, side: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Convert images (B, 3, H, W) in [0, 1] to an image encoder's input: (B, 3, S, S), normalised."""
    if pixels.shape[-2:] != (side, side):
        import torch.nn.functional as F

        pixels = F.interpolate(pixels, (side, side), mode="bicubic", antialias=True).clamp(0, 1)
    return normalise(pixels, mean, std)


def normalise(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalise pixels in [0, 1] by mean and standard deviation."""
    shape = (1, 3, 1, 1)
    return (pixels - pixels.new_tensor(mean).view(shape)) / pixels.new_tensor(std).view(shape)


def grid(images: Sequence[Image.Image], columns: int, *, gap: int = 2) -> Image.Image:
    """Return a grid of equal-sized images, row by row, on white."""
    width, height = images[0].size
    rows = -(-len(images) // columns)
    page = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for index, image in enumerate(images):
        page.paste(image, (index % columns * (width + gap), index // columns * (height + gap)))
    return page


def column_page(columns: Sequence[Tensor], *, gap: int = 2) -> Image.Image:
    """Return columns of images (B, 3, H, W) in [0, 1], side by side; smaller ones are enlarged to the largest."""
    import torch.nn.functional as F

    side = max(column.shape[-1] for column in columns)
    rows = [F.interpolate(column.float(), (side, side), mode="bilinear", antialias=True) for column in columns]
    cells = [image for row in zip(*map(to_pil, rows), strict=True) for image in row]
    return grid(cells, len(columns), gap=gap)
