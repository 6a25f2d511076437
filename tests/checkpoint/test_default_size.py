"""The size of the images that a model generates by default."""

import json
from pathlib import Path

import pytest

from blip_diffusion.checkpoint.default_size import default_side
from blip_diffusion.errors import CheckpointError


def write(folder: Path, sample_size: object) -> Path:
    for part, table in (("unet", {"sample_size": sample_size}), ("vae", {"block_out_channels": [8, 8, 8]})):
        (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / part / "config.json").write_text(json.dumps(table))
    return folder


def test_it_is_the_latents_size_times_the_autoencoders_factor(tmp_path: Path) -> None:
    assert default_side("mini") == 128
    assert default_side(write(tmp_path, 24)) == 96


def test_a_hub_id_is_not_downloaded() -> None:
    assert default_side("someone/something") is None


def test_a_damaged_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="the model"):
        default_side(write(tmp_path, [1, 2]))
    with pytest.raises(CheckpointError, match="no model"):
        default_side(tmp_path / "nowhere")
