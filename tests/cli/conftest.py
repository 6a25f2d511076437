"""Fixtures of the tests of the command line."""

from pathlib import Path

import pytest
from PIL import Image

from blip_diffusion.cli.main import main
from blip_diffusion.data.batches import SubjectBatch
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline
from tests.evaluation.conftest import tiny_dino  # noqa: F401
from tests.models import save_blip2, save_with_prior

from .commands import Run


@pytest.fixture(scope="module")
def models(
    tiny_folder: Path,
    pipe: BlipDiffusionPipeline,
    batch: SubjectBatch,
    tiny_dino: Path,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, str]:
    """Folders of models by the word that stands for them in a table of commands."""
    folder = tmp_path_factory.mktemp("models")
    prior = save_with_prior(pipe.model, batch, folder / "prior")
    places = {
        "MODEL": tiny_folder,
        "BLIP2": save_blip2(pipe.model, folder / "blip2"),
        "PRIOR": prior,
        "DINO": tiny_dino,
    }
    return {word: str(path) for word, path in places.items()}


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
