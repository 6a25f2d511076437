"""Small hostile image files, and files that only claim to be images."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n{} loop\n"


def noise(side: int = 64) -> Image.Image:
    """Return an image of noise."""
    values = np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(values)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """Return the bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """Return a grey PNG file of given sizes, with further chunks and one row of pixels."""
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    body = (b"IDAT", zlib.compress(b"\0" + bytes(min(width, 4096)))), (b"IEND", b"")
    parts = [struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
             for name, data in (header, *chunks, *body)]  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def flipped(data: bytes, at: int) -> bytes:
    """Return data with one byte inverted."""
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


def nan_tiff() -> bytes:
    """Return a TIFF of floats that are not finite."""
    return encoded(Image.fromarray(np.full((64, 64), np.nan, np.float32)), "TIFF")


BOMB = zlib.compress(bytes(64_000_000), 9)
REFUSED: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "text": lambda: b"not an image",
    "eps": lambda: EPS,
    "pdf": lambda: b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\n",
    "svg": lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "signature alone": lambda: b"\x89PNG\r\n\x1a\n",
    "truncated png": lambda: encoded(noise(), "PNG")[:2000],
    "truncated jpeg": lambda: encoded(noise(), "JPEG")[:900],
    "truncated webp": lambda: encoded(noise(), "WEBP")[:900],
    "truncated tiff": lambda: encoded(noise(), "TIFF")[:900],
    "truncated gif": lambda: encoded(noise(), "GIF")[:300],
    "flipped header": lambda: flipped(encoded(noise(), "PNG"), 18),
    "flipped pixels": lambda: flipped(encoded(noise(), "PNG"), 900),
    "pixel bomb": lambda: png(60_000, 60_000),
    "widest": lambda: png(2**31 - 1, 1),
    "width 0": lambda: png(0, 64),
    "thin": lambda: png(4096, 16),
    "tiny": lambda: encoded(noise(4), "PNG"),
    "one colour": lambda: encoded(Image.new("RGB", (64, 64), "red"), "PNG"),
    "transparent": lambda: encoded(Image.new("RGBA", (64, 64)), "PNG"),
    "profile bomb": lambda: png(64, 64, (b"iCCP", b"x\0\0" + BOMB)),
    "text bomb": lambda: png(64, 64, (b"zTXt", b"blip-diffusion\0\0" + BOMB)),
    "not finite": nan_tiff,
}
"""Files that no command reads as an image of a subject."""

ACCEPTED: dict[str, Callable[[], bytes]] = {
    "jpeg named png": lambda: encoded(noise(), "JPEG"),
    "animated gif": lambda: encoded(noise(), "GIF", save_all=True, append_images=[noise(64).rotate(90)] * 3),
    "animated png": lambda: encoded(noise(), "PNG", save_all=True, append_images=[noise(64).rotate(90)] * 3),
    "cmyk": lambda: encoded(noise().convert("CMYK"), "JPEG"),
    "trailing bytes": lambda: encoded(noise(), "PNG") + b"PK\x03\x04" + bytes(100),
    "sixteen bits": lambda: encoded(Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64) * 15), "PNG"),
}
"""Unusual files that are images nevertheless."""
