import torch
from torch import Tensor

from blip_diffusion.pipelines.encoding_cache import Memo


class Counted:
    """Computes the square of each place, and remembers for which it was asked."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, places: list[int]) -> Tensor:
        self.asked += places
        return torch.tensor([[place**2] for place in places])


def test_each_is_computed_once() -> None:
    memo, compute = Memo(), Counted()
    assert memo.rows(["a", "b", "a"], compute).flatten().tolist() == [0, 1, 0]
    assert memo.rows(["b", "c"], compute).flatten().tolist() == [1, 1]
    assert compute.asked == [0, 1, 1]


def test_the_oldest_is_forgotten() -> None:
    memo, compute = Memo(size=2), Counted()
    assert memo.rows(list("abcd"), compute).flatten().tolist() == [0, 1, 4, 9]  # more than it keeps, at once
    memo.rows(["c"], compute)
    memo.rows(["e"], compute)
    assert compute.asked == [0, 1, 2, 3, 0]
    memo.rows(["c"], compute)
    assert compute.asked == [0, 1, 2, 3, 0]
    memo.rows(["d"], compute)
    assert compute.asked == [0, 1, 2, 3, 0, 0]


def test_rows_are_ones_own() -> None:
    memo, compute = Memo(), Counted()
    memo.rows(["a"], compute).add_(7)
    assert memo.rows(["a"], compute).item() == 0
