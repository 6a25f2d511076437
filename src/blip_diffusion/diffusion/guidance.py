"""A denoiser is a callable `(latents, timestep) -> prediction`; guidance is one more of the same shape."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""Noised latents (B, C, H, W) and a timestep to the network's answer (B, C, H, W)."""


def unet_denoiser(unet: Any, text: Tensor) -> Denoiser:
    """The U-Net looking at text states (B, L, D) through cross-attention.

    It computes in its own precision; latents keep theirs, in which a solver's small steps add up.
    """
    text = text.to(unet.dtype)  # which asks every layer: once is enough

    def denoise(latents: Tensor, timestep: Tensor) -> Tensor:
        answer: Tensor = unet(latents.to(text.dtype), timestep, encoder_hidden_states=text, return_dict=False)[0]
        return answer.to(latents.dtype)

    return denoise


@dataclass(frozen=True)
class Control:
    """A ControlNet (Zhang, Rao & Agrawala 2023), the picture it looks at, how strongly it speaks, and when."""

    net: Any
    picture: Tensor  # (B, 3, H, W) in [0, 1]
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
    """The U-Net with what ControlNets add to its skips and its middle; they look at the same text states (B, L, D).

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
    """A net's additions to the U-Net's skips, and last to its middle. It may be in another precision."""
    dtype = latents.dtype
    if halved:
        latents, text = latents.chunk(2)[1], text.chunk(2)[1]
    latents, text = latents.to(control.net.dtype), text.to(control.net.dtype)
    picture = control.picture.to(latents).repeat(len(latents) // len(control.picture), 1, 1, 1)
    down, middle = control.net(
        latents,
        timestep,
        encoder_hidden_states=text,
        controlnet_cond=picture,
        conditioning_scale=control.scale,
        guess_mode=guess,
        return_dict=False,
    )
    added = [x.to(dtype) for x in (*down, middle)]
    return [torch.cat([torch.zeros_like(x), x]) if halved else x for x in added]


def guided(both: Denoiser, scale: float, *, rescale: float = 0.0) -> Denoiser:
    """Classifier-free guidance (Ho & Salimans 2022). `both` answers for [unconditional, conditional] batches of 2B.

    `rescale` in [0, 1] pulls the answer's spread back to the conditional one's (Lin et al. 2023, section 3.4), which
    schedules that end in pure noise need.
    """

    def denoise(latents: Tensor, timestep: Tensor) -> Tensor:
        empty, full = both(torch.cat([latents, latents]), timestep).chunk(2)
        answer = empty + scale * (full - empty)
        return _rescaled(answer, full, rescale) if rescale else answer

    return denoise


def _rescaled(answer: Tensor, conditional: Tensor, amount: float) -> Tensor:
    dims = tuple(range(1, answer.ndim))
    ratio = conditional.std(dim=dims, keepdim=True) / answer.std(dim=dims, keepdim=True)
    return answer * (amount * ratio + 1 - amount)
