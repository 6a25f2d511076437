"""The Q-Former (Li, Li, Savarese & Hoi 2023, section 3): learned queries that read an image, with or without words.

A BERT whose self-attention is shared by two kinds of rows, queries and words. Only the queries attend to the image,
through cross-attention; each kind has its own feed-forward layers. The three objectives of BLIP-2 (figure 2 there)
differ only in which rows attend to which:

                     unimodal (ITC)      multimodal causal (ITG)     bidirectional (ITM, subject tokens)
                     queries words       queries words               queries words
        queries         x      .            x      .                    x      x
        words           .      x            x   lower triangle          x      x

Letters: `B` batch, `N` patches, `V` vision width, `Q` queries, `L` words, `D` width.
"""

import enum
import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from blip_diffusion.errors import ConfigError


class AttentionPattern(enum.Enum):
    """Which rows of the self-attention attend to which columns."""

    UNIMODAL = "unimodal"
    CAUSAL = "multimodal causal"
    BIDIRECTIONAL = "bidirectional"


@dataclass(frozen=True)
class QFormerConfig:
    """Shapes of the Q-Former; the defaults are the published ones (BERT base). A vocabulary of 0 leaves out words."""

    width: int = 768
    layers: int = 12
    heads: int = 12
    inner: int = 3072
    vocabulary: int = 30523
    positions: int = 512
    vision_width: int = 1024
    queries: int = 16
    cross_attention_every: int = 1
    eps: float = 1e-12
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ConfigError(f"qformer: width {self.width} is not a multiple of {self.heads} heads.")


class QFormerOutput(NamedTuple):
    """The last hidden states of queries and words; without image features or words, theirs has no rows."""

    queries: Tensor  # (B, Q, D)
    words: Tensor  # (B, L, D)


class Attention(nn.Module):
    """Multi-head attention, then BERT's add and norm. Keys and values may come from another sequence."""

    def __init__(self, config: QFormerConfig, *, source_width: int | None = None) -> None:
        super().__init__()
        self.heads = config.heads
        self.query = nn.Linear(config.width, config.width)
        self.key = nn.Linear(source_width or config.width, config.width)
        self.value = nn.Linear(source_width or config.width, config.width)
        self.out = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, source: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        source = x if source is None else source
        q, k, v = (
            rearrange(layer(rows), "b n (h d) -> b h n d", h=self.heads)
            for layer, rows in ((self.query, x), (self.key, source), (self.value, source))
        )
        dropout = self.dropout.p if self.training else 0.0
        hidden = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return self.norm(x + self.dropout(self.out(rearrange(hidden, "b h n d -> b n (h d)"))))


class FeedForward(nn.Module):
    """BERT's feed-forward layer, then add and norm."""

    def __init__(self, config: QFormerConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.width, config.inner)
        self.down = nn.Linear(config.inner, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.dropout(self.down(F.gelu(self.up(x)))))


class Layer(nn.Module):
    """Self-attention over all rows, cross-attention of queries to the image, and a feed-forward per kind of row."""

    def __init__(self, config: QFormerConfig, *, has_cross_attention: bool) -> None:
        super().__init__()
        self.self_attention = Attention(config)
        self.cross_attention = Attention(config, source_width=config.vision_width) if has_cross_attention else None
        self.query_feed_forward = FeedForward(config)
        self.word_feed_forward = FeedForward(config) if config.vocabulary else None

    def forward(self, x: Tensor, features: Tensor | None, mask: Tensor, queries: int) -> Tensor:
        x = self.self_attention(x, mask=mask)  # (B, Q + L, D)
        query_rows, word_rows = x[:, :queries], x[:, queries:]
        if queries:
            if self.cross_attention is not None and features is not None:
                query_rows = self.cross_attention(query_rows, features)
            query_rows = self.query_feed_forward(query_rows)
        if self.word_feed_forward is not None and word_rows.shape[1]:
            word_rows = self.word_feed_forward(word_rows)
        return torch.cat([query_rows, word_rows], dim=1)


class QFormer(nn.Module):
    """Image features and words to query states and word states, under one of three attention patterns."""

    def __init__(self, config: QFormerConfig) -> None:
        super().__init__()
        self.config = config
        self.query_tokens = nn.Parameter(torch.empty(1, config.queries, config.width))
        self.word_embeddings = nn.Embedding(config.vocabulary, config.width) if config.vocabulary else None
        self.position_embeddings = nn.Embedding(config.positions, config.width) if config.vocabulary else None
        self.norm = nn.LayerNorm(config.width, eps=config.eps)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            Layer(config, has_cross_attention=index % config.cross_attention_every == 0)
            for index in range(config.layers)
        )
        self.apply(_initialise)
        nn.init.normal_(self.query_tokens, std=0.02)
        self.copy_word_layers()

    @torch.no_grad()
    def init_query_grid(self, place_width: int) -> None:
        """Initialize the queries of a new Q-Former on a square grid, each attending to the patches at its position.

        Half of the heads of every cross-attention start by comparing the query's position with the patch's.

        Args:
            place_width: Width of the position embedding (`place_features`) at the end of the image features.
        """
        side = math.isqrt(self.config.queries)
        nn.init.normal_(self.query_tokens, std=0.1)
        self.query_tokens[..., :place_width] = place_features(side, place_width)
        for layer in self.layers:
            assert isinstance(layer, Layer)
            if layer.cross_attention is not None:
                _init_local_heads(layer.cross_attention, place_width)

    @torch.no_grad()
    def keep_queries(self, count: int) -> None:
        """Keep `count` of the queries, evenly spread; of a square grid, the middle of each cell of a coarser one.

        Args:
            count: From 1 to the number of queries.

        Raises:
            ConfigError: If there are fewer queries than that.
        """
        have = self.config.queries
        if not 1 <= count <= have:
            raise ConfigError(f"The Q-Former has {have} queries, so {count} of them can't be kept: use 1 to {have}.")
        kept = _spread(have, count)
        if math.isqrt(have) ** 2 == have and math.isqrt(count) ** 2 == count:
            side = _spread(math.isqrt(have), math.isqrt(count))
            kept = [row * math.isqrt(have) + column for row in side for column in side]
        self.query_tokens = nn.Parameter(self.query_tokens[:, kept].clone())
        self.config = replace(self.config, queries=count)

    def copy_word_layers(self) -> None:
        """Copy each layer's feed-forward for words to the one for queries, as the published stage 1 does."""
        for layer in self.layers:
            assert isinstance(layer, Layer)
            if layer.word_feed_forward is not None:
                layer.query_feed_forward.load_state_dict(layer.word_feed_forward.state_dict())

    def forward(
        self,
        features: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pattern: AttentionPattern = AttentionPattern.BIDIRECTIONAL,
    ) -> QFormerOutput:
        """Return the last hidden states of queries and words.

        Args:
            features: Image features (B, N, V) for the queries; `None`: no queries.
            input_ids: Token ids (B, L); `None`: no words.
            attention_mask: (B, L), 1 for words and 0 for padding.
            pattern: Which rows attend to which.
        """
        if features is None and input_ids is None:
            raise ValueError("the Q-Former needs image features, words, or both")
        rows = []
        if features is not None:
            rows.append(self.query_tokens.expand(len(features), -1, -1))  # (B, Q, D)
        if input_ids is not None:
            rows.append(self._embed(input_ids))  # (B, L, D)
        queries = self.config.queries if features is not None else 0
        x = self.dropout(self.norm(torch.cat(rows, dim=1)))  # (B, Q + L, D)
        mask = attention_pattern(pattern, queries, input_ids, attention_mask, x.device)
        for layer in self.layers:
            x = layer(x, features, mask, queries)
        return QFormerOutput(x[:, :queries], x[:, queries:])

    def _embed(self, input_ids: Tensor) -> Tensor:
        if self.word_embeddings is None or self.position_embeddings is None:
            raise ConfigError("This Q-Former reads no words, only images: use a model with a Q-Former that reads both.")
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        embedded: Tensor = self.word_embeddings(input_ids) + self.position_embeddings(positions)
        return embedded


def attention_pattern(
    pattern: AttentionPattern,
    queries: int,
    input_ids: Tensor | None,
    attention_mask: Tensor | None,
    device: torch.device,
) -> Tensor:
    """Return the mask (B or 1, 1, Q + L, Q + L): true where a row attends to a column; no row attends to padding."""
    words = 0 if input_ids is None else input_ids.shape[1]
    total = queries + words
    is_query = torch.arange(total, device=device) < queries
    row, column = is_query[:, None], is_query[None, :]
    match pattern:
        case AttentionPattern.UNIMODAL:
            visible = row == column
        case AttentionPattern.CAUSAL:
            past = torch.ones(total, total, dtype=torch.bool, device=device).tril()
            visible = column | (~row & past)
        case AttentionPattern.BIDIRECTIONAL:
            visible = torch.ones(total, total, dtype=torch.bool, device=device)
    if attention_mask is None:
        return visible[None, None]
    not_padding = F.pad(attention_mask.bool(), (queries, 0), value=True)  # (B, Q + L)
    return visible[None, None] & not_padding[:, None, None, :]


def place_features(side: int, width: int, device: torch.device | None = None) -> Tensor:
    """Return a position embedding of a square grid, sines and cosines of its coordinates: (1, side², width)."""
    centres = (torch.arange(side, dtype=torch.float32, device=device) + 0.5) / side * math.pi
    frequencies = 2.0 ** torch.linspace(0, 4, width // 4, device=device)
    angles = centres[:, None] * frequencies  # (side, width / 4)
    wave = torch.cat([angles.sin(), angles.cos()], dim=-1)  # (side, width / 2)
    rows = wave[:, None].expand(side, side, -1)
    columns = wave[None, :].expand(side, side, -1)
    return torch.cat([rows, columns], dim=-1).reshape(1, side * side, width)


def _spread(have: int, count: int) -> list[int]:
    """Return `count` of the numbers below `have`, each the middle of an equal part."""
    return [int((index + 0.5) * have / count) for index in range(count)]


def _init_local_heads(attention: Attention, place_width: int) -> None:
    query, key = attention.query.weight, attention.key.weight  # (D, D), (D, V)
    width = len(query) // attention.heads
    for first in range(0, width * (attention.heads // 2), width):
        rows = slice(first, first + place_width)
        query[rows] *= 0.2
        key[rows] *= 0.2
        query[rows, :place_width] += 0.87 * torch.eye(place_width)
        key[rows, -place_width:] += 0.87 * torch.eye(place_width)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
