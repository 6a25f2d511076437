import torch
from torch import Tensor

from blip_diffusion.pipelines.encoding_cache import EncodingCache


class Counted:
    """Computes the square of each place, and remembers for which it was asked."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, places: list[int]) -> Tensor:
        self.asked += places
        return torch.tensor([[place**2] for place in places])


def test_each_is_computed_once() -> None:
    cache, compute = EncodingCache(), Counted()
    assert cache.get(["a", "b", "a"], compute).flatten().tolist() == [0, 1, 0]
    assert cache.get(["b", "c"], compute).flatten().tolist() == [1, 1]
    assert compute.asked == [0, 1, 1]


def test_the_oldest_is_forgotten() -> None:
    cache, compute = EncodingCache(size=2), Counted()
    assert cache.get(list("abcd"), compute).flatten().tolist() == [0, 1, 4, 9]  # more than it keeps, at once
    cache.get(["c"], compute)
    cache.get(["e"], compute)
    assert compute.asked == [0, 1, 2, 3, 0]
    cache.get(["c"], compute)
    assert compute.asked == [0, 1, 2, 3, 0]
    cache.get(["d"], compute)
    assert compute.asked == [0, 1, 2, 3, 0, 0]


def test_rows_are_ones_own() -> None:
    cache, compute = EncodingCache(), Counted()
    cache.get(["a"], compute).add_(7)
    assert cache.get(["a"], compute).item() == 0
