"""Shared fixtures: a tiny training set, a tiny model on disk, an image of a subject. Nothing is downloaded."""

import os
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported

from blip_diffusion.checkpoint.model_folder import Parts, save_model
from blip_diffusion.data.batches import SubjectBatch
from blip_diffusion.data.synthetic.assets import AssetLibrary
from blip_diffusion.data.synthetic.pair_sampler import PairSampler, sentences
from blip_diffusion.data.synthetic.pair_spec import SyntheticConfig
from blip_diffusion.model import BlipDiffusion, InferenceConfig
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline
from blip_diffusion.training.initialization import InitConfig, init_model
from tests.data.synthetic.synthetic_world import pack_geometric_world

WORLD = Path(__file__).parent / "fixtures" / "world.zip"
INFERENCE = InferenceConfig(prompt_reps=1, num_inference_steps=3, guidance_scale=3.0, guidance_rescale=0.6)


def pytest_configure(config: pytest.Config) -> None:
    """On Pythons above 3.11, print deprecations of the pinned packages, which are errors otherwise."""
    if sys.version_info >= (3, 12):
        for kind in ("DeprecationWarning", "PendingDeprecationWarning", "SyntaxWarning"):
            config.addinivalue_line("filterwarnings", f"default::{kind}")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Use one thread: it is faster for tiny tensors, and sums have a fixed order."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def world() -> AssetLibrary:
    """A small part of the real training set: 58 images of subjects and seven scenes, some of each held out."""
    return AssetLibrary.load(WORLD)


@pytest.fixture(scope="session")
def geometric_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a small training set with depth and normals."""
    return pack_geometric_world(tmp_path_factory.mktemp("geometric") / "world.zip")


@pytest.fixture(scope="session")
def batch(world: AssetLibrary) -> SubjectBatch:
    """Six pairs of the world, at the size of the tiny model."""
    return PairSampler(world, SyntheticConfig(size=32, object_crop_size=16), batch_size=6, seed=1)(0)


@pytest.fixture(scope="session")
def tiny_folder(world: AssetLibrary, batch: SubjectBatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete model in the published layout, with the shapes `tiny` and untrained weights."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_model(tiny_model(world, batch), folder)
    return folder


@pytest.fixture
def model(tiny_folder: Path) -> BlipDiffusion:
    """A new instance of that model, which a test may change."""
    return BlipDiffusionPipeline.from_pretrained(tiny_folder).model


@pytest.fixture(scope="module")
def pipe(tiny_folder: Path) -> BlipDiffusionPipeline:
    """That model as a pipeline, shared by a module. Tests that change it use `fresh_pipe`."""
    pipe = BlipDiffusionPipeline.from_pretrained(tiny_folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def fresh_pipe(tiny_folder: Path) -> BlipDiffusionPipeline:
    """That model as a new pipeline, which a test may change."""
    pipe = BlipDiffusionPipeline.from_pretrained(tiny_folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def placed() -> BlipDiffusionPipeline:
    """A model with placed tokens, that nobody has trained."""
    pixels = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    built = init_model(Parts(), InitConfig(preset="tiny-placed"), ["a dog and a cat on the beach"] * 9, pixels)
    pipe = BlipDiffusionPipeline.from_model(built.eval())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def dog() -> Image.Image:
    """An image of a subject, wider than high."""
    image = Image.new("RGB", (64, 48), "lightblue")
    pen = ImageDraw.Draw(image)
    pen.ellipse((14, 12, 50, 44), fill="saddlebrown")
    pen.ellipse((36, 4, 54, 22), fill="peru")
    return image


@pytest.fixture
def huge_png(tmp_path: Path) -> Callable[[int], Path]:
    """Write a black and white PNG whose header claims a given side length; it contains no pixels."""

    def write(side: int) -> Path:
        def chunk(name: bytes, data: bytes) -> bytes:
            return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

        header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
        path = tmp_path / f"{side}.png"
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))
        return path

    return write


def tiny_model(world: AssetLibrary, batch: SubjectBatch) -> BlipDiffusion:
    """Return a tiny model with weights so large that every component affects the image."""
    model = init_model(Parts(), InitConfig("tiny", inference=INFERENCE), list(sentences(world)), batch["reference"])
    model.inference = INFERENCE
    with torch.no_grad():
        for part in (model.subject_encoder.qformer, model.subject_encoder.projection, model.text_encoder):
            for parameter in part.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(5)
    return model.eval()
