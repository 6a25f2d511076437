"""A folder of images with captions, in the layout of the datasets library's `imagefolder`.

    photos/1.jpg  photos/1.txt          the caption in a file beside the image, as kohya's scripts have it
    photos/metadata.jsonl               or {"file_name": "1.jpg", "text": "a dog on the beach"}, one on each line

A line may also have `category`, `subject` (equal for images of one subject), `mask` (a file) and `split`.
"""

from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

from blip_diffusion.data.captioned.rows import MAX_BYTES, MAX_CAPTION, CaptionedImage, parse_table, row_of
from blip_diffusion.errors import DataError
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
    rows = [row for metadata in _metadata_files(folder) for row in _rows_of(metadata)]
    known = {row.name for row in rows}
    rows += [row for path in _images(folder) if str(path) not in known and (row := _row_with_text(path)) is not None]
    if not rows:
        raise DataError(
            f"There is no image with a caption in {folder}: write captions into {METADATA}, or into .txt files."
        )
    return sorted(rows, key=lambda row: row.name)


def captions_in(folder: Path) -> dict[Path, str]:
    """Return the captions of a folder's images by their paths; empty without any."""
    captions = {Path(row.name): row.caption for metadata in _metadata_files(folder) for row in _rows_of(metadata)}
    for path in _images(folder):
        if path not in captions and (text := _text_beside(path)):
            captions[path] = text
    return captions


def caption_reader() -> Callable[[Path], str]:
    """Return a function from an image file to its caption, empty if it has none; each folder's table is read once."""
    read_table = cache(captions_in)

    def caption_of(image: Path) -> str:
        if path_exists(image.parent / METADATA, Path.is_file) and (caption := read_table(image.parent).get(image)):
            return caption
        return _text_beside(image)

    return caption_of


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
    text = path.with_suffix(".txt")
    return _small_text(text, 4 * MAX_CAPTION).strip() if path_exists(text, Path.is_file) else ""


def _small_text(path: Path, limit: int) -> str:
    if path.stat().st_size > limit:
        raise DataError(f"{path} has {path.stat().st_size} bytes, and captions at most {limit}: is it a caption?")
    try:
        return path.read_text(encoding="utf-8-sig")
    except ValueError as error:
        raise DataError(f"{path} is not UTF-8 text: write the caption anew.") from error


def _rows_of(metadata: Path) -> Iterator[CaptionedImage]:
    if metadata.stat().st_size > MAX_METADATA:
        raise DataError(f"{metadata} has more than {MAX_METADATA // 2**30} GiB: use tar shards.")
    with metadata.open(encoding="utf-8-sig", errors="replace") as file:
        for number in range(1, 2**31):
            line, where = file.readline(MAX_LINE), f"{metadata}, line {number},"
            if not line:
                return
            if len(line) == MAX_LINE:
                raise DataError(f"{where} has more than {MAX_LINE} letters.")
            if line.strip():
                yield _row_of_line(parse_table(line, where), metadata.parent, where)


def _row_of_line(table: dict[str, Any], folder: Path, where: str) -> CaptionedImage:
    image = _named(table.get("file_name"), folder, where)
    mask = _named(table["mask"], folder, where) if table.get("mask") else None
    table = {"text": _text_beside(image), **table}
    return row_of(str(image), table, *_readers(image, mask))


def _named(name: Any, folder: Path, where: str) -> Path:
    """Return a file that a line names, within the folder."""
    path = folder / name if isinstance(name, str) and name else None
    if path is None or not path_exists(path, Path.is_file):
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
