"""Helpers of the tests of pipelines."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from PIL import Image
from torch import Tensor

from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline

Sample = Callable[..., Any]
"""Images (B, 3, S, S) of a pipeline, from seed 0 unless the options differ."""
INPUTS = ("on the beach", "dog", "dog")
Generate = Callable[..., Any]


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def sample_images(pipe: BlipDiffusionPipeline, dog: Image.Image, prompt: Any = "on the beach", **more: Any) -> Tensor:
    rows = len(prompt) if isinstance(prompt, list) else 1
    generators = [torch.Generator().manual_seed(row) for row in range(rows)]
    settings = {"num_inference_steps": 8, "generator": generators, "output_type": "pt"} | more
    return pipe(prompt, dog, "dog", "dog", **settings).images


def mean_difference(one: Tensor, other: Tensor) -> float:
    """Mean absolute difference of images."""
    return (one - other).abs().mean().item()


def save_lora(pipe: BlipDiffusionPipeline, folder: Path) -> Path:
    """Save a random LoRA of the U-Net."""
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False), "made")
    from peft.utils import get_peft_model_state_dict

    state = get_peft_model_state_dict(pipe.unet, adapter_name="made")
    BlipDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=state)
    pipe.unet.delete_adapters("made")
    return folder
