"""LoRAs and textual inversions of the hub, from its cache on this machine: checked as any other file."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from transformers import ViTModel

from blip_diffusion.checkpoint import hub_files
from blip_diffusion.errors import CheckpointError
from blip_diffusion.evaluation.features.extractor import load_pretrained
from blip_diffusion.pipelines.acceleration import _load_tiny_vae
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline

REPOSITORY = "someone/style"


class Harmful:
    """A pickle that runs code."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("executed",)


@pytest.fixture
def snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a repository's files in a cache of the hub, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    place = tmp_path / f"models--{REPOSITORY.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    commit = "0" * 40
    (place / "refs" / "main").write_text(commit)
    (place / "snapshots" / commit).mkdir(parents=True)
    return place / "snapshots" / commit


@pytest.fixture(scope="module")
def lora() -> dict[str, torch.Tensor]:
    layer = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    return {f"{layer}.lora_A.weight": torch.ones(1, 32), f"{layer}.lora_B.weight": torch.ones(32, 1)}


def inversion(pipe: BlipDiffusionPipeline) -> dict[str, torch.Tensor]:
    return {"<rex>": torch.ones(1, int(pipe.text_encoder.config.hidden_size))}


@pytest.mark.parametrize("name", ["learned_embeds.safetensors", "learned_embeds.bin", "rex.pt"])
def test_textual_inversions_are_read(
    name: str, snapshot: Path, tmp_path: Path, fresh_pipe: BlipDiffusionPipeline
) -> None:
    table = inversion(fresh_pipe)
    save_file(table, snapshot / name) if name.endswith(".safetensors") else torch.save(table, snapshot / name)
    options = {} if name.startswith("learned") else {"weight_name": name}
    fresh_pipe.load_textual_inversion(REPOSITORY, cache_dir=tmp_path, **options)
    assert "<rex>" in fresh_pipe.tokenizer.get_vocab()


@pytest.mark.parametrize("name", ["pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin", "ink.bin"])
def test_loras_are_read(
    name: str, snapshot: Path, tmp_path: Path, fresh_pipe: BlipDiffusionPipeline, lora: dict[str, torch.Tensor]
) -> None:
    width = fresh_pipe.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_q.weight.shape
    table = {key: value[:, : width[1]] if "lora_A" in key else value[: width[0]] for key, value in lora.items()}
    save_file(table, snapshot / name) if name.endswith(".safetensors") else torch.save(table, snapshot / name)
    options = {"weight_name": name} if name.startswith("ink") else {}
    fresh_pipe.load_lora_weights(REPOSITORY, adapter_name="ink", cache_dir=tmp_path, **options)
    assert fresh_pipe.get_active_adapters() == ["ink"]


@pytest.mark.parametrize("stored", [Harmful(), {"<rex>": torch.ones(1).expand(1, 32)}, {"<rex>": Harmful()}])
def test_pickles_are_checked(stored: Any, snapshot: Path, tmp_path: Path, pipe: BlipDiffusionPipeline) -> None:
    for name, load in (
        ("learned_embeds.bin", pipe.load_textual_inversion), ("pytorch_lora_weights.bin", pipe.load_lora_weights)
    ):  # fmt: skip
        if isinstance(stored, Harmful):
            (snapshot / name).write_bytes(pickle.dumps(stored))
        else:
            torch.save(stored, snapshot / name)
        with pytest.raises(CheckpointError, match=r"it is refused|fewer numbers than its shape"):
            load(REPOSITORY, cache_dir=tmp_path)
    assert not Path("executed").exists() and "<rex>" not in pipe.tokenizer.get_vocab()


def test_other_adapters_of_the_hub_are_refused(snapshot: Path, tmp_path: Path, pipe: BlipDiffusionPipeline) -> None:
    save_file({"lora_unet_x.lokr_w1": torch.ones(2)}, snapshot / "pytorch_lora_weights.safetensors")
    with pytest.raises(CheckpointError, match="a LoKr"):
        pipe.load_lora_weights(REPOSITORY, cache_dir=tmp_path)


def test_missing_files_are_one_sentence(snapshot: Path, tmp_path: Path, pipe: BlipDiffusionPipeline) -> None:
    torch.save(inversion(pipe), snapshot / "learned_embeds.bin")
    for load, what in ((pipe.load_textual_inversion, "textual inversion"), (pipe.load_lora_weights, "LoRA")):
        for options in ({"use_safetensors": True}, {"weight_name": "other.bin"}, {"subfolder": "x"}):
            with pytest.raises(CheckpointError, match=f"The {what} can't be read: the hub can't provide"):
                load(REPOSITORY, cache_dir=tmp_path, **options)


def test_an_only_file_of_another_name_is_found(
    snapshot: Path, tmp_path: Path, pipe: BlipDiffusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub lists a repository's files; those of training are no adapters."""
    files = ["README.md", "optimizer.bin", "ink.safetensors", "sub/other.safetensors"]
    monkeypatch.setattr(hub_files, "list_repo_files", lambda *_, **__: files)
    save_file({"x.lokr_w1": torch.ones(2)}, snapshot / "ink.safetensors")
    with pytest.raises(CheckpointError, match="a LoKr"):
        pipe.load_lora_weights(REPOSITORY, cache_dir=tmp_path)


def test_networks_of_the_hub_are_checked(snapshot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny autoencoder of a preset, and the networks of metrics."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    (snapshot / "config.json").write_text(json.dumps({"_class_name": "AutoencoderTiny"}))
    for name in ("diffusion_pytorch_model.bin", "pytorch_model.bin"):
        (snapshot / name).write_bytes(pickle.dumps(Harmful()))
    assert hub_files.local_folder(REPOSITORY) == str(snapshot)
    with pytest.raises(CheckpointError, match="it is refused"):
        _load_tiny_vae(REPOSITORY, AutoencoderKL())
    (snapshot / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(CheckpointError, match="of a metric can't be loaded from someone/style"):
        load_pretrained(ViTModel, REPOSITORY)
    assert not Path("executed").exists()
