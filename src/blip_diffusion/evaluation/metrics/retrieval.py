"""Recall of retrieval. Letters: `N` queries, `M` candidates."""

from torch import Tensor


def recall_at(scores: Tensor, relevant: Tensor, k: int) -> Tensor:
    """Return recall@k of each query: 1 if a relevant candidate is among the `k` best.

    Args:
        scores: (N, M), higher is better.
        relevant: (N, M) bool, with at least one per row.
        k: Number of candidates that count.

    Returns:
        (N,) 0 or 1.
    """
    best = scores.topk(min(k, scores.shape[1]), dim=1).indices
    return relevant.gather(1, best).any(dim=1).float()
