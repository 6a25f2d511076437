"""Weight files: pickles, damaged files and files of another kind."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from blip_diffusion.checkpoint.components import (
    load_text_encoder,
)
from blip_diffusion.checkpoint.model_folder import read_parts
from blip_diffusion.checkpoint.weights import read_file
from blip_diffusion.errors import CheckpointError

from .folders import WEIGHTS


@pytest.mark.parametrize("tensor", [torch.empty(3, device="meta"), torch.eye(3).to_sparse()], ids=["meta", "sparse"])
def test_meta_and_sparse_tensors_are_refused(tmp_path: Path, tensor: Tensor) -> None:
    torch.save({"one": torch.ones(2), "odd": tensor}, tmp_path / "model.bin")
    with pytest.raises(CheckpointError, match=r"holds tensors without all their numbers \(meta, sparse"):
        read_file(tmp_path / "model.bin")


class Harm:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("part", ["qformer", "text_encoder", "unet", "vae"])
def test_pickled_code_is_not_executed(model_folder: Path, tmp_path: Path, part: str, zipped: bool) -> None:
    path = model_folder / WEIGHTS[part]
    path.unlink()
    name = "diffusion_pytorch_model.bin" if part in ("unet", "vae") else "pytorch_model.bin"
    torch.save({"harm": Harm(tmp_path / "harmed")}, path.with_name(name), _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError):
        read_parts(model_folder)
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_pickled_weights_are_read(model_folder: Path, zipped: bool) -> None:
    path = model_folder / WEIGHTS["text_encoder"]
    state = load_file(path)
    path.unlink()
    torch.save(state, path.with_name("pytorch_model.bin"), _use_new_zipfile_serialization=zipped)
    loaded = load_text_encoder(model_folder / "text_encoder").state_dict()
    assert all(torch.equal(loaded[name.removeprefix("text_model.")], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_damaged_pickle_raises_one_sentence(tmp_path: Path, zipped: bool) -> None:
    """A changed byte gives tensors or one error message."""
    path, rng = tmp_path / "model.bin", random.Random(0)
    torch.save({"a": torch.ones(2, 3), "b": torch.arange(4)}, path, _use_new_zipfile_serialization=zipped)
    good, sentences = path.read_bytes(), []
    for _ in range(300):
        bad = bytearray(good)
        bad[rng.randrange(len(bad))] = rng.randrange(256)
        path.write_bytes(bad)
        try:
            read_file(path)
        except CheckpointError as error:
            sentences.append(str(error))
    assert len(sentences) > 50 and not [sentence for sentence in sentences if "\n" in sentence]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.ckpt"])
@pytest.mark.parametrize("text", ["version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "<!DOCTYPE html>"])
def test_html_page_in_place_of_weights_is_refused(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match="is not a file of weights: fetch it again"):
        read_file(tmp_path / name)


def test_pickle_without_tensors_is_refused(model_folder: Path) -> None:
    path = model_folder / WEIGHTS["text_encoder"]
    path.unlink()
    torch.save([1, 2], path.with_name("pytorch_model.bin"))
    with pytest.raises(CheckpointError, match="not a table of tensors"):
        load_text_encoder(model_folder / "text_encoder")
