"""DeepCache (Ma, Fang & Wang 2023): deep features of the U-Net are cached and reused for some steps.

The U-Net is split at its outermost level, the only one at the latents' full size. The features that this level receives
from below change little from step to step, so most steps compute the outermost level only.
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from blip_diffusion.diffusion.guidance import Denoiser
from blip_diffusion.errors import InputError

Whole = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Latents (B, C, H, W), a timestep and text states (B, L, D) to the prediction and the deep features (B, F, H, W).

The text states have the U-Net's data type; the latents keep theirs."""
Shallow = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Latents, a timestep, text states and deep features to the prediction."""


class WholeUNet(nn.Module):
    """The whole U-Net, which also returns the features that enter its last `layers` layers. It is never compiled."""

    def __init__(self, unet: Any, layers: int = 1) -> None:
        super().__init__()
        check_divisible(unet, layers)
        self.unet = unet
        self.layers = layers

    def extra_repr(self) -> str:
        return f"layers={self.layers}"  # distinguishes instances with equal weights and names

    def forward(self, latents: Tensor, timestep: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        with _recorded_inputs(self.unet.up_blocks[-1].resnets[-self.layers]) as recorded:
            inputs = latents.to(text.dtype), timestep, text
            prediction = self.unet._call_impl(*inputs, return_dict=False)[0]  # a compiled graph ignores later hooks
        skipped = self.unet.config.block_out_channels[0]  # the input's last channels come from the skip
        return prediction.to(latents.dtype), recorded[0][:, :-skipped]


class ShallowUNet(nn.Module):
    """The first and last layers of the U-Net's outermost level, on deep features of an earlier step.

    Of Stable Diffusion 1.5's 803 GFLOP per image, one layer takes 63 and two take 180.
    """

    def __init__(self, unet: Any, layers: int = 1) -> None:
        super().__init__()
        check_divisible(unet, layers)
        self.unet = unet
        self.layers = layers

    def extra_repr(self) -> str:
        return f"layers={self.layers}"  # distinguishes instances with equal weights and names

    def forward(self, latents: Tensor, timestep: Tensor, text: Tensor, deep: Tensor) -> Tensor:
        unet = self.unet
        x = unet.conv_in(latents.to(text.dtype))
        time = unet.time_embedding(unet.get_time_embed(x, timestep), None)
        skips = [x]
        for index in range(self.layers - 1):
            skips.append(_layer(unet.down_blocks[0], index, skips[-1], time, text))
        x = deep
        for index in range(-self.layers, 0):
            x = _layer(unet.up_blocks[-1], index, torch.cat([x, skips.pop()], dim=1), time, text)
        prediction: Tensor = unet.conv_out(unet.conv_act(unet.conv_norm_out(x)))
        return prediction.to(latents.dtype)


def check_divisible(unet: Any, layers: int) -> None:
    """Raise `InputError` for a U-Net whose outermost level cannot run alone."""
    most = len(unet.up_blocks[-1].resnets)
    if not 1 <= layers <= most:
        raise InputError(f"deepcache_layers is {layers}: this U-Net's outermost level has 1 to {most}.")
    if unet.class_embedding is not None or getattr(unet.config, "addition_embed_type", None):
        raise InputError("DeepCache can't run this U-Net: it needs one with the architecture of Stable Diffusion 1.")


def deepcache(whole: Whole, shallow: Shallow | None, text: Tensor, every: int) -> Denoiser:
    """Run the whole U-Net every `every` steps, and in between only its outermost layers on cached features.

    `shallow` may be `None` if `every` is 1.
    """
    steps = itertools.count()
    deep: Tensor | None = None

    def denoise(latents: Tensor, timestep: Tensor) -> Tensor:
        nonlocal deep
        if next(steps) % every == 0 or deep is None or shallow is None:
            prediction, deep = whole(latents, timestep, text)
            return prediction
        return shallow(latents, timestep, text, deep)

    return denoise


def _layer(block: Any, index: int, x: Tensor, time: Tensor, text: Tensor) -> Tensor:
    """Apply a residual layer, and the attention after it if the block has any."""
    x = block.resnets[index](x, time)
    if getattr(block, "has_cross_attention", False):
        x = block.attentions[index](x, encoder_hidden_states=text, return_dict=False)[0]
    return x


@contextmanager
def _recorded_inputs(module: nn.Module) -> Iterator[list[Tensor]]:
    """Record the first input of each call of a module within the context."""
    recorded: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, inputs: recorded.append(inputs[0]))
    try:
        yield recorded
    finally:
        handle.remove()
