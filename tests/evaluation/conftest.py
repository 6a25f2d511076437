"""Shared fixtures of the tests of evaluation: a synthetic MiniBench, and tiny networks of the real classes."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTModel

from blip_diffusion.data.benchmarks.dreambench import Bench
from blip_diffusion.data.benchmarks.minibench import build_bench
from blip_diffusion.data.synthetic.assets import CutOutImage, pack
from tests.evaluation.fakes import SIZE, WORLD


@pytest.fixture(scope="session")
def bench_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`world.zip` and, beside it, `bench`: three of the four held-out subjects, so that one is left to learn from."""
    folder = tmp_path_factory.mktemp("world")
    cutouts = [CutOutImage(row, _image(pixels)) for row, pixels in zip(WORLD.cutouts, WORLD.pixels, strict=True)]
    scenes = [(row, _image(pixels)) for row, pixels in zip(WORLD.scenes, WORLD.scene_pixels, strict=True)]
    pack(folder / "world.zip", cutouts, scenes, "drawn by the tests")
    return folder


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """The same benchmark in memory."""
    return build_bench(WORLD, tmp_path_factory.mktemp("benches") / "bench", subjects=3)


@pytest.fixture(scope="session")
def tiny_dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT of transformers' with random weights."""
    torch.manual_seed(0)
    config = ViTConfig(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
                       image_size=SIZE, patch_size=8)  # fmt: skip
    folder = tmp_path_factory.mktemp("metrics") / "dino"
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A CLIP of transformers' with random weights, and a tokenizer."""
    torch.manual_seed(0)
    shape = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    text = {**shape, "vocab_size": 1024, "max_position_embeddings": 32, "bos_token_id": 1022, "eos_token_id": 1023}
    vision = {**shape, "image_size": SIZE, "patch_size": 8}
    folder = tmp_path_factory.mktemp("metrics") / "clip"
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    shutil.copytree(tiny_folder / "tokenizer", folder, dirs_exist_ok=True)
    return folder


def _image(pixels: torch.Tensor) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())
