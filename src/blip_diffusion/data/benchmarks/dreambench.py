"""A benchmark in the layout of DreamBench (Ruiz et al. 2023, google/dreambooth): subjects and prompts.

    dataset/<subject>/00.jpg ...        images of a subject; the first is its reference
    dataset/prompts_and_classes.txt     a table of classes, then prompts for objects and prompts for live subjects
    bench.json                          only in MiniBench: its dataset, and each prompt as a `PromptSpec`
    assets.zip                          the benchmark's assets, if they are not those of the training data

The text file has snippets of Python, which are read as text and never run.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from blip_diffusion import config as configuration
from blip_diffusion import images
from blip_diffusion.data.synthetic import prompt_templates
from blip_diffusion.data.synthetic.prompt_templates import PromptSpec
from blip_diffusion.errors import DataError, InputError, reason
from blip_diffusion.strict_json import parse_json

T = TypeVar("T")

PROMPTS, RECIPE, ASSETS = "prompts_and_classes.txt", "bench.json", "assets.zip"
PUBLISHED = (30, 158)
"""Subjects and images of DreamBench."""
LIVE = frozenset({"cat", "dog"})
"""DreamBench's classes of live subjects, which its files don't mark."""
_NAME = re.compile(r"\w[\w.-]*")
_WORDS = r"([^{}\n]{0,300}?)"  # bounded, so that untrusted files are read in linear time
_TEMPLATE = re.compile(rf"(['\"])an? {_WORDS}\{{0\}} \{{1\}}{_WORDS}\1\.format\(unique_token, class_token\)")
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
_LARGEST = 1_000_000  # bytes of a text file
MAX_ROW = 200
"""Letters of a line in the table of classes."""


@dataclass(frozen=True)
class BenchPrompt:
    """The words around the subject: "a {before} {category} {after}"."""

    before: str
    after: str
    request: PromptSpec | None = None  # the same for a sampler; only in MiniBench

    def sentence(self, category: str) -> str:
        """Return the full prompt, without subject tokens."""
        return " ".join(word for word in ("a", self.before, category, self.after) if word)

    @property
    def kind(self) -> str:
        """One of DreamBench's three: "scene", "accessory" or "property"."""
        if self.request is not None:
            other = self.request != PromptSpec(scene=self.request.scene)
            return "accessory" if self.request.accessory else "property" if other else "scene"
        if self.before:
            return "property"
        return "accessory" if re.search(r"\b(wearing|outfit)\b", self.after) else "scene"


@dataclass(frozen=True)
class BenchSubject:
    """One subject and its images, the reference first."""

    name: str
    category: str
    live: bool
    images: tuple[Path, ...]
    identity: str = ""  # in MiniBench's dataset


@dataclass(frozen=True)
class Bench:
    """A benchmark: every subject in every prompt of its list that `prompt_ids` selects."""

    name: str
    digest: str  # of all its files
    subjects: tuple[BenchSubject, ...]
    objects: tuple[BenchPrompt, ...]
    creatures: tuple[BenchPrompt, ...]
    prompt_ids: tuple[int, ...]  # numbers of prompts in either list
    world: str = ""  # the fingerprint of MiniBench's dataset

    def prompt(self, subject: BenchSubject, number: int) -> BenchPrompt:
        """Return a prompt by its number."""
        return (self.creatures if subject.live else self.objects)[number]

    def part(self, subjects: int | None, prompts: int | None) -> "Bench":
        """Return a subset with evenly spread subjects and prompts. `None` keeps all."""
        return replace(
            self,
            subjects=tuple(_spread(self.subjects, subjects, "--subjects")),
            prompt_ids=tuple(_spread(self.prompt_ids, prompts, "--prompts")),
        )


def _spread(items: Sequence[T], count: int | None, flag: str) -> list[T]:
    """Pick `count` items evenly, from the middles of equal stretches."""
    if count is None:
        return list(items)
    if not 2 <= count <= len(items):
        raise InputError(f"{flag} is {count}: use a number from 2 to {len(items)}, the number in this benchmark.")
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]


def read_bench(folder: Path, *, name: str | None = None) -> Bench:
    """Read the benchmark in a folder and check every image. Raises `DataError` or `InputError`."""
    data = folder / "dataset" if (folder / "dataset").is_dir() else folder
    classes, objects, creatures = parse(_text(data / PROMPTS), data / PROMPTS)
    recipe = _recipe(folder / RECIPE, classes, (len(objects), len(creatures)))
    subjects = tuple(
        BenchSubject(
            subject,
            category,
            subject in recipe["live"] if recipe else category in LIVE,
            _images(data / subject),
            recipe.get("identities", {}).get(subject, ""),
        )
        for subject, category in classes.items()
    )
    if recipe:
        objects = [replace(p, request=r) for p, r in zip(objects, recipe["objects"], strict=True)]
        creatures = [replace(p, request=r) for p, r in zip(creatures, recipe["creatures"], strict=True)]
    prompt_ids = tuple(range(min(len(objects), len(creatures))))
    _check_comparable(folder, len(subjects), len(prompt_ids))
    title = name or recipe.get("name", folder.resolve().name)
    digest = _digest(folder, data, subjects)
    return Bench(title, digest, subjects, tuple(objects), tuple(creatures), prompt_ids, recipe.get("world", ""))


def _check_comparable(folder: Path, subjects: int, prompts: int) -> None:
    """Raise `DataError` unless there are two subjects and two prompts to compare."""
    if min(subjects, prompts) < 2:
        raise DataError(
            f"A benchmark needs two subjects and two prompts in each list to compare: {folder} has {subjects} and "
            f"{prompts}."
        )


def read_dreambench(folder: Path) -> Bench:
    """Read the complete published benchmark. Raises `DataError` if it is not complete."""
    if not folder.is_dir():
        raise DataError(
            f"There is no folder {folder} here: git clone https://github.com/google/dreambooth {folder}, "
            "or give its path as --benchmark."
        )
    bench = read_bench(folder, name="dreambench")
    counts = len(bench.subjects), sum(len(subject.images) for subject in bench.subjects)
    if counts != PUBLISHED:
        raise DataError(
            f"{folder} holds {counts[0]} subjects and {counts[1]} images, but DreamBench {PUBLISHED[0]} and "
            f"{PUBLISHED[1]}: download it again, or use --benchmark ./{folder.name} to evaluate on these."
        )
    return bench


def parse(text: str, path: Path) -> tuple[dict[str, str], list[BenchPrompt], list[BenchPrompt]]:
    """Return classes by subject, prompts of objects, and prompts of live subjects (if missing, those of objects)."""
    head, _, rest = text.partition("Object Prompts")
    classes = _classes(head, path)
    objects, creatures = (_prompts(part) for part in _halves(rest))
    if not objects:
        first = next(iter(classes))
        raise DataError(f"{path} has no prompt for {first}: below `Object Prompts`, list some as DreamBench does.")
    if escaped := next((one for one in (*objects, *creatures) if not f"{one.before}{one.after}".isprintable()), None):
        raise DataError(f"{path} has control characters in the prompt {escaped.sentence('dog')[:80]!r}: remove them.")
    return classes, objects, creatures or objects


def _classes(text: str, path: Path) -> dict[str, str]:
    """Return the table of classes; lines without a comma are titles."""
    classes: dict[str, str] = {}
    for line in (line for line in text.splitlines() if "," in line):
        cells = [cell.strip() for cell in line.split(",")]
        if cells == ["subject_name", "class"]:
            continue
        if len(cells) != 2 or not all(cell and cell.isprintable() for cell in cells) or len(line) > MAX_ROW:
            raise DataError(f"{path} has the line {line[:80]!r}: write subject_name,class, for example dog2,dog.")
        if not _NAME.fullmatch(cells[0]):
            raise DataError(f"{path} has a subject {cells[0]!r}: use only letters, digits, _ and -.")
        if cells[0] in classes:
            raise DataError(f"{path} names the subject {cells[0]!r} twice: keep one line of it.")
        classes[cells[0]] = cells[1]
    if not classes:
        raise DataError(f"{path} names no subject: below `subject_name,class` write a line for each.")
    return classes


def _halves(text: str) -> tuple[str, str]:
    objects, _, live = text.partition("Live Subject Prompts")
    return objects, live


def _prompts(text: str) -> list[BenchPrompt]:
    return [BenchPrompt(before.strip(), after.strip()) for _, before, after in _TEMPLATE.findall(text)]


def _text(path: Path) -> str:
    if not path.is_file():
        raise DataError(f"{path} is missing: a benchmark is a folder in DreamBench's layout, dataset/{PROMPTS} in it.")
    try:
        if path.stat().st_size > _LARGEST:
            raise DataError(f"{path} is too large for a list of prompts: use a benchmark's file.")
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} can't be read as text: download the benchmark again.") from error


def _images(folder: Path) -> tuple[Path, ...]:
    files = sorted(path for path in folder.glob("*") if path.suffix.lower() in _SUFFIXES and path.is_file())
    if not files:
        raise DataError(f"{folder} holds no image: put at least one JPEG, PNG or WebP of the subject there.")
    for path in files:
        images.open_image(path)  # report a damaged file now, not after an hour of generation
    return tuple(files)


def _recipe(path: Path, subjects: Iterable[str], prompts: tuple[int, int]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        raw = parse_json(_text(path))
        for key in ("objects", "creatures"):
            raw[key] = [_request(one, key) for one in raw[key]]
        strings = {str(k): str(v) for k, v in raw["identities"].items()}
        recipe = {**raw, "identities": strings, "live": set(raw["live"]), "world": str(raw["world"])}
        recipe["name"] = str(raw["name"])
        if (len(recipe["objects"]), len(recipe["creatures"])) != prompts:
            raise ValueError("its number of prompts differs")
        if nameless := [subject for subject in subjects if not strings.get(subject)]:
            raise ValueError(f"it has no identity of {nameless[0]}")
        return recipe
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} does not belong to this benchmark ({reason(error)}): build it again.") from error


def _request(table: Any, where: str) -> PromptSpec:
    request = configuration.build(PromptSpec, table, where)
    if invalid := prompt_templates.unknown(request):
        raise ValueError(f"{where} has the {invalid}, for which there is no prompt")
    return request


def _digest(folder: Path, data: Path, subjects: Sequence[BenchSubject]) -> str:
    digest = hashlib.sha256((data / PROMPTS).read_bytes())
    if (folder / RECIPE).is_file():
        digest.update((folder / RECIPE).read_bytes())
    for subject in subjects:
        for path in subject.images:
            digest.update(os.fsencode(f"{subject.name}/{path.name}") + path.read_bytes())
    return digest.hexdigest()[:16]
