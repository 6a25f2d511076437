"""Tar shards of images with captions, in webdataset's layout, read at any place.

    00001.jpg 00001.txt 00001.json 00001.mask.png      members that share the name before the first dot are one sample

The caption is in `.txt`, or in `.json` as in `metadata.jsonl`. The webdataset library streams shards, and a resumed run
must give the batch of any step; so shards are indexed once by the standard library's `tarfile`, and never unpacked.
"""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from blip_diffusion.data.captioned.rows import MAX_BYTES, MAX_CAPTION, CaptionedImage, parse_table, row_of
from blip_diffusion.errors import DataError, reason
from blip_diffusion.fileio import BoundedTarInfo, path_exists

IMAGES = ("jpg", "jpeg", "png", "webp")
MASK = "mask.png"
MAX_MEMBERS = 10**6
"""Of one shard; webdataset's usual shards hold ten thousand."""
MAX_JSON = 100_000


class Member(NamedTuple):
    """Position of a member's bytes in its shard."""

    shard: Path
    offset: int
    size: int

    def read(self) -> bytes:
        """Return the bytes."""
        with self.shard.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


def shards_of(path: Path) -> list[Path]:
    """Return a shard, or the shards in a folder by name; none where there are none."""
    if path_exists(path, Path.is_file):
        return [path] if path.suffix == ".tar" else []
    return sorted(one for one in path.glob("*.tar") if one.is_file()) if path_exists(path, Path.is_dir) else []


def read_shards(shards: list[Path]) -> list[CaptionedImage]:
    """Return the samples of shards in their order.

    Raises:
        DataError: If a shard is damaged, holds something else than files, or has no sample with a caption.
    """
    rows = [row for shard in shards for row in _rows_of(shard)]
    if not rows:
        raise DataError(
            f"There is no image with a caption in {shards[0]}: samples need a .txt or .json beside the image."
        )
    return rows


def _rows_of(shard: Path) -> Iterator[CaptionedImage]:
    samples: dict[str, dict[str, Member]] = {}
    for name, member in _members(shard):
        folder, _, file = name.rpartition("/")
        key, _, extension = file.partition(".")
        parts = samples.setdefault(f"{folder}/{key}", {})
        if extension.lower() in parts:
            raise DataError(f"{shard} holds {name[:200]!r} twice: write it again.")
        parts[extension.lower()] = member
    for key, parts in samples.items():
        image = next((parts[kind] for kind in IMAGES if kind in parts), None)
        if image is not None:
            mask = parts[MASK].read if MASK in parts else None
            yield row_of(f"{shard}:{key.lstrip('/')}", _table(parts, shard, key), image.read, mask)


def _table(parts: dict[str, Member], shard: Path, key: str) -> dict[str, object]:
    table: dict[str, object] = {}
    if "txt" in parts:
        table["text"] = _text(parts["txt"], 4 * MAX_CAPTION)
    if "json" in parts:
        table |= parse_table(_text(parts["json"], MAX_JSON), f"{shard}:{key}.json")
    return table


def _text(member: Member, limit: int) -> str:
    if member.size > limit:
        raise DataError(f"{member.shard} holds a text of {member.size} bytes, and captions have at most {limit}.")
    try:
        return member.read().decode("utf-8-sig")
    except ValueError as error:
        raise DataError(f"{member.shard} holds a caption that is not UTF-8 text: write it again.") from error


def _members(shard: Path) -> Iterator[tuple[str, Member]]:
    try:
        with tarfile.open(shard, "r:", tarinfo=BoundedTarInfo) as files:
            for number, info in enumerate(files, start=1):
                if number > MAX_MEMBERS:
                    raise ValueError(f"it has more than {MAX_MEMBERS} members")
                if info.isfile() and not info.issparse():
                    if info.size > MAX_BYTES:
                        raise ValueError(f"{info.name[:200]!r} has more than {MAX_BYTES // 2**20} MiB")
                    yield info.name, Member(shard, info.offset_data, info.size)
                elif not info.isdir():
                    raise ValueError(f"{info.name[:200]!r} is no plain file")
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        raise DataError(f"{shard} is not a shard that can be read ({reason(error)}): write it again.") from error
