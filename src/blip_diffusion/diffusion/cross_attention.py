"""Adjust cross-attention: each region of the image attends to its own sentence, and the subject is scaled.

Text states of several sentences are concatenated along the token axis. The hooks work with every attention processor,
LoRA and DeepCache on the engine torch; networks converted to another engine have no hooks.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MIN_VISIBILITY = 1e-4
"""Smallest visibility of a sentence; the logarithm of the visibility is added to attention scores."""


@contextmanager
def adjusted_attention(
    layers: Sequence[tuple[nn.Module, float]], *, visibility: Tensor | None = None, has_without: bool = False
) -> Iterator[None]:
    """Context manager: adjust cross-attention layers, and restore them on exit.

    Args:
        layers: diffusers' attention layers, each with its scale s of the subject.
        visibility: (K, h, w) in [0, 1], the visibility of each of K sentences at each position. Text states are then
            those of K sentences, (B, K L, D).
        has_without: Whether text states are (B, 2 L, D), with the subject and without. A layer then returns
            (1 - s) A(without) + s A(with).
    """
    handles = []
    try:
        for layer, scale in layers:
            hook = _LayerHook(scale, visibility, has_without=has_without)
            handles.append(layer.register_forward_pre_hook(hook.before, with_kwargs=True))
            handles.append(layer.register_forward_hook(hook.after))
        yield
    finally:
        for handle in handles:
            handle.remove()


class _LayerHook:
    """The two hooks of one layer; the first stores the arguments that the second needs."""

    def __init__(self, scale: float, visibility: Tensor | None, *, has_without: bool) -> None:
        self._scale, self._visibility, self._has_without = scale, visibility, has_without
        self._biases: dict[tuple[int, int], Tensor] = {}
        self._without: dict[str, Any] | None = None

    def before(self, _layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Choose the text states, and add the mask of the regions."""
        hidden, text = args[0], kwargs["encoder_hidden_states"]
        full, without = text.chunk(2, dim=1) if self._has_without else (text, None)
        adjusted = kwargs | {"attention_mask": self._bias(hidden, full), "encoder_hidden_states": full}
        if without is not None and self._scale == 0:
            return args, adjusted | {"encoder_hidden_states": without}
        mixes = without is not None and self._scale != 1
        self._without = adjusted | {"encoder_hidden_states": without} if mixes else None
        return args, adjusted

    def after(self, layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Interpolate with the layer's output without the subject."""
        if self._without is None:
            return output
        kwargs, self._without = self._without, None
        without: Tensor = layer.forward(*args, **kwargs)
        return without + self._scale * (output - without)

    def _bias(self, hidden: Tensor, text: Tensor) -> Tensor | None:
        """Return the bias of the attention scores (B, P, K L)."""
        if self._visibility is None:
            return None
        size = hidden.shape[1], text.shape[1]
        if size not in self._biases:
            self._biases[size] = region_bias(self._visibility, *size)
        return self._biases[size].to(hidden).expand(len(hidden), -1, -1)


def region_bias(visibility: Tensor, positions: int, tokens: int) -> Tensor:
    """Return the logarithm of visibility (K, h, w) as attention bias (1, P, K L) of a layer with P positions."""
    sentences, height, width = visibility.shape
    rows = round(math.sqrt(positions * height / width))
    resized = F.interpolate(visibility[None].float(), (rows, positions // rows), mode="area")[0]
    bias = resized.clamp(min=MIN_VISIBILITY).log().flatten(1).T  # (P, K)
    return bias.repeat_interleave(tokens // sentences, dim=1)[None]


def visibility_of(inside: Tensor) -> Tensor:
    """Return where K sentences are visible, (K, h, w): each in its own region, and all of them outside the regions.

    Args:
        inside: (K, h, w) in [0, 1], the share of each position that lies inside each region.
    """
    outside = (1 - inside).prod(dim=0, keepdim=True)
    return torch.clamp(inside + outside, max=1.0)
