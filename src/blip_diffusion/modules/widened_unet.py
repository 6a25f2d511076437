"""A U-Net that also reads a condition beside the noised latents: a masked image, or a small image."""

from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def widened(unet: Any, channels: int, *, noise_levels: int | None = None) -> Any:
    """Return a U-Net with more input channels, whose new weights are zero, so that its output is unchanged.

    Args:
        unet: A U-Net that reads C channels; it is not changed.
        channels: C + K, the number of input channels.
        noise_levels: Number of class labels, which tell how noisy the condition is; `None`: no labels.

    Returns:
        A new U-Net with the same weights; `unet` itself if it has that many input channels.
    """
    if unet.config.in_channels == channels:
        return unet
    wide = type(unet).from_config(unet.config, in_channels=channels, num_class_embeds=noise_levels)
    state = dict(unet.state_dict())
    if noise_levels is not None:
        state["class_embedding.weight"] = torch.zeros_like(wide.class_embedding.weight)
    old: Tensor = state["conv_in.weight"]  # (W, C, 3, 3)
    new = old.new_zeros(old.shape[0], channels, *old.shape[2:])
    new[:, : old.shape[1]] = old
    wide.load_state_dict(state | {"conv_in.weight": new})
    nn.Module.to(wide, old.device, old.dtype)  # diffusers' own `to` warns about modules that a U-Net doesn't have
    return wide.train(unet.training)
