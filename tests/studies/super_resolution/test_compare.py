from pathlib import Path

import pytest
import torch
from PIL import Image

from blip_diffusion.checkpoint.locate import find_model
from blip_diffusion.checkpoint.model_folder import assemble, read_parts, save_model
from blip_diffusion.training.initialization import noising_from
from blip_diffusion.training.objectives.upscale import UpscaleConfig, Upscaling
from studies.super_resolution import compare as study
from tests.conftest import WORLD


@pytest.fixture
def upscaler(tiny_folder: Path, tmp_path: Path) -> Path:
    """A tiny model that reads an enlarged image, before its training."""
    folder = find_model(tiny_folder)
    model = assemble(read_parts(folder, dtype=torch.float32), folder)
    save_model(Upscaling(model, noising_from(model.scheduler), UpscaleConfig()).model, tmp_path / "upscaler")
    return tmp_path / "upscaler"


def test_every_way_has_its_row(upscaler: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model", str(upscaler), "--dataset", str(WORLD), "--images", "3", "--out", str(tmp_path / "out")]
    assert study.main(flags) == 0
    text = capsys.readouterr().out
    assert text == (tmp_path / "out" / "report.md").read_text() and "3 composites" in text and "16 to 32 pixels" in text
    rows = {cells[1].strip(): cells[2:5] for line in text.splitlines()[4:] if len(cells := line.split("|")) > 4}
    assert list(rows)[:2] == ["bicubic", "model, noise level 0"] and len(rows) == 6
    psnr = {name: float(cells[0].split()[0]) for name, cells in rows.items()}
    assert psnr["bicubic"] > psnr["model, noise level 0.1"]  # that of an untrained model
    with Image.open(tmp_path / "out" / "sheet.png") as sheet:
        assert sheet.size == (8 * 32 + 7 * 2, 3 * 32 + 2 * 2)


def test_errors(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model", str(tiny_folder), "--dataset", str(WORLD), "--out", str(tmp_path / "out")]
    assert study.main(flags) == 2 and "does not upscale" in capsys.readouterr().err
    assert study.main([*flags, "--scale", "1"]) == 2 and "must be at least 2" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
