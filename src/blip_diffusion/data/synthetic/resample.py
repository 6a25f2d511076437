"""Antialiased resampling of image windows by two matrix products: batched, and equal on every device."""

import torch
from torch import Tensor
from torch.nn import functional as F

_MARGIN = 8  # source pixels beyond the frame that weights are normalised over; enough for an eightfold reduction


def resample_matrix(start: Tensor, length: Tensor, source: int, size: int, *, repeat_edges: bool = False) -> Tensor:
    """Return the matrix that reads `size` pixels from the window `[start, start + length)` of `source` pixels.

    A The filter is a triangle as wide as a step. A negative `length` mirrors. Pixels beyond the frame are zero, unless
    edges are repeated.
    """
    step = length / size  # (P,)
    radius = step.abs().clamp(min=1).view(-1, 1, 1)
    pixel = torch.arange(size, device=start.device) + 0.5
    centres = start[:, None] + step[:, None] * pixel  # (P, size)
    if repeat_edges:
        centres = centres.clamp(0.5, source - 0.5)
    at = torch.arange(-_MARGIN, source + _MARGIN, device=start.device) + 0.5
    weights = F.relu(1 - (centres[:, :, None] - at).abs() / radius)  # (P, size, source + 2 margins)
    inner = weights[:, :, _MARGIN:-_MARGIN]
    return inner / (inner if repeat_edges else weights).sum(2, keepdim=True).clamp(min=1e-6)


def read_windows(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return `rows @ image @ columns.T` for every image and channel."""
    n, channels, height, width = images.shape
    across = torch.bmm(images.reshape(n, channels * height, width), columns.transpose(1, 2))
    across = across.view(n, channels, height, -1)  # (P, K, H, S)
    return torch.matmul(rows[:, None], across)  # (P, K, S, S)
