"""PIE-Bench (Ju et al. 2024): photos with two prompts each, and the mask of the region to edit.

    mapping_file.json       by key: image_path, original_prompt, editing_prompt, editing_instruction, blended_word, mask
    annotation_images/      the photos

Of its ten kinds of edit, those that replace the subject of the photo fit this project; see `subject_edit`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from blip_diffusion import images
from blip_diffusion.errors import DataError, InputError, reason
from blip_diffusion.strict_json import parse_json

MAPPING, PHOTOS = "mapping_file.json", "annotation_images"
ARTICLES = frozenset({"a", "an", "the"})
MAX_WORDS = 3
"""Most words of a category: "small white cat"."""
_LARGEST = 200_000_000  # bytes of the mapping file


@dataclass(frozen=True)
class PieEdit:
    """One edit that replaces the subject of a photo.

    Args:
        key: Its number in the benchmark.
        photo: Path of the photo.
        source_category: The subject of the photo: "white cat".
        target_category: The new subject: "white dog".
        scene: The words after the subject in both prompts: "sitting on a bench".
        target_prompt: The benchmark's whole prompt of the edit.
        runs: The mask: pairs of a first pixel and a length, in rows of the photo.
    """

    key: str
    photo: Path
    source_category: str
    target_category: str
    scene: str
    target_prompt: str
    runs: tuple[int, ...]

    def open(self) -> tuple[Image.Image, Image.Image]:
        """Return the photo and its mask (mode L), white in the region to edit.

        As in the published code, the outermost pixels are in the mask, because of errors in the annotation there.
        """
        photo = images.open_image(self.photo)
        pixels = np.zeros(photo.width * photo.height, np.uint8)
        for start, length in zip(self.runs[::2], self.runs[1::2], strict=True):
            pixels[start : start + length] = 255
        mask = pixels.reshape(photo.height, photo.width)
        mask[[0, -1]] = mask[:, [0, -1]] = 255
        return photo, Image.fromarray(mask)


def read_pie_bench(folder: Path) -> tuple[list[PieEdit], int]:
    """Read the edits that replace a subject.

    Args:
        folder: The folder of the benchmark.

    Returns:
        The edits, and the number of others, which are skipped.

    Raises:
        DataError: If a file is missing or damaged.
        InputError: If a photo can't be read.

    Example:
        >>> edits, skipped = read_pie_bench(Path("PIE-Bench_v1"))
    """
    path = folder / MAPPING
    entries = _entries(path)
    edits = []
    for key, entry in entries.items():
        try:
            edit = subject_edit(key, entry, folder / PHOTOS)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"has no {error}" if isinstance(error, KeyError) else reason(error)
            raise DataError(f"{path} has a wrong entry {key[:40]!r} ({what}): get the file again.") from error
        if edit is not None:
            images.open_image(edit.photo)  # report a damaged file now, not after an hour of edits
            edits.append(edit)
    if not edits:
        raise DataError(f"{path} has no edit that replaces the subject of a photo: use PIE-Bench's own file.")
    return edits, len(entries) - len(edits)


def subject_edit(key: str, entry: Mapping[str, Any], photos: Path) -> PieEdit | None:
    """Return an entry as an edit of a subject; `None` if it doesn't replace the subject that its prompt begins with.

    The two prompts must be equal from some word on. What comes before, without an article, are the categories: one to
    `MAX_WORDS` words, the last of which are the entry's two `blended_word`, and differ.

    Example:
        >>> entry = {"original_prompt": "a white [cat] on a bench", "editing_prompt": "a white [dog] on a bench", ...}
        >>> subject_edit("1", entry, photos).scene
        'on a bench'
    """
    if not key.isalnum():
        raise ValueError("its number has other characters than letters and digits")
    source, target = (_words(entry[name]) for name in ("original_prompt", "editing_prompt"))
    blended = [word.lower() for word in str(entry["blended_word"]).split()]
    common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(source[::-1], target[::-1], strict=False)))
    subjects = [_without_article(words[: len(words) - common]) for words in (source, target)]
    if not all(1 <= len(subject) <= MAX_WORDS for subject in subjects):
        return None
    last = [subject[-1].lower() for subject in subjects]
    if last != blended or last[0] == last[1]:
        return None
    old, new = (" ".join(subject) for subject in subjects)
    scene = " ".join(target[len(target) - common :])
    return PieEdit(key, _photo(photos, entry), old, new, scene, " ".join(target), _runs(entry["mask"]))


def _entries(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _LARGEST:
            raise DataError(f"{path} is too large: use PIE-Bench's own file.")
        entries = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"There is no {path}: name the folder of PIE-Bench, which holds {MAPPING}.") from error
    except ValueError as error:
        raise DataError(f"{path} can't be read ({reason(error)}): get the file again.") from error
    if not isinstance(entries, dict):
        raise DataError(f"{path} is a list: use PIE-Bench's own file, a table by number.")
    return entries


def _words(prompt: str) -> list[str]:
    """Return the words of a prompt, without the brackets around changed ones."""
    return prompt.replace("[", " ").replace("]", " ").split()


def _without_article(words: list[str]) -> list[str]:
    return words[1:] if words and words[0].lower() in ARTICLES else words


def _photo(photos: Path, entry: Mapping[str, Any]) -> Path:
    """Return the path of a photo, which must lie within the folder of photos."""
    path = Path(str(entry["image_path"]))
    if path.is_absolute() or ".." in path.parts:
        raise ValueError("its image_path leaves the folder")
    return photos / path


def _runs(mask: Sequence[int]) -> tuple[int, ...]:
    """Return checked runs of a mask."""
    if not isinstance(mask, list) or len(mask) % 2 or not all(type(one) is int and one >= 0 for one in mask):
        raise ValueError("its mask is not a list of pairs of numbers")
    return tuple(mask)
