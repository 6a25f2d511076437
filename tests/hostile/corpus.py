"""Small files that a stranger might send: each function writes one and returns its path."""

import os
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

from . import images, weights
from .weights import archive_of

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


def _places(name: str) -> dict[str, Make]:
    return {"folder": _folder(name), "named pipe": _pipe(name), "device": lambda _: Path("/dev/zero")}


def _files(name: str, table: Mapping[str, Callable[[], bytes]]) -> dict[str, Make]:
    return {key: _file(name, make) for key, make in table.items()} | _places(name)


IMAGES = _files("a.png", images.REFUSED)
"""Images that show no subject."""
WEIGHTS = _files("a.safetensors", weights.SAFETENSORS)
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
    **_places("a.toml"),
}
"""Training configurations that can't be used."""


@cache
def _zip_bomb() -> bytes:
    return archive_of({"cutouts.jsonl": b"[" + b" " * 300_000_000 + b"]", "scenes.jsonl": b""})


ROW = b'{"identity": "x", "category": "x", "name": "x", "kind": "3d", "source": "x", "licence": "PD", "split": "train"}'


def _world_of(row: bytes) -> bytes:
    """An asset library of one cut-out and no scene."""
    return archive_of(
        {"cutouts.jsonl": row, "scenes.jsonl": b"", "cutouts/00000.webp": images.encoded(images.noise(), "WEBP")}
    )


ARCHIVES: dict[str, Make] = {
    "empty": _file("world.zip", b""),
    "text": _file("world.zip", b"no archive at all"),
    "without members": _file("world.zip", lambda: archive_of({})),
    "path outside": _file("world.zip", lambda: archive_of({"../outside.json": b"{}", "/tmp/outside.json": b"{}"})),
    "bomb": _file("world.zip", _zip_bomb),
    "nested table": _file("world.zip", lambda: archive_of({"cutouts.jsonl": b"[" * 100_000, "scenes.jsonl": b""})),
    "no subject": _file("world.zip", lambda: archive_of({"cutouts.jsonl": b"", "scenes.jsonl": b""})),
    "image missing": _file("world.zip", lambda: archive_of({"cutouts.jsonl": ROW, "scenes.jsonl": b""})),
    "wrong types": _file("world.zip", lambda: _world_of(ROW.replace(b'"train"', b"[7]"))),
    **_places("world.zip"),
}
"""Asset libraries that can't be used."""
