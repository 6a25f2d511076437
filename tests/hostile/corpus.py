"""Small files that a stranger might send: each function writes one and returns its path."""

import io
import json
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin
from safetensors.numpy import save

Make = Callable[[Path], Path]
"""Write a hostile file into a folder and return its path."""


def _file(name: str, data: bytes | Callable[[], bytes]) -> Make:
    def make(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(data if isinstance(data, bytes) else data())
        return path

    return make


def _folder(name: str) -> Make:
    def make(folder: Path) -> Path:
        (folder / name).mkdir()
        return folder / name

    return make


def _pipe(name: str) -> Make:
    """A named pipe that nobody writes to: reading it would wait forever."""

    def make(folder: Path) -> Path:
        os.mkfifo(folder / name)
        return folder / name

    return make


def _png(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def _noise() -> Image.Image:
    return Image.effect_noise((32, 32), 80).convert("RGB")


def _png_of_size(width: int, height: int) -> bytes:
    """A PNG of which only the header has this size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 64)), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


def _png_with_text_bomb() -> bytes:
    information = PngImagePlugin.PngInfo()
    information.add_text("blip-diffusion", "a" * 20_000_000, zip=True)
    return _png(_noise(), pnginfo=information)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n(hacked) (w) file\nshowpage\n%%EOF\n"

IMAGES: dict[str, Make] = {
    "empty": _file("a.png", b""),
    "text": _file("a.png", b"no image at all"),
    "truncated": _file("a.png", lambda: _png(_noise())[:200]),
    "only a header": _file("a.png", b"\x89PNG\r\n\x1a\n"),
    "huge in its header": _file("a.png", lambda: _png_of_size(200_000, 200_000)),
    "no rows": _file("a.png", lambda: _png_of_size(0, 32)),
    "PostScript": _file("a.png", EPS),
    "SVG": _file("a.png", b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'),
    "one colour": _file("a.png", lambda: _png(Image.new("RGB", (32, 32), "red"))),
    "transparent": _file("a.png", lambda: _png(Image.new("RGBA", (32, 32), (9, 9, 9, 0)))),
    "one pixel": _file("a.png", lambda: _png(Image.new("RGB", (1, 1)))),
    "folder": _folder("a.png"),
    "named pipe": _pipe("a.png"),
    "device": lambda _: Path("/dev/zero"),
}
"""Images that show no subject."""


def _safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _one(shape: list[int], offsets: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"weight": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


class _Command:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("code-was-run",)


WEIGHTS: dict[str, Make] = {
    "empty": _file("a.safetensors", b""),
    "text": _file("a.safetensors", b"no tensors at all"),
    "endless header": _file("a.safetensors", _safetensors({}, length=2**62)),
    "header beyond the file": _file("a.safetensors", _safetensors({}, length=5000)),
    "header without JSON": _file("a.safetensors", _safetensors(b"\xff\xfe{")),
    "deeply nested header": _file("a.safetensors", _safetensors(b'{"a":' + b"[" * 50_000)),
    "header is a list": _file("a.safetensors", _safetensors([1, 2])),
    "data beyond the file": _file("a.safetensors", _safetensors(_one([1000], [0, 4000]))),
    "absurd shape": _file("a.safetensors", _safetensors(_one([2**40, 2**40], [0, 8]), bytes(8))),
    "overlapping": _file(
        "a.safetensors",
        _safetensors({name: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for name in ("a", "b")}, bytes(8)),
    ),
    "unknown precision": _file("a.safetensors", _safetensors(_one([2], [0, 8], "X99"), bytes(8))),
    "not finite": _file("a.safetensors", lambda: save({"weight": np.full((2, 2), np.nan, np.float32)})),
    "foreign tensors": _file("a.safetensors", lambda: save({"weight": np.zeros((2, 2), np.float32)})),
    "pickled command": _file("a.bin", lambda: pickle.dumps(_Command())),
    "pickled command, renamed": _file("a.safetensors", lambda: pickle.dumps(_Command())),
    "folder": _folder("a.safetensors"),
    "named pipe": _pipe("a.safetensors"),
    "device": lambda _: Path("/dev/zero"),
}
"""Files that are no weights of any kind."""

CONFIGS: dict[str, Make] = {
    "empty": _file("a.toml", b""),
    "no TOML": _file("a.toml", b"objective = "),
    "not UTF-8": _file("a.toml", b'objective = "\xff\xfe"'),
    "unknown objective": _file("a.toml", b'objective = "rm -rf"'),
    "unknown key": _file("a.toml", b'objective = "autoencoder"\n[train]\nstep = 3'),
    "number too large": _file("a.toml", b'objective = "autoencoder"\n[train]\nsteps = ' + b"9" * 400),
    "infinite": _file("a.toml", b'objective = "autoencoder"\n[train.optim]\nlr = inf'),
    "of another type": _file("a.toml", b'objective = "autoencoder"\n[train]\nsteps = [1, 2]'),
    "deeply nested": _file("a.toml", b"objective = " + b"[" * 20_000),
    "absurd batch": _file("a.toml", b'objective = "autoencoder"\n[data]\nbatch_size = 100000000000'),
    "folder": _folder("a.toml"),
    "named pipe": _pipe("a.toml"),
    "device": lambda _: Path("/dev/zero"),
}
"""Training configurations that can't be used."""


def _zip(names: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in names.items():
            archive.writestr(name, data)
    return buffer.getvalue()


@cache
def _zip_bomb() -> bytes:
    return _zip({"meta.json": b"[" + b" " * 300_000_000 + b"]"})


ARCHIVES: dict[str, Make] = {
    "empty": _file("world.zip", b""),
    "text": _file("world.zip", b"no archive at all"),
    "without members": _file("world.zip", lambda: _zip({})),
    "path outside": _file("world.zip", lambda: _zip({"../outside.json": b"{}", "/tmp/outside.json": b"{}"})),
    "bomb": _file("world.zip", _zip_bomb),
    "nested metadata": _file("world.zip", lambda: _zip({"meta.json": b"[" * 100_000})),
    "wrong metadata": _file("world.zip", lambda: _zip({"meta.json": b'{"cutouts": 3, "scenes": null}'})),
    "folder": _folder("world.zip"),
    "named pipe": _pipe("world.zip"),
    "device": lambda _: Path("/dev/zero"),
}
"""Asset libraries that can't be used."""
