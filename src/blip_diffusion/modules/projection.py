"""The projection of query states to subject tokens in the text encoder's space (Li et al. 2023, section 3.1)."""

import torch
from torch import Tensor, nn


def quick_gelu(x: Tensor) -> Tensor:
    """CLIP's approximation of GELU."""
    return x * torch.sigmoid(1.702 * x)


class SubjectProjection(nn.Module):
    """A pre-norm residual feed-forward layer, as the published code computes it."""

    def __init__(self, width: int, inner: int, *, eps: float = 1e-12, dropout: float = 0.1) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=eps)
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, queries: Tensor) -> Tensor:
        hidden = self.up(self.norm(queries))  # (B, Q, inner)
        return queries + self.dropout(self.down(quick_gelu(hidden)))  # (B, Q, D)
