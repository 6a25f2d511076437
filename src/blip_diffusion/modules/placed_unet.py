"""Cross-attention that finds a subject token by its position in the image.

Each subject token represents one cell of the reference. Its text state ends in a fixed code of that cell's position in
the image, and every cross-attention layer adds the code of a latent's position to its query. The dot product of two
codes depends only on their distance, so each latent attends to the token at its position from the first training step
on, and the positions of the tokens place the subject in the image. Not in the paper.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor
from einops import rearrange
from torch import Tensor, nn

CODE_WIDTH = 32
"""Width of a position code."""
PLACED = "placed_tokens"
"""`encoder_hid_dim_type` of a placed U-Net. diffusers' class refuses this value, as it would compute something else."""
_GAIN = 1.4


def place_code(places: Tensor, width: int = CODE_WIDTH) -> Tensor:
    """Return sines and cosines of positions.

    Args:
        places: (..., 2) x and y, in the image's sides; [0, 1] lies within the image.
        width: Width of a code, a multiple of 4. Frequencies are geometric from π to 2^3.5 π.

    Returns:
        (..., width) codes. The dot product of two is largest, width / 2, where the positions are equal.
    """
    frequencies = math.pi * 2.0 ** torch.linspace(0, 3.5, width // 4, device=places.device)
    angles = places.float()[..., None] * frequencies  # (..., 2, width / 4)
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def token_codes(frames: Tensor, tokens: int, width: int = CODE_WIDTH) -> Tensor:
    """Return the codes of subject tokens that lie on a square grid in the reference.

    Args:
        frames: (B, K, 4), the reference's square in the image for each of K copies of the subject: left, top, width and
            height in the image's sides. A negative width mirrors; width 0 is padding.
        tokens: Q, a square number: tokens lie row by row.
        width: Width of a code.

    Returns:
        (B, Q, width): the sum of the codes of a token's positions, one for each copy.
    """
    cells = _grid(tokens, 1.0, frames.device)  # (Q, 2)
    places = frames[:, :, None, :2] + frames[:, :, None, 2:] * cells  # (B, K, Q, 2)
    present = (frames[:, :, None, 2:3] != 0).float()
    return (place_code(places, width) * present).sum(dim=1)


def append_codes(states: Tensor, codes: Tensor, at: int) -> Tensor:
    """Append codes (B, Q, P) to the Q text states from `at` on and zeros to the others: (B, L, D + P)."""
    padded = F.pad(codes, (0, 0, at, states.shape[1] - at - codes.shape[1]))
    return torch.cat([states, padded.to(states.dtype)], dim=-1)


def is_placed(config: Mapping[str, Any]) -> bool:
    """Return whether a U-Net's configuration is that of a `PlacedUNet2DConditionModel`."""
    return config.get("encoder_hid_dim_type") == PLACED


class PlacedAttention(nn.Module):
    """diffusers' attention processor, with a learned projection of the latent's position code added to the query."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.place = nn.Linear(CODE_WIDTH, inner, bias=False)
        self.aspect = 1.0

    def forward(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Attend from latents (B, H W, D) of images of `aspect` W / H to text states (B, L, D + code): (B, H W, D)."""
        query = self.query(attn, hidden_states)
        if attention_mask is not None:
            attention_mask = attention_mask[:, None]  # (B, 1, 1, L), for every head and latent
        q, k, v = (
            rearrange(x, "b n (h d) -> b h n d", h=attn.heads)
            for x in (query, attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states))
        )
        hidden = F.scaled_dot_product_attention(q, k, v, attn_mask=attention_mask)
        out: Tensor = attn.to_out[0](rearrange(hidden, "b h n d -> b n (h d)"))
        return out

    def query(self, attn: Any, hidden_states: Tensor) -> Tensor:
        """Return the queries (B, H W, D) of latents (B, H W, D), with their places."""
        places = _grid(hidden_states.shape[1], self.aspect, hidden_states.device)
        query: Tensor = attn.to_q(hidden_states) + self.place(place_code(places).to(hidden_states.dtype))
        return query


class PlacedCrossAttention(Attention):
    """Cross-attention that keeps its processor, because the processor has learned weights.

    diffusers replaces processors for attention slicing, fused projections and others; the position codes would be lost.
    """

    def set_processor(self, processor: Any) -> None:
        """Replace the processor if the new one is a `PlacedAttention`; ignore any other."""
        if isinstance(processor, PlacedAttention):
            super().set_processor(processor)


def _grid(cells: int, aspect: float, device: torch.device) -> Tensor:
    """Return x and y of the centres of H x W cells, row by row: (H W, 2)."""
    height = round(math.sqrt(cells / aspect))
    y, x = ((torch.arange(n, device=device) + 0.5) / n for n in (height, cells // height))
    return torch.stack([x.repeat(height), y.repeat_interleave(len(x))], dim=-1)


class PlacedUNet2DConditionModel(UNet2DConditionModel):
    """Stable Diffusion's U-Net whose cross-attention adds position codes to its queries.

    Its `cross_attention_dim` is the text encoder's width plus `CODE_WIDTH`.
    """

    def _set_encoder_hid_proj(self, encoder_hid_dim_type: Any, cross_attention_dim: Any, encoder_hid_dim: Any) -> None:
        super()._set_encoder_hid_proj(None, cross_attention_dim, None)

    # diffusers reads the configuration's keys off the signature
    @functools.wraps(UNet2DConditionModel.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.aspect = 1.0
        for module in cross_attentions(self):
            module.set_processor(PlacedAttention(module.to_q.out_features))
            module.__class__ = PlacedCrossAttention

    def forward(self, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.aspect != (aspect := sample.shape[-1] / sample.shape[-2]):
            self.aspect = aspect
            for module in cross_attentions(self):
                module.processor.aspect = aspect
        return super().forward(sample, *args, **kwargs)

    def set_default_attn_processor(self) -> None:
        """Reset self-attention to diffusers' default processor."""
        self.set_attn_processor(AttnProcessor())

    @torch.no_grad()
    def init_placed(self) -> None:
        """Initialize half of the heads of a new network so that latents attend to the token at their position."""
        for module in cross_attentions(self):
            width = module.to_q.out_features // module.heads
            read, place = module.to_k.weight[:, -CODE_WIDTH:], module.processor.place.weight
            read.zero_()
            place.zero_()
            for head in range((module.heads + 1) // 2):
                rows = slice(head * width, head * width + min(width, CODE_WIDTH))
                for weight in (read, place):
                    weight[rows] += _GAIN * torch.eye(CODE_WIDTH)[: min(width, CODE_WIDTH)]


def cross_attentions(unet: nn.Module) -> list[Any]:
    """Return the cross-attention layers, which attend to text states."""
    return [module for module in unet.modules() if getattr(module, "is_cross_attention", False)]
