"""Generated images on disk. A crashed run resumes where it stopped, and several processes can share the work.

A folder holds the images of one run, and in `settings.json` all settings that they depend on.
"""

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from PIL import Image

from blip_diffusion.argument_checks import whole_number
from blip_diffusion.checkpoint.weights import read_json
from blip_diffusion.errors import CheckpointError, DataError, InputError, reason
from blip_diffusion.evaluation.generators.model import ImageGenerator
from blip_diffusion.evaluation.instances import Instance
from blip_diffusion.fileio import atomic_file, is_full
from blip_diffusion.strict_json import parse_json

SETTINGS, IMAGES = "settings.json", "images"

LogFn = Callable[[str], None]
"""Called with a line of progress."""


def silent(_line: str) -> None:
    """Log nothing."""


MAX_SHARDS = 999_999


@dataclass(frozen=True)
class Shard:
    """Part `index` of `count`, from 1. The parts are disjoint and cover all instances."""

    index: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        whole_number("index", self.index, 1, whole_number("count", self.count, 1, MAX_SHARDS))

    @staticmethod
    def parse(text: str) -> "Shard":
        """Read a shard written as "2/8"."""
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise InputError(f"--shard is {text}: write 2/8 for the second of eight parts.")
        return Shard(int(match[1]), int(match[2]))

    def select(self, instances: Sequence[Instance], *, by_subject: bool = False) -> list[Instance]:
        """Return this part's instances; `by_subject` keeps all instances of a subject in one part."""
        if not by_subject:
            return list(instances[self.index - 1 :: self.count])
        names = list(dict.fromkeys(one.subject.name for one in instances))[self.index - 1 :: self.count]
        return [instance for instance in instances if instance.subject.name in names]


def claim_output_dir(folder: Path, settings: Mapping[str, Any]) -> None:
    """Claim a folder for a run with these settings.

    Raises:
        DataError: If the folder holds the images of a run with other settings.
        InputError: If it can't be written to.
    """
    path, text = folder / SETTINGS, json.dumps(settings, indent=1)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        first = _write_if_absent(path, text)
    except OSError as error:
        raise InputError(f"Nothing can be written to {folder} ({error.strerror}): choose another --out.") from error
    if not first:
        _check_same_settings(path, parse_json(text))


def _write_if_absent(path: Path, text: str) -> bool:
    """Write a file unless it exists, and return whether it was written. Of several processes, exactly one writes it."""
    partial = _partial_path(path)
    try:
        partial.write_text(text, encoding="utf-8")
        os.link(partial, path)  # appears at once with all its content
        return True
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        return _create(path, text)
    finally:
        partial.unlink(missing_ok=True)


def _create(path: Path, text: str) -> bool:
    try:
        file = path.open("x", encoding="utf-8")
    except FileExistsError:
        return False
    try:
        with file:
            file.write(text)
    except OSError:
        path.unlink(missing_ok=True)  # an incomplete file would make the folder another run's
        raise
    return True


def _partial_path(path: Path) -> Path:
    """Return a unique temporary name next to a file: two machines may share a folder and a process id."""
    return path.with_name(f".{path.name}.{uuid4().hex}")


def _check_same_settings(path: Path, settings: Mapping[str, Any]) -> None:
    try:
        existing = read_json(path)
    except CheckpointError as error:
        raise DataError(f"{reason(error)}: choose another --out.") from error
    for key in [*settings, *existing]:
        if existing.get(key) != settings.get(key):
            was, now = _shortened(existing.get(key)), _shortened(settings.get(key))
            raise DataError(
                f"{path.parent} holds the images of another run, whose {key} was {was} and not {now}: "
                "choose another --out."
            )


def _shortened(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def generate_missing(
    generator: ImageGenerator, instances: Sequence[Instance], folder: Path, *, batch_size: int, log: LogFn = silent
) -> list[Path]:
    """Return the image files of instances, after generating those that are missing. No file is ever incomplete.

    Raises:
        InputError: If the folder can't be made, as where a file or a named pipe has its name.
        DataError: If an image can't be written.
    """
    _make_folder(folder)
    missing = [instance for instance in instances if not (folder / instance.file).is_file()]
    for start in range(0, len(missing), batch_size):
        batch = missing[start : start + batch_size]
        for instance, image in zip(batch, generator(batch), strict=True):
            _save(image, folder / instance.file)
        log(f"{folder.name}: {len(instances) - len(missing) + start + len(batch)} of {len(instances)} images")
    return [folder / instance.file for instance in instances]


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if is_full(error):
            raise
        raise InputError(f"{folder} can't be made ({error.strerror}): choose another --out.") from error


def _save(image: Image.Image, path: Path) -> None:
    try:
        with atomic_file(path) as partial:
            image.save(partial, "PNG")
    except OSError as error:
        advice = "free some space, and run it again" if is_full(error) else "choose another --out"
        raise DataError(f"{path} can't be written ({error.strerror or error}): {advice}.") from error
