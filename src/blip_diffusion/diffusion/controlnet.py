"""ControlNets (Zhang, Rao & Agrawala 2023) as a denoiser."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from blip_diffusion.diffusion.guidance import Denoiser


@dataclass(frozen=True)
class Control:
    """A ControlNet (Zhang, Rao & Agrawala 2023), the image it looks at, how strongly it speaks, and when."""

    net: Any
    image: Tensor  # (B, 3, H, W) in [0, 1]
    scale: float = 1.0
    start: float = 0.0  # shares of the steps: it speaks in those that lie wholly between
    end: float = 1.0

    def speaks(self, step: int, steps: int) -> bool:
        """Whether it does in a step of so many."""
        return step / steps >= self.start and (step + 1) / steps <= self.end


def controlled_denoiser(
    unet: Any,
    text: Tensor,
    controls: Sequence[Control],
    *,
    steps: int,
    guess: bool = False,
    doubled: bool = False,
    counter: Iterator[int] | None = None,
) -> Denoiser:
    """Return a denoiser of the U-Net with ControlNet residuals; all read the same text states (B, L, D).

    It is called once a step, in order; denoisers that take turns share a `counter`. With `guess` the nets speak softer
    the shallower their layer, and where the batch is `doubled` for guidance only in its second, conditional half: so
    they can be trusted without a prompt.
    """
    counter = itertools.count() if counter is None else counter
    text = text.to(unet.dtype)

    def denoise(latents: Tensor, timestep: Tensor) -> Tensor:
        step = next(counter)
        added: list[Tensor] = []
        given = latents.to(text.dtype)
        for control in controls:
            if control.speaks(step, steps):
                more = _control(control, given, timestep, text, guess=guess, halved=guess and doubled)
                added = [a + b for a, b in zip(added, more, strict=True)] if added else more
        extra = {
            "down_block_additional_residuals": added[:-1] or None,
            "mid_block_additional_residual": added[-1] if added else None,
        }
        answer: Tensor = unet(given, timestep, encoder_hidden_states=text, return_dict=False, **extra)[0]
        return answer.to(latents.dtype)

    return denoise


def _control(
    control: Control, latents: Tensor, timestep: Tensor, text: Tensor, *, guess: bool, halved: bool
) -> list[Tensor]:
    """Return a ControlNet's residuals for the U-Net's skips and, last, its middle."""
    dtype = latents.dtype
    if halved:
        latents, text = latents.chunk(2)[1], text.chunk(2)[1]
    latents, text = latents.to(control.net.dtype), text.to(control.net.dtype)
    image = control.image.to(latents).repeat(len(latents) // len(control.image), 1, 1, 1)
    down, middle = control.net(
        latents,
        timestep,
        encoder_hidden_states=text,
        controlnet_cond=image,
        conditioning_scale=control.scale,
        guess_mode=guess,
        return_dict=False,
    )
    added = [x.to(dtype) for x in (*down, middle)]
    return [torch.cat([torch.zeros_like(x), x]) if halved else x for x in added]
