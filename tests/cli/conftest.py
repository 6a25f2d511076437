"""Fixtures of the tests of the command line."""

from pathlib import Path

import pytest
from PIL import Image

from blip_diffusion.cli.main import main

from .commands import Run


@pytest.fixture
def empty_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resolve relative paths in an empty folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def reference(tmp_path_factory: pytest.TempPathFactory, dog: Image.Image) -> Path:
    path = tmp_path_factory.mktemp("references") / "dog.png"
    dog.save(path)
    return path


@pytest.fixture
def generate(tiny_folder: Path, reference: Path) -> Run:
    """Run `generate` with the tiny model; flags of a test replace the defaults."""

    def run(*arguments: object, prompts: tuple[str, ...] = ("on the beach",)) -> int:
        values = {"--model": tiny_folder, "--reference": reference, "--category": "dog"}
        defaults = [part for flag, value in values.items() if flag not in arguments for part in (flag, value)]
        return main([str(argument) for argument in ("generate", *prompts, *defaults, *arguments)])

    return run
