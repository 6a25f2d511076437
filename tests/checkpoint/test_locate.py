"""Names of models: `mini`, folders and Hub ids."""

from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch

from blip_diffusion.checkpoint.locate import find_model
from blip_diffusion.errors import CheckpointError
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline


@pytest.mark.parametrize("name", ["", " ", "nowhere", "a/b/c", "/tmp/no such folder"])
def test_unknown_model_is_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"use mini, a folder, or a hub id"):
        find_model(name)


def test_unavailable_hub_id_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"no folder nobody/nothing, and the hub can't provide it"):
        find_model("nobody/nothing")


def test_path_named_mini_is_a_folder(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model_folder.rename(tmp_path / "mini").parent)
    assert find_model(Path("mini")) == Path("mini") and find_model("mini") != Path("mini")
    assert BlipDiffusionPipeline.from_pretrained(Path("mini"), dtype=torch.float16).unet.dtype == torch.float16


def test_unused_files_are_not_downloaded(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requested: dict[str, Any] = {}

    def download(name: str, *, revision: str | None = None, ignore_patterns: Any = None) -> str:
        requested.update(revision=revision, ignore_patterns=ignore_patterns)
        return str(model_folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    published = ["unet/config.json", "qformer/pytorch_model.bin", "vision_encoder/pytorch_model.bin", "x.ckpt"]
    assert find_model("owner/name", revision="main") == model_folder
    kept = [name for name in published if not any(fnmatch(name, unread) for unread in requested["ignore_patterns"])]
    assert kept == published[:2] and requested["revision"] == "main"
    find_model("owner/name", ignore_patterns=None)
    assert requested["ignore_patterns"] is None
