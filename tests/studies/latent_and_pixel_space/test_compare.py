import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from blip_diffusion.evaluation.metrics.statistics import Estimate
from studies.latent_and_pixel_space import compare as study
from studies.latent_and_pixel_space.compare import CONFIGS, STAGES, TFLOP, Stage, compare, psnr, step_flops
from tests.conftest import WORLD

DEBUG = CONFIGS.parent / "debug"


def tiny_stages(folder: Path) -> list[Stage]:
    start = f'model.init_from=["{folder}"]'
    frozen = ("subject.text_lr_scale=0", "subject.qformer_lr_scale=0", "train.sample_every=0")
    return [
        Stage("latent", DEBUG / "subject.toml", 1.0, (start, 'model.new_parts=["unet"]', *frozen)),
        Stage("pixels", DEBUG / "pixels.toml", 0.5, (start, *frozen)),
        Stage("upscale", DEBUG / "upscale.toml", 0.5, (start, "train.sample_every=0")),
    ]


def test_both_systems_are_trained_and_compared(tiny_folder: Path, tmp_path: Path) -> None:
    stages = tiny_stages(tiny_folder)
    step = step_flops(stages[0].config, [*stages[0].overrides, f'data.path="{WORLD}"'])
    text = compare(WORLD, tmp_path, 2 * step / TFLOP, count=2, stages=stages)
    assert "| latent |" in text and "| pixel cascade, wrong reference |" in text and "8 pixels, enlarged" in text
    assert json.loads((tmp_path / "latent/log.jsonl").read_text().splitlines()[-1])["step"] == 2
    rows = json.loads((tmp_path / "report.json").read_text())["systems"]
    for row in rows.values():
        assert row["image_gflop"] > 0 and row["parameters"] > 0 and Estimate(**row["psnr"]).value > 0
    assert rows["latent"]["train_tflop"] == pytest.approx(2 * step / TFLOP)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (4 * 32 + 3 * 2, 2 * 32 + 2)  # reference, both systems, target


def test_decibels() -> None:
    target = torch.zeros(1, 3, 4, 4)
    image = target.clone()
    image[..., :2] = 0.1
    left = torch.zeros(1, 1, 4, 4)
    left[..., :2] = 1
    assert float(psnr(image, target, left)) == pytest.approx(20, abs=1e-4)
    assert float(psnr(image, target)) == pytest.approx(23.01, abs=0.01)


def test_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--dataset", str(WORLD), "--out", str(tmp_path / "out"), "--train-tflop", "0"]
    assert study.main(arguments) == 2 and "--train-tflop must be above 0" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert sum(stage.share for stage in STAGES if stage.name != "latent") == 1
