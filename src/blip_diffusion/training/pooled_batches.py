"""A fixed number of batches that come again and again, with what is frozen computed once."""

from collections.abc import Callable
from typing import Any

import torch

from blip_diffusion.data.batches import Batches


class PooledBatches:
    """The batch of an index: that of the index modulo the pool's size, prepared when it first comes.

    Args:
        batches: Makes a batch.
        prepare: What is kept of it; computed without gradient.
        size: Batches of the pool.
    """

    def __init__(self, batches: Batches, prepare: Callable[[Any], Any], size: int) -> None:
        self.batches = batches
        self.prepare = prepare
        self.size = size
        self._kept: dict[int, Any] = {}

    def __call__(self, index: int) -> Any:
        """Return the prepared batch of an index."""
        number = index % self.size
        if number not in self._kept:
            with torch.no_grad():
                self._kept[number] = self.prepare(self.batches(number))
        return self._kept[number]
