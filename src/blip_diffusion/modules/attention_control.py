"""Attention control (Hertz et al. 2023, "Prompt-to-Prompt"): attention maps of a source image in its edit.

The last 2 n rows of a batch are the n targets and their n sources. In cross-attention the target's map of a word is
replaced by the source's map of the aligned word; in self-attention the target uses the source's queries and keys.
Letters: `n` images, `P` positions of the feature map, `L` text positions.
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
"""Largest P at which self-attention is replaced; larger maps encode texture (Hertz et al. 2023, appendix)."""


@dataclass(frozen=True)
class AttentionAlignment:
    """Alignment of the attention maps of two texts.

    Args:
        mapping: (L, L) from source positions (rows) to target positions (columns).
        unmapped: (L,) 1 at target positions that keep the target's map.
        factor: (L,) multiplies the target's maps (reweighting).
    """

    mapping: Tensor
    unmapped: Tensor
    factor: Tensor

    def to(self, device: torch.device) -> "AttentionAlignment":
        """Return the alignment on another device."""
        return replace(
            self, mapping=self.mapping.to(device), unmapped=self.unmapped.to(device), factor=self.factor.to(device)
        )

    def edited(self, source: Tensor, target: Tensor) -> Tensor:
        """Return edited maps of the targets from the maps (..., P, L) of sources and targets."""
        mapping, unmapped, factor = (x.to(target.dtype) for x in (self.mapping, self.unmapped, self.factor))
        return ((source @ mapping) * (1 - unmapped) + target * unmapped) * factor


class AttentionController:
    """The current step and the replacement of maps in it, shared by all layers.

    Args:
        alignment: Alignment of the texts.
        images: n, the number of targets and of sources.
        cross_steps: Number of first steps in which cross-attention is replaced; reweighting runs in all steps.
        self_steps: Number of first steps in which self-attention is replaced.
    """

    def __init__(self, alignment: AttentionAlignment, images: int, *, cross_steps: int, self_steps: int) -> None:
        self.alignment, self.images = alignment, images
        self._cross_steps, self._self_steps = cross_steps, self_steps
        self._reweighting = replace(alignment, unmapped=torch.ones_like(alignment.unmapped))
        self.step = 0

    def maps(self, maps: Tensor) -> Tensor:
        """Return cross-attention maps (B, heads, P, L) with the targets' maps replaced."""
        alignment = self.alignment if self.step < self._cross_steps else self._reweighting
        rest, target, source = self._split(maps)
        return torch.cat([rest, alignment.edited(source, target), source])

    def queries_and_keys(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Return queries and keys (B, heads, P, d) of self-attention with the targets' replaced by their sources'."""
        if self.step >= self._self_steps or q.shape[2] > LARGEST_MAP:
            return q, k
        both = (self._split(x) for x in (q, k))
        q, k = (torch.cat([rest, source, source]) for rest, _, source in both)
        return q, k

    def _split(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n = self.images
        return rows[: -2 * n], rows[-2 * n : -n], rows[-n:]


class ControlledAttention:
    """An attention processor whose maps a controller edits; `inner` is the layer's previous processor."""

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
        """Return attention (B, P, D) of latents (B, P, D) to themselves, or to text states (B, L, D)."""
        placed = isinstance(self._inner, PlacedAttention)
        query = self._inner.query(attn, hidden_states) if placed else attn.to_q(hidden_states)
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            rearrange(x, "b n (h d) -> b h n d", h=attn.heads) for x in (query, attn.to_k(context), attn.to_v(context))
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
    """Context manager: a controller edits the maps of all attention layers; on exit their processors are restored.

    A processor with weights stays registered as a submodule of its layer meanwhile.
    """
    layers = [module for module in unet.modules() if isinstance(module, Attention)]
    previous = [vars(layer).get("processor") for layer in layers]
    try:
        for layer in layers:
            vars(layer)["processor"] = ControlledAttention(layer.processor, controller)
        yield
    finally:
        for layer, processor in zip(layers, previous, strict=True):
            _restore_processor(vars(layer), processor)


def _restore_processor(attributes: Any, processor: Any) -> None:
    """Restore a layer's processor attribute; a processor with weights is a submodule, not an attribute."""
    if processor is None:
        attributes.pop("processor", None)
    else:
        attributes["processor"] = processor
