"""Batches drawn from a pool of images, whose frozen features are computed once."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from blip_diffusion.data.batches import Batches
from blip_diffusion.training.prefetch import to_device
from blip_diffusion.training.worker_batches import WorkerBatches


class PooledBatches:
    """The batch of an index: rows drawn at random, without replacement, from those that are pooled by then.

    The pool holds min(index + 1, size) prepared batches, so a draw is a pure function of the seed and the index.

    Args:
        batches: Makes a batch.
        prepare: What is kept of it; computed without gradient.
        size: Batches of the pool.
        seed: Seed of the draws.
        device: Returns where features are computed and kept.
        dtype: Data type in which floating-point tensors are kept.
    """

    def __init__(
        self,
        batches: Batches | WorkerBatches,
        prepare: Callable[[Any], Any],
        size: int,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.batches = batches if isinstance(batches, WorkerBatches) else WorkerBatches(batches, 0)
        self.prepare, self.size, self.seed = prepare, size, seed
        self.device, self.dtype = torch.device(device), dtype
        self._composed: Iterator[Any] | None = None
        self._rows: dict[str, Any] = {}
        self._batch_size = 0
        self._count = 0

    def __call__(self, index: int) -> Any:
        """Return the drawn rows of an index."""
        pooled = min(index + 1, self.size)
        while self._count < pooled:
            self._add()
        rng = torch.Generator().manual_seed((self.seed << 32) + index)
        rows = torch.randperm(pooled * self._batch_size, generator=rng)[: self._batch_size]
        on_device = rows.to(self.device)
        return {
            name: _float(value[on_device]) if isinstance(value, Tensor) else [value[row] for row in rows.tolist()]
            for name, value in self._rows.items()
        }

    def _add(self) -> None:
        if self._composed is None:
            self._composed = self.batches.sequence(range(self._count, self.size))
        with torch.no_grad():
            prepared = self.prepare(to_device(next(self._composed), self.device))
        self._batch_size = len(prepared["caption"])
        start = self._count * self._batch_size
        for name, value in prepared.items():
            if not isinstance(value, Tensor):
                self._rows.setdefault(name, []).extend(value)
                continue
            if name not in self._rows:
                dtype = self.dtype if value.is_floating_point() else value.dtype
                shape = (self.size * self._batch_size, *value.shape[1:])
                self._rows[name] = torch.empty(shape, dtype=dtype, device=self.device)
            self._rows[name][start : start + len(value)] = value
        self._count += 1


def _float(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value
