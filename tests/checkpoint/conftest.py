"""Fixtures of the tests of checkpoints."""

import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from blip_diffusion.model import SubjectEncoder, build_subject_encoder

from .folders import (
    CLIP_SHAPES,
    GOLDEN,
    blip_weights,
    old_vae,
)


@pytest.fixture
def model_folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model's folder, which a test may damage."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


@pytest.fixture(scope="module")
def clip_encoder() -> SubjectEncoder:
    torch.manual_seed(0)
    return build_subject_encoder(CLIP_SHAPES).eval()


@pytest.fixture(scope="module")
def lavis_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lavis") / "blip-diffusion"
    published = load_file(GOLDEN / "qformer" / "model.safetensors")
    text = load_file(GOLDEN / "text_encoder" / "model.safetensors")
    states = {
        "blip_model/blip_weight.pt": blip_weights({n: t for n, t in published.items() if "position_ids" not in n}),
        "proj_layer/proj_weight.pt": {
            name.removeprefix("proj_layer."): t for name, t in published.items() if name.startswith("proj_layer")
        },
        "text_encoder/pytorch_model.bin": {**text, "text_model.embeddings.position_ids": torch.arange(77)[None]},
        "unet/diffusion_pytorch_model.bin": load_file(GOLDEN / "unet" / "diffusion_pytorch_model.safetensors"),
        "vae/diffusion_pytorch_model.bin": old_vae(load_file(GOLDEN / "vae" / "diffusion_pytorch_model.safetensors")),
    }
    for name, state in states.items():
        (folder / name).parent.mkdir(parents=True)
        torch.save({key: tensor.clone() for key, tensor in state.items()}, folder / name)
    return folder


@pytest.fixture
def archive(lavis_folder: Path, tmp_path: Path) -> Path:
    path = tmp_path / "blip-diffusion.tar.gz"
    with tarfile.open(path, "w:gz") as files:
        files.add(lavis_folder, arcname="blip-diffusion")
    return path


@pytest.fixture
def tuned_checkpoint(tmp_path: Path) -> Path:
    unet = load_file(GOLDEN / "unet" / "diffusion_pytorch_model.safetensors")
    model: dict[str, Any] = {f"unet.{name}": tensor * 1.01 for name, tensor in unet.items()}
    model["ctx_embeddings_cache"] = torch.nn.Parameter(torch.full((1, 4, 16), 0.1))
    model["blip.Qformer.bert.embeddings.position_ids"] = torch.arange(512)[None]
    table = {"model": model, "optimizer": {"state": {}}, "config": {"run": {"lr": 5e-6}}, "scaler": None, "iters": 40}
    torch.save(table, tmp_path / "checkpoint_40.pth")
    return tmp_path / "checkpoint_40.pth"
