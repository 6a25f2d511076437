"""Training heads: the three of BLIP-2 (Li, Li, Savarese & Hoi 2023, section 3.1), and two reconstruction heads.

The reconstruction heads and the subject finder are additions of this project.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from blip_diffusion.modules.qformer import QFormerConfig


class ContrastiveHead(nn.Module):
    """Projections of query states and a sentence state to unit vectors, with the temperature of their similarity."""

    def __init__(self, width: int, shared_width: int = 256) -> None:
        super().__init__()
        self.vision = nn.Linear(width, shared_width)
        self.text = nn.Linear(width, shared_width)
        self.temperature = nn.Parameter(torch.tensor(0.07))

    def images(self, queries: Tensor) -> Tensor:
        """Project query states (B, Q, D) to unit vectors (B, Q, E)."""
        return F.normalize(self.vision(queries), dim=-1)

    def sentences(self, words: Tensor) -> Tensor:
        """Project the first of the word states (B, L, D), which represents the sentence, to unit vectors (B, E)."""
        return F.normalize(self.text(words[:, 0]), dim=-1)

    def cosines(self, images: Tensor, sentences: Tensor) -> Tensor:
        """Return the highest cosine over the queries, in [-1, 1]: (B, Q, E) and (C, E) to (B, C)."""
        return torch.einsum("bqe,ce->bqc", images, sentences).amax(dim=1)

    def similarity(self, images: Tensor, sentences: Tensor) -> Tensor:
        """Return the highest cosine over the queries, divided by the temperature: (B, Q, E) and (C, E) to (B, C)."""
        return self.cosines(images, sentences) / self.clamped_temperature

    @property
    def clamped_temperature(self) -> Tensor:
        """The temperature, clamped to [0.001, 0.5]."""
        return self.temperature.clamp(0.001, 0.5)


class MatchingHead(nn.Linear):
    """Query states (B, Q, D) to logits (B, 2) of image and text not matching or matching, averaged over queries."""

    def __init__(self, width: int) -> None:
        super().__init__(width, 2)

    def forward(self, queries: Tensor) -> Tensor:
        return super().forward(queries).mean(dim=1)


class LanguageHead(nn.Module):
    """BERT's masked-language-model head, whose output weights are the word embeddings."""

    def __init__(self, config: QFormerConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.eps)
        self.bias = nn.Parameter(torch.zeros(config.vocabulary))

    def forward(self, words: Tensor, word_embeddings: Tensor) -> Tensor:
        """Map word states (B, L, D) and word embeddings (W, D) to logits (B, L, W)."""
        return F.linear(self.norm(F.gelu(self.dense(words))), word_embeddings, self.bias)


class ReconstructionHead(nn.Module):
    """Decoder of subject tokens to the subject without its background, which shows early whether they encode shape.

    Not in the paper. A grid of learned queries attends to the tokens, and each query decodes one patch.
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
        """Decode subject tokens (B, Q, D) to (B, 4, C, C): RGB times alpha, and alpha, each in [0, 1]."""
        x = self.places.expand(len(subject_tokens), -1, -1)
        for layer in self.layers:
            x = layer(x, subject_tokens)
        patches = torch.sigmoid(self.paint(self.norm(x)))
        return rearrange(patches, "b (y x) (c p q) -> b c (y p) (x q)", y=self.grid, p=self.patch, q=self.patch)


def reconstruction_loss(predicted: Tensor, object_crop: Tensor) -> Tensor:
    """Return the loss of a reconstruction of the reference without its background.

    L1 + 4 · MSE of alpha + 2 · MSE of RGB: L1 alone tolerates wrong outlines.

    Args:
        predicted: (B, 4, C, C) RGB times alpha, and alpha.
        object_crop: (B, 4, C, C) of the reference, in the same format.
    """
    predicted = predicted.float()
    colour = F.mse_loss(predicted[:, :3], object_crop[:, :3])
    outline = F.mse_loss(predicted[:, 3:], object_crop[:, 3:])
    return F.l1_loss(predicted, object_crop) + 4 * outline + 2 * colour


class GridReconstructionHead(nn.Module):
    """Decoder of tokens on a square grid to the reference without its background, cell by cell.

    Not in the paper. Two 3 x 3 convolutions smooth the seams between the cells.
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
        """Decode subject tokens (B, Q, D) to (B, 4, C, C): RGB times alpha, and alpha, each in [0, 1]."""
        x = self.paint(self.norm(subject_tokens))
        x = rearrange(x, "b (y x) (c p q) -> b c (y p) (x q)", y=self.grid, p=self.patch, q=self.patch)
        return torch.sigmoid(self.smooth(x))


@dataclass(frozen=True)
class SubjectFinderConfig:
    """Shapes of a `SubjectFinder`."""

    vision_width: int
    width: int = 64
    layers: int = 2
    heads: int = 4
    patch: int = 4


class SubjectFinder(nn.Module):
    """Predictor of the mask of an image's subject from the frozen tower's features. Not in the paper."""

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
        """Data type of the weights."""
        return self.enter.weight.dtype

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.enter.weight.device
