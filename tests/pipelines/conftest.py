"""Fixtures of the tests of pipelines."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline

from .sampling import INPUTS, Generate, Sample, seeded


@pytest.fixture
def sample(dog: Image.Image) -> Sample:
    """Return images of a pipeline as a tensor: the dog on the beach from seed 0, unless the options differ."""

    def sample(pipe: BlipDiffusionPipeline, *prompt: str, **options: Any) -> Any:
        inputs = {"prompt": "on the beach", "reference_image": dog, "source_subject_category": "dog"}
        inputs |= {"prompt": prompt[0]} if prompt else {}
        if "prompt_embeds" in options:
            inputs = {}
        noise = {"generator": torch.Generator().manual_seed(0), "output_type": "pt"}
        return pipe(**{**inputs, **noise, **options}).images

    return sample


@pytest.fixture
def generate(pipe: BlipDiffusionPipeline, dog: Image.Image) -> Generate:
    """Return images as a tensor, from seed 0 unless the options differ."""

    def call(
        prompt: Any = INPUTS[0], reference: Any = dog, source: Any = "dog", target: Any = "dog", **more: Any
    ) -> Any:
        more = {"output_type": "pt", "generator": seeded(0), **more}
        return pipe(prompt, reference, source, target, **more).images

    return call


@pytest.fixture(scope="module")
def cat() -> Image.Image:
    return Image.effect_noise((40, 40), 90).convert("RGB")


@pytest.fixture
def load_pipeline(tiny_folder: Path) -> Callable[[], BlipDiffusionPipeline]:
    def load() -> BlipDiffusionPipeline:
        pipe = BlipDiffusionPipeline.from_pretrained(tiny_folder)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return load


@pytest.fixture
def unet_batch_sizes(fresh_pipe: BlipDiffusionPipeline) -> Iterator[list[int]]:
    """The batch size of each call of the U-Net."""
    sizes: list[int] = []
    handle = fresh_pipe.unet.register_forward_pre_hook(lambda module, given: sizes.append(len(given[0])))
    yield sizes
    handle.remove()
