"""Small hostile tables and shards of captioned images."""

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

from .images import EPS, encoded, noise

Spoil = Callable[[Path], object]
"""Change a folder that holds `1.png` and `metadata.jsonl`."""


def _line(**change: object) -> Spoil:
    """The one line of the table, changed."""
    table = {"file_name": "1.png", "text": "a dog on grass", "category": "dog", **change}
    return lambda folder: (folder / "metadata.jsonl").write_text(json.dumps(table))


def _bytes(data: bytes) -> Spoil:
    return lambda folder: (folder / "metadata.jsonl").write_bytes(data)


def _instead(make: Callable[[Path], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / "metadata.jsonl").unlink()
        make(folder / "metadata.jsonl")

    return spoil


def _linked(folder: Path) -> None:
    (folder / "link.png").symlink_to("/etc/passwd")
    _line(file_name="link.png")(folder)


def _other_table(folder: Path) -> None:
    (folder / "metadata.jsonl").unlink()
    (folder / "metadata.csv").write_text("file_name,text\n1.png,=cmd|' /C calc'!A0\n")


def _no_image(data: bytes) -> Spoil:
    return lambda folder: (folder / "1.png").write_bytes(data)


FOLDERS: dict[str, Spoil] = {
    "empty": _bytes(b""),
    "no JSON": _bytes(b"{"),
    "list": _bytes(b"[1]"),
    "number": _bytes(b"7"),
    "deep": _bytes(b"[" * 50_000),
    "key given twice": _bytes(b'{"file_name": "1.png", "text": "a dog", "category": "dog", "text": "a cat"}'),
    "long line": _bytes(b"1" * 200_000),
    "digits": _bytes(b'{"file_name": ' + b"9" * 9000 + b"}"),
    "not UTF-8": _bytes(b'{"file_name": "\xff\xfe.png", "text": "a dog"}'),
    "Latin-1": _bytes('{"file_name": "1.png", "text": "caf\xe9"}'.encode("latin-1")),
    "UTF-16": _bytes('{"file_name": "1.png", "text": "a dog"}'.encode("utf-16")),
    "twice": _bytes(b'{"file_name": "1.png", "text": "a dog"}\n{"file_name": "./1.png", "text": "a cat"}'),
    "NUL": _bytes(bytes(5000)),
    "named pipe": _instead(os.mkfifo),
    "device": _instead(lambda path: path.symlink_to("/dev/zero")),
    "folder": _instead(Path.mkdir),
    "another table": _other_table,
    "path outside": _line(file_name="../../../etc/passwd"),
    "absolute path": _line(file_name="/etc/passwd"),
    "link outside": _linked,
    "long name": _line(file_name="n" * 5000),
    "name with NUL": _line(file_name="a\0b"),
    "name with escapes": _line(file_name="\x1b]0;x\x07\nblip-diffusion: all is well"),
    "name that is no text": _line(file_name=["1.png"]),
    "no name": _line(file_name=None),
    "no caption": _line(text=""),
    "caption that is no text": _line(text={"a": 1}),
    "caption that is a truth value": _line(text=True),
    "caption of spaces": _line(text=" \u2028\t "),
    "invisible caption": _line(text="\u200b\ufeff"),
    "mask that is no text": _line(mask=[]),
    "mask that is a truth value": _line(mask=False),
    "caption that is not finite": _line(text=float("nan")),
    "long caption": _line(text="dog " * 5000),
    "half a letter": _line(text="a dog \ud800"),
    "category that is no text": _line(category=[]),
    "long category": _line(category="dog " * 100),
    "escapes in the category": _line(category="dog\x1b[2J"),
    "NUL in the caption": _line(text="a \0 dog"),
    "split that is no text": _line(split={}),
    "unknown split": _line(split="tset"),
    "no such mask": _line(mask="no.png"),
    "mask outside": _line(mask="/etc/passwd"),
    "EPS": _no_image(EPS),
    "text as an image": _no_image(b"not an image"),
}
"""Folders of captioned images that can't be trained on."""


def _shard(*members: tuple[str, bytes], kind: bytes = tarfile.REGTYPE, claimed: int | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as files:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, "/etc/passwd", len(data) if claimed is None else claimed
            if claimed is None:
                files.addfile(info, io.BytesIO(data) if kind == tarfile.REGTYPE else None)
            else:
                buffer.write(info.tobuf())
    return buffer.getvalue()


def _sample(table: bytes, image: bytes | None = None) -> bytes:
    return _shard(("1.png", encoded(noise(), "PNG") if image is None else image), ("1.json", table))


SHARDS: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "text": lambda: b"not a shard" * 100,
    "zeros": lambda: bytes(2048),
    "no image": lambda: _shard(("1.txt", b"a dog")),
    "no caption": lambda: _shard(("1.png", encoded(noise(), "PNG"))),
    "link": lambda: _shard(("1.png", b""), kind=tarfile.SYMTYPE),
    "hard link": lambda: _shard(("1.png", b""), kind=tarfile.LNKTYPE),
    "device": lambda: _shard(("1.png", b""), kind=tarfile.CHRTYPE),
    "named pipe": lambda: _shard(("1.png", b""), kind=tarfile.FIFOTYPE),
    "16 GiB": lambda: _shard(("1.png", b""), claimed=2**34),
    "long header": lambda: _shard(("n" * 3_000_000, b"")),
    "truncated": lambda: _sample(b'{"text": "a dog"}')[:1000],
    "no JSON": lambda: _sample(b"{"),
    "deep JSON": lambda: _sample(b"[" * 50_000),
    "JSON list": lambda: _sample(b"[1]"),
    "large JSON": lambda: _sample(b" " * 200_000),
    "caption that is no text": lambda: _sample(b'{"text": [1]}'),
    "half a letter": lambda: _sample(b'{"text": "a \\ud800"}'),
    "Latin-1": lambda: _sample('{"text": "caf\xe9"}'.encode("latin-1")),
    "twice": lambda: _shard(("1.png", b""), ("1.png", b"")),
    "EPS": lambda: _sample(b'{"text": "a dog", "category": "dog"}', EPS),
    "text as an image": lambda: _sample(b'{"text": "a dog", "category": "dog"}', b"not an image"),
}
"""Tar shards that can't be trained on."""
