"""A LoRA file that tests share: it changes one layer of the U-Net, visibly."""

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file


def lora_of(model: Path, path: Path) -> Path:
    """Write a LoRA of rank 2 for a model's folder and return its path."""
    unet = UNet2DConditionModel.from_pretrained(model / "unet")
    name = next(name for name, _ in unet.named_modules() if name.endswith("attn1.to_q"))
    out, into = unet.get_submodule(name).weight.shape
    torch.manual_seed(0)
    save_file(
        {f"unet.{name}.lora_A.weight": torch.randn(2, into), f"unet.{name}.lora_B.weight": torch.randn(out, 2)}, path
    )
    return path
