"""Attention control (Hertz et al. 2023, "Prompt-to-Prompt"): the maps of a source image, given to its edit.

A batch ends in the rows of the targets and, last, those of their sources. In cross-attention the target's map of a word
becomes the source's map of the word that it stands for; in self-attention the target reads the source's queries and
keys. Letters: `n` images, `P` places, `L` text positions.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from einops import rearrange
from torch import Tensor, nn

from blip_diffusion.modules.placed_unet import PlacedAttention

LARGEST_MAP = 32 * 32
"""Places up to which self-attention is replaced; larger maps hold texture (Hertz et al. 2023, appendix)."""


@dataclass(frozen=True)
class AttentionAlignment:
    """How the maps of two texts belong together.

    Args:
        mapping: (L, L) from source positions (rows) to target positions (columns).
        own: (L,) 1 where the target keeps its own map.
        factor: (L,) multiplies the target's maps (reweighting).
    """

    mapping: Tensor
    own: Tensor
    factor: Tensor

    def to(self, device: torch.device) -> "AttentionAlignment":
        """On another device."""
        return replace(self, mapping=self.mapping.to(device), own=self.own.to(device), factor=self.factor.to(device))

    def edited(self, source: Tensor, target: Tensor) -> Tensor:
        """Return the maps of the targets, from those of sources and targets (..., P, L)."""
        mapping, own, factor = (x.to(target.dtype) for x in (self.mapping, self.own, self.factor))
        return ((source @ mapping) * (1 - own) + target * own) * factor


class AttentionController:
    """Which step it is, and what is replaced in it; shared by all layers.

    Args:
        alignment: Of the texts.
        images: n, the number of targets and of sources.
        cross: In the first steps, how many replace cross-attention; reweighting runs in all steps.
        own: The same for self-attention.
    """

    def __init__(self, alignment: AttentionAlignment, images: int, *, cross: int, own: int) -> None:
        self.alignment, self.images, self._cross, self._own = alignment, images, cross, own
        self._plain = replace(alignment, own=torch.ones_like(alignment.own))
        self.step = 0

    def maps(self, maps: Tensor) -> Tensor:
        """Return cross-attention maps (B, heads, P, L) with those of the targets replaced."""
        alignment = self.alignment if self.step < self._cross else self._plain
        rest, target, source = self._split(maps)
        return torch.cat([rest, alignment.edited(source, target), source])

    def queries_and_keys(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Return queries and keys (B, heads, P, d) of self-attention; the targets' are their sources'."""
        if self.step >= self._own or q.shape[2] > LARGEST_MAP:
            return q, k
        both = (self._split(x) for x in (q, k))
        q, k = (torch.cat([rest, source, source]) for rest, _, source in both)
        return q, k

    def _split(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n = self.images
        return rows[: -2 * n], rows[-2 * n : -n], rows[-n:]


class ControlledAttention:
    """An attention processor that hands its maps to a controller; `inner` is the layer's own."""

    def __init__(self, inner: Any, controller: AttentionController) -> None:
        self._inner, self._controller = inner, controller

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Latents (B, P, D), and text states (B, L, D) in cross-attention, to (B, P, D)."""
        placed = isinstance(self._inner, PlacedAttention)
        query = self._inner.query(attn, hidden_states) if placed else attn.to_q(hidden_states)
        read = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            rearrange(x, "b n (h d) -> b h n d", h=attn.heads) for x in (query, attn.to_k(read), attn.to_v(read))
        )
        if encoder_hidden_states is None:
            hidden = F.scaled_dot_product_attention(*self._controller.queries_and_keys(q, k), v)
        else:
            maps = (q @ k.transpose(-1, -2) * attn.scale).float().softmax(dim=-1).to(v.dtype)
            hidden = self._controller.maps(maps) @ v
        out: Tensor = attn.to_out[0](rearrange(hidden, "b h n d -> b n (h d)"))
        return out


@contextmanager
def controlled_attention(unet: nn.Module, controller: AttentionController) -> Iterator[None]:
    """Context manager: all attention layers hand their maps to a controller; afterwards each has its processor again.

    A layer's own processor, which may have weights, stays in its place under the new one.
    """
    layers = [module for module in unet.modules() if isinstance(module, Attention)]
    before = [vars(layer).get("processor") for layer in layers]
    try:
        for layer in layers:
            vars(layer)["processor"] = ControlledAttention(layer.processor, controller)
        yield
    finally:
        for layer, processor in zip(layers, before, strict=True):
            _put_back(vars(layer), processor)


def _put_back(attributes: Any, processor: Any) -> None:
    """Restore a layer's attribute; a processor with weights is no attribute but a module below it."""
    if processor is None:
        attributes.pop("processor", None)
    else:
        attributes["processor"] = processor
