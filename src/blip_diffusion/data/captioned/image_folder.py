"""A folder of images with captions, in the layout of the datasets library's `imagefolder`.

    photos/1.jpg  photos/1.txt          the caption in a file beside the image, as kohya's scripts have it
    photos/metadata.jsonl               or {"file_name": "1.jpg", "text": "a dog on the beach"}, one on each line

A line may also have `category`, `subject` (equal for images of one subject), `mask` (a file) and `split`.
"""

import itertools
from collections.abc import Callable, Iterator
from functools import cache, partial
from os.path import normpath
from pathlib import Path
from typing import Any

from blip_diffusion.control_characters import first_control
from blip_diffusion.data.captioned.rows import MAX_BYTES, MAX_CAPTION, CaptionedImage, parse_table, row_of
from blip_diffusion.errors import DataError
from blip_diffusion.escaping import warn
from blip_diffusion.fileio import path_exists

METADATA = "metadata.jsonl"
OTHER_TABLES = ("metadata.csv", "metadata.parquet")
"""Tables that the datasets library reads, and this does not."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".heic", ".heif", ".avif")
MAX_METADATA = 2**31
MAX_LINE = 100_000


def read_folder(folder: Path) -> list[CaptionedImage]:
    """Return the images in a folder and the folders within that have a caption, sorted by name.

    Raises:
        DataError: If there are none, if `metadata.jsonl` names what is missing, or if there is a table of another kind.
    """
    for table in (path for kind in OTHER_TABLES for path in folder.rglob(kind)):
        raise DataError(f"{table} is not read: write the captions into {METADATA} beside it, one JSON object a line.")
    named: dict[str, str] = {}
    rows = [row for metadata in _metadata_files(folder) for row in _rows_of(metadata, named)]
    rows += [
        row for path in _images(folder) if normpath(path) not in named and (row := _row_with_text(path)) is not None
    ]
    if not rows:
        raise DataError(
            f"There is no image with a caption in {folder}: write captions into {METADATA}, or into .txt files."
        )
    return sorted(rows, key=lambda row: row.name)


def captions_in(folder: Path) -> dict[str, str]:
    """Return the captions of a folder's images by their normal paths (`os.path.normpath`); empty without any."""
    named = {normpath(row.name): row.caption for metadata in _metadata_files(folder) for row in _rows_of(metadata, {})}
    beside = {normpath(path): _text_beside(path) for path in _images(folder) if normpath(path) not in named}
    return named | {path: caption for path, caption in beside.items() if caption}


def caption_reader() -> Callable[[Path], str]:
    """Return a function from an image file to its caption, empty if it has none; each folder's table is read once."""

    @cache
    def read_table(folder: Path) -> dict[str, str]:
        for other in (folder / kind for kind in OTHER_TABLES if path_exists(folder / kind, Path.is_file)):
            warn(f"{other} is not read: write captions into {METADATA} beside it.", stacklevel=4)
        return captions_in(folder) if path_exists(folder / METADATA, Path.is_file) else {}

    return lambda image: read_table(image.parent).get(normpath(image)) or _text_beside(image)


def _metadata_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob(METADATA) if path.is_file())


def _images(folder: Path) -> list[Path]:
    hidden = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    return sorted(path for path in hidden if not path.name.startswith("."))


def _row_with_text(path: Path) -> CaptionedImage | None:
    text = _text_beside(path)
    mask = path.with_name(f"{path.stem}-mask.png")
    return row_of(str(path), {"text": text}, *_readers(path, mask if mask.is_file() else None)) if text else None


def _text_beside(path: Path) -> str:
    file = path.with_suffix(".txt")
    text = _small_text(file, 4 * MAX_CAPTION).strip() if path_exists(file, Path.is_file) else ""
    if first_control(text):
        raise DataError(f"{file} has control characters: write it anew as text.")
    return text


def _small_text(path: Path, limit: int) -> str:
    if path.stat().st_size > limit:
        raise DataError(f"{path} has {path.stat().st_size} bytes, and captions at most {limit}: is it a caption?")
    return _decoded(path.read_bytes(), str(path))


def _rows_of(metadata: Path, named: dict[str, str]) -> Iterator[CaptionedImage]:
    """Yield the rows of a table. `named` has the lines that name each image so far, of several tables."""
    if metadata.stat().st_size > MAX_METADATA:
        raise DataError(f"{metadata} has more than {MAX_METADATA // 2**30} GiB: use tar shards.")
    with metadata.open("rb") as file:
        for number in itertools.count(1):
            line, where = file.readline(MAX_LINE), f"{metadata}, line {number},"
            if not line:
                return
            if len(line) == MAX_LINE:
                raise DataError(f"{where} has more than {MAX_LINE} bytes.")
            if text := _decoded(line, where).strip():
                row = _row_of_line(parse_table(text, where), metadata.parent, where)
                if (first := named.setdefault(normpath(row.name), where)) != where:
                    raise DataError(f"{where} names {row.name}, as {first} does: keep one of them.")
                yield row


def _decoded(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except ValueError as error:
        raise DataError(f"{where} is not UTF-8 text: save it as UTF-8.") from error


def _row_of_line(table: dict[str, Any], folder: Path, where: str) -> CaptionedImage:
    image = _named(table.get("file_name"), folder, where)
    mask = None if table.get("mask") in (None, "") else _named(table["mask"], folder, where, "mask")
    table = {"text": _text_beside(image), **table}
    return row_of(str(image), table, *_readers(image, mask))


def _named(name: Any, folder: Path, where: str, key: str = "file_name") -> Path:
    """Return a file that a line names under a key, within the folder."""
    if not name or not isinstance(name, str):
        raise DataError(f'{where} has no {key}, the name of an image: write {{"{key}": "1.jpg", ...}}.')
    path = folder / name
    if not path_exists(path, Path.is_file):
        raise DataError(f"{where} names the file {str(name)[:200]!r}, which is not in {folder}.")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise DataError(f"{where} names the file {name[:200]!r} outside of {folder}.")
    return path


def _readers(image: Path, mask: Path | None) -> tuple[Any, Any]:
    return partial(_bytes_of, image), None if mask is None else partial(_bytes_of, mask)


def _bytes_of(path: Path) -> bytes:
    if path.stat().st_size > MAX_BYTES:
        raise DataError(f"{path} has more than {MAX_BYTES // 2**20} MiB.")
    return path.read_bytes()
