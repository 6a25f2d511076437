"""What the tests share: a tiny world, a tiny model on disk, an image of a subject. All real, nothing downloaded."""

import os
import struct
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

WORLD = Path(__file__).parent / "fixtures" / "world.zip"
INFERENCE = InferenceConfig(prompt_reps=1, num_inference_steps=3, guidance_scale=3.0, guidance_rescale=0.6)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """For tiny tensors, one is faster, and the sums are always in the same order: those of shared fixtures too."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def world() -> AssetLibrary:
    """A small part of the real one: 58 images of subjects, seven scenes, each with some held out."""
    return AssetLibrary.load(WORLD)


@pytest.fixture(scope="session")
def batch(world: AssetLibrary) -> SubjectBatch:
    """Six pairs of the world, at the size of the tiny model."""
    return PairSampler(world, SyntheticConfig(size=32, object_crop_size=16), batch_size=6, seed=1)(0)


@pytest.fixture(scope="session")
def tiny_folder(world: AssetLibrary, batch: SubjectBatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model in the published layout, with the shapes `tiny` and weights that no one has trained."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_model(tiny_model(world, batch), folder)
    return folder


@pytest.fixture
def model(tiny_folder: Path) -> BlipDiffusion:
    """That model, one's own to change."""
    return BlipDiffusionPipeline.from_pretrained(tiny_folder).model


@pytest.fixture(scope="module")
def pipe(tiny_folder: Path) -> BlipDiffusionPipeline:
    """That model as a pipeline. A test that changes it loads its own."""
    pipe = BlipDiffusionPipeline.from_pretrained(tiny_folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def own(tiny_folder: Path) -> BlipDiffusionPipeline:
    """That model as a pipeline, one's own to change."""
    pipe = BlipDiffusionPipeline.from_pretrained(tiny_folder)
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
    """Writes a black and white PNG of a given side, as its header says; there are no pixels behind it."""

    def write(side: int) -> Path:
        def chunk(name: bytes, data: bytes) -> bytes:
            return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

        header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
        path = tmp_path / f"{side}.png"
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))
        return path

    return write


def tiny_model(world: AssetLibrary, batch: SubjectBatch) -> BlipDiffusion:
    """Weights large enough for every part to show in the image; fresh ones hardly move it."""
    model = init_model(Parts(), InitConfig("tiny", inference=INFERENCE), list(sentences(world)), batch["reference"])
    model.inference = INFERENCE
    with torch.no_grad():
        for part in (model.subject_encoder.qformer, model.subject_encoder.projection, model.text_encoder):
            for parameter in part.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(5)
    return model.eval()
