"""Every stage on images of one's own, at debug shapes; stage 2 from a folder and from shards, resumed exactly."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from blip_diffusion.data.synthetic.pair_spec import SyntheticConfig
from blip_diffusion.errors import ConfigError, DataError
from blip_diffusion.training.pretrain import run
from blip_diffusion.training.training_data import DataConfig, open_data
from tests.data.captioned.written import folder_of, shard_of

DEBUG = Path(__file__).parents[2] / "configs" / "debug"
SMALL = ("train.device=cpu", "train.steps=2", "train.sample_every=0", "data.batch_size=2", "train.prefetch=0")


def train(stage: str, data: Path, out: Path, *more: str, start: Path | None = None, resume: bool = False) -> Path:
    place = [f"data.path={data}", f"model.init_from={json.dumps([str(start)] if start else [])}"]
    result = run(DEBUG / f"{stage}.toml", out, overrides=[*SMALL, *place, *more], resume=resume)
    assert result.stopped == "done" and all(torch.tensor(value).isfinite() for value in result.losses.values())
    return out / "export"


@pytest.mark.parametrize("stage", ["autoencoder", "text_to_image", "representation"])
def test_the_first_stages_need_captions_alone(stage: str, tmp_path: Path) -> None:
    data = folder_of(tmp_path / "photos", texts=True)
    category = ["data.category=dog"] if stage == "representation" else ["train.sample_every=2"]
    assert any(train(stage, data, tmp_path / "run", *category).rglob("*.safetensors"))


def test_stage_two_goes_on_from_a_model_and_resumes_exactly(tiny_folder: Path, tmp_path: Path) -> None:
    """A shard gives what the folder gives: the same weights, to the bit."""
    shard = shard_of(tmp_path / "a.tar", count=3)
    folder = folder_of(tmp_path / "photos")  # of whose four images one is held out
    whole = train("subject", shard, tmp_path / "whole", start=tiny_folder)
    other = train("subject", folder, tmp_path / "other", start=tiny_folder)
    train("subject", shard, tmp_path / "parts", "train.steps=1", start=tiny_folder)
    parts = train("subject", shard, tmp_path / "parts", start=tiny_folder, resume=True)
    unet = [load_file(one / "unet" / "diffusion_pytorch_model.safetensors") for one in (whole, other, parts)]
    assert all(torch.equal(unet[0][name], one[name]) for one in unet[1:] for name in unet[0])
    before = load_file(tiny_folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert any(not torch.equal(before[name], unet[0][name]) for name in before)


@pytest.mark.parametrize(
    ("config", "error", "sentence"),
    [
        ({"licences": "permissive"}, ConfigError, "data.licences has no effect"),
        ({"synthetic": SyntheticConfig(geometry=True)}, ConfigError, "Images of your own have no depth and normals"),
        ({"batch_size": 1}, DataError, "has no category"),
    ],
)
def test_settings_without_effect(config: dict[str, object], error: type, sentence: str, tmp_path: Path) -> None:
    data = DataConfig(path=folder_of(tmp_path / "photos", texts=True), **config)  # type: ignore[arg-type]
    with pytest.raises(error, match=sentence):
        open_data(data, "subject", seed=0, device=torch.device("cpu"))


def test_a_category_of_the_asset_library_is_its_own(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="names all categories"):
        open_data(DataConfig(path=tmp_path / "w.zip", category="dog"), "subject", seed=0, device=torch.device("cpu"))
