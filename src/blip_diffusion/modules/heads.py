"""Heads of training: BLIP-2's three (Li, Li, Savarese & Hoi 2023, section 3.1), and ours, which see the subject."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from blip_diffusion.modules.qformer import QFormerConfig


class ContrastiveHead(nn.Module):
    """Query states and a sentence state to unit vectors, and the temperature that divides their similarity."""

    def __init__(self, width: int, shared_width: int = 256) -> None:
        super().__init__()
        self.vision = nn.Linear(width, shared_width)
        self.text = nn.Linear(width, shared_width)
        self.temperature = nn.Parameter(torch.tensor(0.07))

    def images(self, queries: Tensor) -> Tensor:
        """(B, Q, D) to unit vectors (B, Q, E)."""
        return F.normalize(self.vision(queries), dim=-1)

    def sentences(self, words: Tensor) -> Tensor:
        """Word states (B, L, D), of which the first row stands for all, to unit vectors (B, E)."""
        return F.normalize(self.text(words[:, 0]), dim=-1)

    def cosines(self, images: Tensor, sentences: Tensor) -> Tensor:
        """(B, Q, E) and (C, E) to (B, C): the best query's cosine, in [-1, 1]."""
        return torch.einsum("bqe,ce->bqc", images, sentences).amax(dim=1)

    def similarity(self, images: Tensor, sentences: Tensor) -> Tensor:
        """(B, Q, E) and (C, E) to (B, C): the best query's cosine over the temperature, clamped to [0.001, 0.5]."""
        return self.cosines(images, sentences) / self.temperature.clamp(0.001, 0.5)


class MatchingHead(nn.Linear):
    """Query states (B, Q, D) to logits (B, 2): do image and words belong together? Averaged over the queries."""

    def __init__(self, width: int) -> None:
        super().__init__(width, 2)

    def forward(self, queries: Tensor) -> Tensor:
        return super().forward(queries).mean(dim=1)


class LanguageHead(nn.Module):
    """BERT's masked-language-model head; its output layer is the word embedding itself."""

    def __init__(self, config: QFormerConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.eps)
        self.bias = nn.Parameter(torch.zeros(config.vocabulary))

    def forward(self, words: Tensor, word_embeddings: Tensor) -> Tensor:
        """Word states (B, L, D) and embeddings (W, D) to logits (B, L, W)."""
        return F.linear(self.norm(F.gelu(self.dense(words))), word_embeddings, self.bias)


class ReconstructionHead(nn.Module):
    """Draws the subject without its background from its tokens: does it show early that they carry shape?

    Ours, no part of the paper. A grid of learned places asks the tokens, and each place paints its patch.
    """

    def __init__(self, width: int, *, size: int = 32, patch: int = 4, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.grid, self.patch = size // patch, patch
        self.places = nn.Parameter(torch.randn(1, self.grid**2, width) * 0.02)
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(
                width, heads, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.paint = nn.Linear(width, 4 * patch**2)

    def forward(self, subject_tokens: Tensor) -> Tensor:
        """(B, Q, D) to (B, 4, C, C): RGB times alpha, and alpha, each in [0, 1]."""
        x = self.places.expand(len(subject_tokens), -1, -1)
        for layer in self.layers:
            x = layer(x, subject_tokens)
        patches = torch.sigmoid(self.paint(self.norm(x)))
        return rearrange(patches, "b (y x) (c p q) -> b c (y p) (x q)", y=self.grid, p=self.patch, q=self.patch)


def reconstruction_loss(predicted: Tensor, object_crop: Tensor) -> Tensor:
    """Return how far a reconstruction is from the reference without its background.

    Absolute errors alone forgive wrong outlines: squared ones of alpha count four times, those of colour twice.

    Args:
        predicted: (B, 4, C, C) RGB times alpha, and alpha.
        object_crop: The same of the truth.
    """
    predicted = predicted.float()
    colour = F.mse_loss(predicted[:, :3], object_crop[:, :3])
    outline = F.mse_loss(predicted[:, 3:], object_crop[:, 3:])
    return F.l1_loss(predicted, object_crop) + 4 * outline + 2 * colour


class GridReconstructionHead(nn.Module):
    """Reconstructs the reference without its background from tokens on a square grid, cell by cell.

    Ours, no part of the paper. Two 3 x 3 convolutions smooth the seams between the cells.
    """

    def __init__(self, width: int, *, tokens: int, size: int = 64, channels: int = 16) -> None:
        super().__init__()
        self.grid = math.isqrt(tokens)
        self.patch = size // self.grid
        self.norm = nn.LayerNorm(width)
        self.paint = nn.Linear(width, channels * self.patch**2)
        self.smooth = nn.Sequential(
            nn.GELU(), nn.Conv2d(channels, channels, 3, 1, 1), nn.GELU(), nn.Conv2d(channels, 4, 3, 1, 1)
        )

    def forward(self, subject_tokens: Tensor) -> Tensor:
        """(B, Q, D) to (B, 4, C, C): RGB times alpha, and alpha, each in [0, 1]."""
        x = self.paint(self.norm(subject_tokens))
        x = rearrange(x, "b (y x) (c p q) -> b c (y p) (x q)", y=self.grid, p=self.patch, q=self.patch)
        return torch.sigmoid(self.smooth(x))


@dataclass(frozen=True)
class SubjectFinderConfig:
    """Shapes of a subject finder."""

    vision_width: int
    width: int = 64
    layers: int = 2
    heads: int = 4
    patch: int = 4


class SubjectFinder(nn.Module):
    """Predicts the mask of an image's subject from the frozen tower's features. Ours, no part of the paper."""

    def __init__(self, config: SubjectFinderConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.enter = nn.Linear(config.vision_width, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, config.heads, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(width)
        self.mask = nn.Linear(width, config.patch**2)

    def forward(self, features: Tensor) -> Tensor:
        """Map the tower's features (B, N, V) of square images to logits (B, 1, S, S), with S = patch √N."""
        x = self.enter(features)
        for layer in self.layers:
            x = layer(x)
        side, patch = math.isqrt(x.shape[1]), self.config.patch
        x = self.mask(self.norm(x))
        return rearrange(x, "b (y x) (p q) -> b 1 (y p) (x q)", y=side, x=side, p=patch, q=patch)

    @property
    def dtype(self) -> torch.dtype:
        """Return the precision of the weights."""
        return self.enter.weight.dtype

    @property
    def device(self) -> torch.device:
        """Return the device of the weights."""
        return self.enter.weight.device
