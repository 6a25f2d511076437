"""Denoisers that compute less: guidance on an interval, in two passes or one, and deep U-Net features used again.

The U-Net is taken apart at the door of its outermost level, which alone works at the latents' full size. What comes up
through that door from the depths changes little from step to step (Ma, Fang & Wang, "DeepCache", 2023).
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
"""Latents (B, C, H, W), a timestep and text states (B, L, D) to the answer and the deep features (B, F, H, W).

The text states are in the U-Net's own precision; the latents keep theirs."""
Shallow = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""The same and such features to the answer."""


class WholeUNet(nn.Module):
    """The U-Net, that also tells what comes up to its last `layers` layers. It is run as it is, never compiled."""

    def __init__(self, unet: Any, layers: int = 1) -> None:
        super().__init__()
        check_divisible(unet, layers)
        self.unet = unet
        self.layers = layers

    def extra_repr(self) -> str:
        return f"layers={self.layers}"  # which tells one from another where weights and names don't

    def forward(self, latents: Tensor, timestep: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        with _inputs(self.unet.up_blocks[-1].resnets[-self.layers]) as seen:
            given = latents.to(text.dtype), timestep, text
            answer = self.unet._call_impl(*given, return_dict=False)[0]  # a graph compiled before knows no later hooks
        skipped = self.unet.config.block_out_channels[0]  # of the input, the last channels come over the skip
        return answer.to(latents.dtype), seen[0][:, :-skipped]


class ShallowUNet(nn.Module):
    """The first and last layers of the U-Net's outermost level, given what came up from below at an earlier step.

    Of Stable Diffusion 1.5's 803 GFLOP an image, one layer takes 63 and two take 180.
    """

    def __init__(self, unet: Any, layers: int = 1) -> None:
        super().__init__()
        check_divisible(unet, layers)
        self.unet = unet
        self.layers = layers

    def extra_repr(self) -> str:
        return f"layers={self.layers}"  # which tells one from another where weights and names don't

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
        answer: Tensor = unet.conv_out(unet.conv_act(unet.conv_norm_out(x)))
        return answer.to(latents.dtype)


def check_divisible(unet: Any, layers: int) -> None:
    """Raise `InputError` for a U-Net whose outermost level cannot run alone."""
    most = len(unet.up_blocks[-1].resnets)
    if not 1 <= layers <= most:
        raise InputError(f"deepcache_layers is {layers}: this U-Net's outermost level has 1 to {most}.")
    if unet.class_embedding is not None or getattr(unet.config, "addition_embed_type", None):
        raise InputError("Features of this U-Net can't be used again: it isn't one of Stable Diffusion 1's kind.")


def deepcache(whole: Whole, shallow: Shallow | None, text: Tensor, every: int) -> Denoiser:
    """Run the whole U-Net every `every` steps, and in between only its outermost layers on cached features.

    Where every step takes the whole one, `shallow` isn't needed.
    """
    steps = itertools.count()
    deep: Tensor | None = None

    def denoise(latents: Tensor, timestep: Tensor) -> Tensor:
        nonlocal deep
        if next(steps) % every == 0 or deep is None or shallow is None:
            answer, deep = whole(latents, timestep, text)
            return answer
        return shallow(latents, timestep, text, deep)

    return denoise


def _layer(block: Any, index: int, x: Tensor, time: Tensor, text: Tensor) -> Tensor:
    """Apply a residual layer, and the attention after it if the block has any."""
    x = block.resnets[index](x, time)
    if getattr(block, "has_cross_attention", False):
        x = block.attentions[index](x, encoder_hidden_states=text, return_dict=False)[0]
    return x


@contextmanager
def _inputs(module: nn.Module) -> Iterator[list[Tensor]]:
    """Record a module's inputs within the context."""
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        yield seen
    finally:
        handle.remove()
