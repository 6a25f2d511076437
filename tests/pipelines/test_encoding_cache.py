import torch
from torch import Tensor

from blip_diffusion.pipelines.encoding_cache import EncodingCache


class Counted:
    """Return the square of each position, and record the requested positions."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, positions: list[int]) -> Tensor:
        self.asked += positions
        return torch.tensor([[position**2] for position in positions])


def test_encodings_are_computed_once() -> None:
    cache, compute = EncodingCache(), Counted()
    assert cache.get(["a", "b", "a"], compute).flatten().tolist() == [0, 1, 0]
    assert cache.get(["b", "c"], compute).flatten().tolist() == [1, 1]
    assert compute.asked == [0, 1, 1]


def test_oldest_encoding_is_evicted() -> None:
    cache, compute = EncodingCache(size=2), Counted()
    assert cache.get(list("abcd"), compute).flatten().tolist() == [0, 1, 4, 9]  # more than it keeps, at once
    cache.get(["c"], compute)
    cache.get(["e"], compute)
    assert compute.asked == [0, 1, 2, 3, 0]
    cache.get(["c"], compute)
    assert compute.asked == [0, 1, 2, 3, 0]
    cache.get(["d"], compute)
    assert compute.asked == [0, 1, 2, 3, 0, 0]


def test_cached_rows_are_copies() -> None:
    cache, compute = EncodingCache(), Counted()
    cache.get(["a"], compute).add_(7)
    assert cache.get(["a"], compute).item() == 0
