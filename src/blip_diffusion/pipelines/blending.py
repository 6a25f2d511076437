"""Mixtures of the tokens of several subjects, linear or spherical."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from blip_diffusion.errors import InputError

BlendMode = Literal["linear", "spherical"]
BLEND_MODES: tuple[BlendMode, ...] = ("linear", "spherical")


def weighted_sum(tokens: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return the weighted sum of subject tokens (1, Q, D)."""
    return torch.stack([weight * one for one, weight in zip(tokens, weights, strict=True)]).sum(dim=0)


def shares(weights: Sequence[float]) -> list[float]:
    """Return weights divided by their sum. Raises `InputError` if that is 0."""
    total = sum(weights)
    if not total:
        raise InputError("The weights of the subjects add up to 0: change one of them.")
    return [weight / total for weight in weights]


def blend_tokens(tokens: Sequence[Tensor], weights: Sequence[float], mode: BlendMode) -> Tensor:
    """Mix subject tokens (1, Q, D) by weights that sum to 1: linearly, or by slerp of each token."""
    if mode == "linear":
        return weighted_sum(tokens, weights)
    if min(weights) < 0:
        raise InputError(f"The weights are {list(weights)}: a spherical mixture needs weights from 0.")
    mixed, total = tokens[0], weights[0]
    for one, weight in zip(tokens[1:], weights[1:], strict=True):
        total += weight
        mixed = slerp(mixed, one, weight / total) if weight else mixed
    return mixed


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Interpolate vectors (..., D) from `a` to `b` by their angle (Shoemake 1985), and their lengths linearly.

    Args:
        a: Vectors at the share 0.
        b: Vectors at the share 1.
        share: In [0, 1].
    """
    lengths = [vector.norm(dim=-1, keepdim=True) for vector in (a, b)]
    first, second = (vector / length.clamp(min=1e-12) for vector, length in zip((a, b), lengths, strict=True))
    angle = (first * second).sum(dim=-1, keepdim=True).clamp(-1, 1).acos()
    parts = [torch.sin((1 - share) * angle), torch.sin(share * angle)]
    on_arc = (parts[0] * first + parts[1] * second) / angle.sin().clamp(min=1e-12)
    straight = (1 - share) * first + share * second
    direction = torch.where(angle.sin() < 1e-4, straight, on_arc)
    return direction * ((1 - share) * lengths[0] + share * lengths[1])
