"""Pictures on disk, drawn once: a crash resumes where it stood, and several processes may share the work.

A folder holds the pictures of one run, and in `settings.json` all that they depend on.
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

from blip_diffusion.errors import DataError, InputError
from blip_diffusion.evaluation.generators.baselines import Draw
from blip_diffusion.evaluation.instances import Case

SETTINGS, PICTURES = "settings.json", "pictures"


@dataclass(frozen=True)
class Shard:
    """Part `index` of `count`, from 1. Together the parts are everything, and no two share a case."""

    index: int = 1
    count: int = 1

    @staticmethod
    def parse(text: str) -> "Shard":
        """ "2/8" """
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise InputError(f"--shard is {text}: write 2/8 for the second of eight parts.")
        return Shard(int(found[1]), int(found[2]))

    def of(self, cases: Sequence[Case], *, whole_subjects: bool = False) -> list[Case]:
        """This part's cases; on request all of a subject's or none, where a subject itself is work."""
        if not whole_subjects:
            return list(cases[self.index - 1 :: self.count])
        names = list(dict.fromkeys(case.subject.name for case in cases))[self.index - 1 :: self.count]
        return [case for case in cases if case.subject.name in names]


def keep_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Claims a folder for these settings. Raises `DataError` where it holds another run's pictures."""
    path, text = folder / SETTINGS, json.dumps(settings, indent=1)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        first = _write_first(path, text)
    except OSError as error:
        raise InputError(f"Nothing can be written to {folder} ({error.strerror}): choose another --out.") from error
    if not first:
        _check_same(path, json.loads(text))


def _write_first(path: Path, text: str) -> bool:
    """Whether a text file is new, and so is now written: of several who begin at once, on any machine, one is first."""
    partial = _partial(path)
    partial.write_text(text, encoding="utf-8")
    try:
        os.link(partial, path)  # there at once, and whole
        return True
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        return _create(path, text)
    finally:
        partial.unlink(missing_ok=True)


def _create(path: Path, text: str) -> bool:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
        return True
    except FileExistsError:
        return False


def _partial(path: Path) -> Path:
    """Beside a file, a name that is nobody else's: two machines may share a folder and the number of a process."""
    return path.with_name(f".{path.name}.{uuid4().hex}")


def _check_same(path: Path, settings: Mapping[str, Any]) -> None:
    try:
        found = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} can't be read: choose another --out.") from error
    for key in [*settings, *found]:
        if found.get(key) != settings.get(key):
            was, now = _short(found.get(key)), _short(settings.get(key))
            raise DataError(
                f"{path.parent} holds the pictures of another run, whose {key} was {was} and not {now}: "
                "choose another --out."
            )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def draw_missing(
    draw: Draw, cases: Sequence[Case], folder: Path, *, batch: int, tell: Callable[[str], None] = lambda _: None
) -> list[Path]:
    """The pictures of cases, of which those are drawn that aren't there yet: each is written whole or not at all."""
    missing = [case for case in cases if not (folder / case.file).is_file()]
    for start in range(0, len(missing), batch):
        some = missing[start : start + batch]
        for case, picture in zip(some, draw(some), strict=True):
            _save(picture, folder / case.file)
        tell(f"{folder.name}: {len(cases) - len(missing) + start + len(some)} of {len(cases)} pictures")
    return [folder / case.file for case in cases]


def _save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    try:
        picture.save(partial, "PNG")
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise DataError(f"{path} can't be written ({error.strerror or error}): make room, and run it again.") from error
