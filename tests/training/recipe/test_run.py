"""All phases in seconds, on the shapes `tiny-placed`."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from blip_diffusion.checkpoint.model_folder import read_parts
from blip_diffusion.cli.main import main
from blip_diffusion.errors import CheckpointError, ConfigError, InputError
from blip_diffusion.fileio import locked
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline
from blip_diffusion.training.recipe.config import RecipeConfig, SharesConfig, read_recipe
from blip_diffusion.training.recipe.run import PHASES, run

ROOT = Path(__file__).parents[3]
WORLD = ROOT / "tests" / "fixtures" / "world.zip"
SMALL = [
    'preset="tiny-placed"', f'data="{WORLD}"', "synthetic.size=32", "synthetic.object_crop_size=16", "held_out=4",
    "log_every=5", "cpu.pool=48", "cpu.fill=16", "cpu.worker_batch=8", "autoencoder.crop=16", "decoder.crop=16",
]  # fmt: skip
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a second of training."""
    out = tmp_path_factory.mktemp("runs") / "mini"
    flags = [word for value in SMALL for word in ("--set", value)]
    assert (
        main(["train-mini", "--out", str(out), "--minutes", "0.02", "--device", "cpu", "--workers", "0", *flags]) == 0
    )
    return out


def test_every_phase_writes_metrics_and_a_log(folder: Path) -> None:
    metrics = {name: json.loads((folder / name / "export/metrics.json").read_text()) for name in PHASES}
    assert list(metrics["subject"]) == ["x0_error_t999", "x0_error_t800", "x0_error_t600", "x0_error_t300"]
    assert all(torch.tensor(value).isfinite() for table in metrics.values() for value in table.values())
    assert 0 < metrics["representation"]["reconstruction_l1"] < 1
    assert (folder / "subject/log.jsonl").is_file()


def test_export_is_loaded_by_the_pipeline(folder: Path, dog: Image.Image) -> None:
    pipe = BlipDiffusionPipeline.from_pretrained(folder / "export")
    pipe.set_progress_bar_config(disable=True)
    pictures = pipe("on the beach", dog, "dog", num_inference_steps=2, generator=torch.Generator().manual_seed(0))
    assert pictures.images[0].size == (32, 32)
    index = json.loads((folder / "export/model_index.json").read_text())
    assert (index["guidance_scale"], index["noise_scale"]) == (2.0, 0.85)
    assert (folder / "export/subject_finder").is_dir()


def test_resumed_run_keeps_finished_phases(folder: Path, tmp_path: Path) -> None:
    run_folder = shutil.copytree(folder, tmp_path / "mini")
    shutil.rmtree(run_folder / "subject/export")
    shutil.rmtree(run_folder / "export")
    before = (run_folder / "representation/export/qformer/model.safetensors").read_bytes()
    step = next((run_folder / "subject/checkpoints").iterdir()).name
    config = read_recipe(None, SMALL)
    with pytest.raises(CheckpointError, match="--resume"):
        run(config, run_folder, minutes=0.02, device=CPU, workers=0)
    run(config, run_folder, minutes=0.08, device=CPU, workers=0, resume=True)
    assert (run_folder / "representation/export/qformer/model.safetensors").read_bytes() == before
    assert next((run_folder / "subject/checkpoints").iterdir()).name > step and (run_folder / "export/unet").is_dir()
    with pytest.warns(UserWarning, match=r"is trained already \(autoencoder, .*\): there is nothing to resume"):
        run(config, run_folder, minutes=0.08, device=CPU, workers=0, resume=True)


def test_phases_with_share_zero_are_skipped(folder: Path, tmp_path: Path) -> None:
    """The autoencoder of another run is used as it is, and the model has no LoRA."""
    shares = SharesConfig(autoencoder=0, decoder=0, representation=0.2, subject=0.8, consistency=0)
    trained = folder / "autoencoder" / "export"
    config = replace(read_recipe(None, SMALL), shares=shares, init_from=(trained,))
    results = run(config, tmp_path / "mini", minutes=0.01, device=CPU, workers=0)
    assert list(results) == ["representation", "subject"]
    parts = read_parts(tmp_path / "mini" / "export")
    assert parts.consistency_lora is None
    torch.testing.assert_close(
        parts.vae.state_dict(), read_parts(trained).vae.state_dict(), atol=1e-3, rtol=1e-3
    )  # saved in half precision


def test_recipe_file_equals_the_defaults() -> None:
    assert read_recipe(ROOT / "configs/mini/recipe.toml") == RecipeConfig()


def test_file_overrides_the_defaults() -> None:
    result = read_recipe(None, ["phases.subject.optim.lr=0.5", "cpu.pairs=2"])
    plain = RecipeConfig()
    optim = replace(plain.phases.subject.optim, lr=0.5)
    subject = replace(plain.phases.subject, optim=optim)
    assert result == replace(plain, phases=replace(plain.phases, subject=subject), cpu=replace(plain.cpu, pairs=2))


def test_invalid_values_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sum is 1"):
        SharesConfig(subject=0.5)
    with pytest.raises(InputError, match="--minutes is 0"):
        run(RecipeConfig(), tmp_path, minutes=0, device=CPU, workers=0)
    assert main(["train-mini", "--workers", "-1"]) == 2


def test_run_starts_from_an_existing_model(folder: Path, tmp_path: Path) -> None:
    config = read_recipe(None, [*SMALL, f'init_from=["{folder / "export"}"]'])
    run(config, tmp_path / "more", minutes=0.01, device=CPU, workers=0)
    before, start = (read_parts(path) for path in (folder / "export", tmp_path / "more/start"))
    for name in ("vae", "unet", "text_encoder", "subject_encoder", "subject_finder"):
        for key, value in getattr(before, name).state_dict().items():
            assert torch.equal(value, getattr(start, name).state_dict()[key]), key


def test_folder_of_another_process_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`train-mini` and `train-control` lock the folder of a run, as `train` does."""
    flags = ["--data", str(WORLD), "--out", str(tmp_path), "--device", "cpu", "--workers", "0", "--resume"]
    with locked(tmp_path):
        for command in ("train-mini", "train-control"):
            assert main([command, *flags]) == 2
            assert f"Another process writes to {tmp_path}" in capsys.readouterr().err
    assert not tmp_path.exists()
