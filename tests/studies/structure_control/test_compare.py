from pathlib import Path

import pytest
import torch
from diffusers import T2IAdapter
from PIL import Image

from blip_diffusion.checkpoint.model_folder import save_model
from blip_diffusion.data.synthetic.assets import AssetLibrary
from blip_diffusion.data.synthetic.pair_sampler import PairSampler
from blip_diffusion.data.synthetic.tokenizers import tokenizer_corpus
from blip_diffusion.training.recipe.config import RecipeConfig
from blip_diffusion.training.recipe.phases import new_model
from studies.structure_control import compare as study
from tests.conftest import WORLD


@pytest.fixture(scope="module")
def folder(world: AssetLibrary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with placed tokens, and an untrained adapter in `adapter`."""
    config = RecipeConfig(preset="tiny-placed")
    reference = PairSampler(world, config.synthetic, batch_size=2, seed=0)(0)["reference"]
    root = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    save_model(new_model(config, tokenizer_corpus(world), reference), root)
    T2IAdapter(in_channels=1, channels=[32, 64], num_res_blocks=1, downscale_factor=8).save_pretrained(root / "adapter")
    return root


@pytest.mark.parametrize("hint", ["canny", "mask", "depth"])
def test_every_setting_has_its_row(
    hint: str, folder: Path, geometric_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = geometric_world if hint == "depth" else WORLD
    flags = ["--dataset", str(dataset), "--model", str(folder), "--adapter", str(folder / "adapter"), "--hint", hint]
    assert study.main([*flags, "--pairs", "2", "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert text == (tmp_path / "report.md").read_text()
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith(("| default", "| found", "| true"))]
    assert len(rows) == len(study.SETTINGS) and ("edge F1" if hint == "canny" else "mask IoU") in text
    scores = {setting: row[2:] for setting, row in zip(study.SETTINGS, rows, strict=True)}
    assert len({str(score) for score in scores.values()}) > len(scores) / 2  # settings change the images
    with Image.open(tmp_path / "sheet.png") as sheet:
        columns = len(study.SETTINGS) + 3  # reference, control image and target
        assert sheet.size == (columns * 32 + (columns - 1) * 2, 2 * 32 + 2)


def test_errors(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--dataset", str(WORLD), "--model", str(folder), "--out", str(tmp_path / "out")]
    assert study.main(flags) == 2 and "has no adapter for canny: name one with --adapter" in capsys.readouterr().err
    assert study.main([*flags, "--pairs", "1"]) == 2 and "--pairs must be at least 2" in capsys.readouterr().err
    assert study.main([*flags, "--adapter", str(folder / "adapter"), "--only-3d"]) == 2
    assert "has no depth and normals of 3D models" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
