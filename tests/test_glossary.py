"""The glossary: removed names and words must not come back in code, flags, configurations, tests or documents."""

import io
import re
import tokenize
import tomllib
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from blip_diffusion.training.personalize.config import TuneConfig
from blip_diffusion.training.run_config import RunConfig

ROOT = Path(__file__).parents[1]
CODE = [
    path for folder in ("src", "tests", "studies", "benchmarks", "examples") for path in (ROOT / folder).rglob("*.py")
]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "examples").glob("*.md")]
DOCUMENTS += [path for path in (ROOT / "docs").rglob("*.md") if "log" not in path.relative_to(ROOT / "docs").parts]

NAMES = """
World Composer ComposerConfig Order Backdrop Material Lesson OwnEncoders Personal Tracker Ahead Preview Studio Panel
Jury Sitter Eyes Contestant Verdict Judge Card Row Seen Shelf Memo Folded Original as_seen attention_on begin_linear
check_found check_here complaints draw_missing draw_scenes eight_bit_adam first_subject found_parts freeze_the_rest
is_there keep_settings lessons misshapen modules_of noising_of one_by_one one_way open_picture own_state own_weights
panel_of photo_losses preview_of read_original read_picture restore_moments rows_of scene_seeds start_heads
start_model start_vae state_of studio_of take_place to_pictures tuned_layers unused_parameters world_sentences
write_original wrong_questions SeenImages seeded_like found_mask
"""
"""Identifiers of earlier versions. CHANGELOG.md lists the new ones."""
MODULES = """
ahead bench cases charts compose copying crop denoisers engines extras files folder grammar judges jury layout
lessons loop memo noising panel parts photo_loss plain preview quick records scoring service shortcuts
sitters speed tracking vocabulary world
"""
FLAGS = """
again bench count fit guidance judges memory negative prior scenes score sheet train vectors world
"""
KEYS = """
accumulate canonical_size colour compose contrast draws floor generation grid hold huber keep matching most
prior_images redraw sentence shape shift start unused_parameters vectors whole_way world
"""
RETIRED = """
asked begun drawn heed judge judged knows learned looks nobody said says seat speaker speaks strange stranger tells told
verdict wanted wish wishes
"""
"""Identifiers that the package no longer uses, with or without an underscore in front."""
WORDS = r"\bpictures?\b(?! tells)"
"""Words of documents: use "image"."""
LOCALS = """
answered asked drawn heed judge judged lesson lessons orders question questions said spoilt told verdict wanted
"""
"""Local names of tests, benchmarks and studies: use "expected", "generated", "options", "output", "scores"."""
TEST_NAMES = (
    r"_(answers|asked|asks|draws?|drawn|heard|hears|judged?|knows|nought|said|says|speaks|strangers?|tells?|told"
    r"|wants|wanted)(?=_|$)"
)
"""Words of test names: name the behaviour, as in `test_generate_rejects_an_empty_prompt`."""


def identifiers(path: Path) -> Iterator[tuple[str, int]]:
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type == tokenize.NAME:
            yield token.string, token.start[0]


def code_tokens(path: Path) -> list[tokenize.TokenInfo]:
    """Return the tokens of a file without comments and line breaks."""
    ignored = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE)
    return [t for t in tokenize.generate_tokens(io.StringIO(path.read_text()).readline) if t.type not in ignored]


def settings(cls: type[Any]) -> Iterator[str]:
    """Yield every key of a configuration and of its tables."""
    hints = get_type_hints(cls)
    for field in fields(cls):
        yield field.name
        if is_dataclass(hints[field.name]):
            yield from settings(hints[field.name])


def keys(table: dict[str, Any]) -> Iterator[str]:
    for key, value in table.items():
        yield key
        if isinstance(value, dict):
            yield from keys(value)


def test_names() -> None:
    retired = set(NAMES.split())
    found = [
        f"{path.relative_to(ROOT)}:{line} {name}"
        for path in CODE
        if path != Path(__file__)
        for name, line in identifiers(path)
        if name in retired and not (name == "Row" and "page" in path.parts)  # a name of Gradio
    ]
    assert not found


@pytest.mark.parametrize("path", sorted((ROOT / "src").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_source_names(path: Path) -> None:
    assert not {name for name, _ in identifiers(path) if name.lstrip("_") in set(RETIRED.split())}


@pytest.mark.parametrize("folder", ["tests", "benchmarks", "studies", "examples"])
def test_local_names(folder: str) -> None:
    retired = set(LOCALS.split())
    found = [
        f"{path.relative_to(ROOT)}:{token.start[0]} {token.string}"
        for path in (ROOT / folder).rglob("*.py")
        for previous, token in pairwise(code_tokens(path))
        if token.type == tokenize.NAME and token.string in retired and previous.string != "."
    ]
    assert not found


def test_test_names() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^ *(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE)
        if re.search(TEST_NAMES, name)
    ]
    assert not found


def test_modules() -> None:
    assert not {path.stem for path in (ROOT / "src").rglob("*.py")} & set(MODULES.split())


@pytest.mark.parametrize("path", DOCUMENTS + CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_flags(path: Path) -> None:
    if path != Path(__file__):
        found = re.findall(rf"(?<![\w-])--(?:{'|'.join(FLAGS.split())})(?![\w-])", path.read_text())
        assert not found


def test_settings() -> None:
    assert not {*settings(RunConfig), *settings(TuneConfig)} & set(KEYS.split())


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.toml")), ids=lambda path: path.stem)
def test_configurations(path: Path) -> None:
    assert not set(keys(tomllib.loads(path.read_text()))) & set(KEYS.split())


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents(path: Path) -> None:
    text = path.read_text()
    assert not re.findall(WORDS, text, re.IGNORECASE)
    names = "|".join(name for name in NAMES.split() if "_" in name)
    assert not re.findall(rf"`[^`\n]*\b({names})\b[^`\n]*`", text)
