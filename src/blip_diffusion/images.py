"""Pictures: PIL to tensors and back, and the only file that knows how a reference is cut to the encoder's square.

Tensors of pictures are float, (B, 3, H, W), in [0, 1], unless a name says otherwise.
"""

import io
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from blip_diffusion.errors import InputError

ResizeMode = Literal["crop", "squash", "pad", "subject"]
"""`crop`: short side, then centre (the original's); `squash`: both sides (diffusers'); `pad`: the whole picture."""

Source = str | Path | IO[bytes]
"""A picture's path, or a file that is open already, as one within another is."""

Read = TypeVar("Read")

MIN_SIDE = 16
MAX_PIXELS = 64_000_000


def open_image(source: Source) -> Image.Image:
    """A picture file as upright RGB on white. Raises `InputError` for what is missing, broken, tiny or huge."""
    return read_image(source, as_rgb)


def png_bytes(picture: Image.Image) -> bytes:
    """A picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def read_image(source: Source, read: Callable[[Image.Image], Read]) -> Read:
    """What `read` makes of a picture file, under the same checks."""
    name = str(Path(source)) if isinstance(source, str | Path) else "The picture within"
    if isinstance(source, str | Path) and not Path(source).is_file():
        raise InputError(f"There is no picture at {name}: check the path.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(source) as picture:
                check_size(picture, name)
                return read(picture)
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        limit = f"{MAX_PIXELS // 10**6} megapixels"
        raise InputError(f"{name} is too large a picture: use one of at most {limit}.") from error
    except Exception as error:  # on a damaged file, Pillow raises whatever it trips over
        raise InputError(f"{name} is not a picture that can be read: use a PNG, JPEG or WebP file.") from error


def check_size(picture: Image.Image, name: str = "The reference") -> None:
    """Raises `InputError` for a picture too small to show a subject, or too large to be one."""
    width, height = picture.size
    if min(width, height) < MIN_SIDE:
        raise InputError(f"{name} has {width} x {height} pixels: use one of at least {MIN_SIDE} x {MIN_SIDE}.")
    if width * height > MAX_PIXELS:
        raise InputError(
            f"{name} has {width * height / 1e6:.0f} megapixels: use one of at most {MAX_PIXELS // 10**6} megapixels."
        )


def as_rgb(picture: Image.Image) -> Image.Image:
    """Upright (EXIF), 8 bit, RGB; what is transparent becomes white."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I") or picture.mode == "F":
        picture = _eight_bits(picture)
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB")
    return picture.convert("RGB")


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Of whole numbers of 16 bits, which Pillow keeps in 32 too, or of floats in [0, 1], else in [0, 255]."""
    values = np.asarray(picture, dtype=np.float32)
    scale = 1 / 257 if picture.mode != "F" else 255 if values.max() <= 1 else 1
    return Image.fromarray((values * np.float32(scale)).round().clip(0, 255).astype(np.uint8))


def alpha_of(picture: Image.Image) -> Image.Image | None:
    """What a picture says of its own transparency, upright, white where it is opaque; `None` where it says nothing."""
    if picture.mode not in ("RGBA", "LA", "PA") and "transparency" not in picture.info:
        return None
    alpha = ImageOps.exif_transpose(picture).convert("RGBA").getchannel("A")
    darkest, brightest = alpha.getextrema()
    return alpha if darkest != brightest else None


def fit_square(picture: Image.Image, size: int, fit: ResizeMode = "crop", *, bars: str = "white") -> Image.Image:
    """A `size` x `size` picture, by bicubic resampling; `bars` is the colour of what `pad` adds."""
    match fit:
        case "squash":
            return picture.resize((size, size), Image.Resampling.BICUBIC)
        case "pad":
            return ImageOps.pad(picture, (size, size), Image.Resampling.BICUBIC, color=bars)
        case "crop":
            scale = size / min(picture.size)
            width, height = (max(size, round(side * scale)) for side in picture.size)
            left, top = round((width - size) / 2), round((height - size) / 2)
            x, y = picture.width / width, picture.height / height  # resizing the crop alone costs a thin picture less
            box = (left * x, top * y, (left + size) * x, (top + size) * y)
            return picture.resize((size, size), Image.Resampling.BICUBIC, box=box)
    raise InputError(f"There is no way to fit a reference called {fit!r}: use crop, squash or pad.")


def to_tensor(pictures: Sequence[Image.Image]) -> Tensor:
    """Equal-sized RGB pictures to (B, 3, H, W) in [0, 1]."""
    stacked = np.stack([np.asarray(picture, dtype=np.float32) for picture in pictures])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous() / 255


def to_pil(pixels: Tensor) -> list[Image.Image]:
    """(B, 3, H, W) in [0, 1], clamped and rounded to 8 bit."""
    array = (pixels.detach().float().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(picture) for picture in array]


def preprocess(pixels: Tensor, side: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Pictures (B, 3, H, W) in [0, 1] as an image encoder takes them: (B, 3, S, S), normalised."""
    if pixels.shape[-2:] != (side, side):
        pixels = F.interpolate(pixels, (side, side), mode="bicubic", antialias=True).clamp(0, 1)
    return normalise(pixels, mean, std)


def normalise(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """[0, 1] to what an image encoder was trained on."""
    shape = (1, 3, 1, 1)
    return (pixels - pixels.new_tensor(mean).view(shape)) / pixels.new_tensor(std).view(shape)


def grid(pictures: Sequence[Image.Image], columns: int, *, gap: int = 2) -> Image.Image:
    """Equal-sized pictures, row by row, on white."""
    width, height = pictures[0].size
    rows = -(-len(pictures) // columns)
    page = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for index, picture in enumerate(pictures):
        page.paste(picture, (index % columns * (width + gap), index // columns * (height + gap)))
    return page


def column_page(columns: Sequence[Tensor], *, gap: int = 2) -> Image.Image:
    """Columns of pictures, each (B, 3, H, W) in [0, 1], side by side; smaller ones are enlarged to the largest."""
    side = max(column.shape[-1] for column in columns)
    rows = [F.interpolate(column.float(), (side, side), mode="bilinear", antialias=True) for column in columns]
    cells = [picture for row in zip(*map(to_pil, rows), strict=True) for picture in row]
    return grid(cells, len(columns), gap=gap)
