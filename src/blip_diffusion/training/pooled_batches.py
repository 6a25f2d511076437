"""Batches drawn from a pool of images, whose frozen features are computed once."""

import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from blip_diffusion.data.batches import Batches
from blip_diffusion.training.prefetch import to_device
from blip_diffusion.training.worker_batches import WorkerBatches


class PooledBatches:
    """The batch of an index: rows drawn at random, without replacement, from those that are pooled by then.

    The pool holds as many composed batches as a draw needs, and one more every `every` draws until it is full: a draw
    is a pure function of the seed and the index.

    Args:
        batches: Makes a batch.
        prepare: What is kept of it; computed without gradient.
        size: Batches of the pool.
        batch_size: Rows of a draw; 0: as many as a composed batch has.
        every: Draws between two new batches of the pool.
        seed: Seed of the draws.
        device: Returns where features are computed and kept.
        dtype: Data type in which floating-point tensors are kept.
        autocast: Data type in which `prepare` computes, as `torch.autocast` has it; float32: no autocast.
    """

    def __init__(
        self,
        batches: Batches | WorkerBatches,
        prepare: Callable[[Any], Any],
        size: int,
        *,
        batch_size: int = 0,
        every: int = 1,
        seed: int = 0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        autocast: torch.dtype = torch.float32,
    ) -> None:
        self.batches = batches if isinstance(batches, WorkerBatches) else WorkerBatches(batches, 0)
        self.prepare, self.size, self.seed = prepare, size, seed
        self.batch_size, self.every = batch_size, every
        self.device, self.dtype, self.autocast = torch.device(device), dtype, autocast
        self._composed: Iterator[Any] | None = None
        self._rows: dict[str, Any] = {}
        self._composed_size = 0  # rows of a composed batch
        self._count = 0

    def __call__(self, index: int) -> Any:
        """Return the drawn rows of an index."""
        if not self._count:
            self._add()
        batch_size = self.batch_size or self._composed_size
        pooled = min(-(-batch_size // self._composed_size) + index // self.every, self.size)
        while self._count < pooled:
            self._add()
        rows = random.Random(f"{self.seed} {index}").sample(range(pooled * self._composed_size), batch_size)
        on_device = torch.tensor(rows, device=self.device)
        return {
            name: _float(value[on_device]) if isinstance(value, Tensor) else [value[row] for row in rows]
            for name, value in self._rows.items()
        }

    def _add(self) -> None:
        if self._composed is None:
            self._composed = self.batches.sequence(range(self._count, self.size))
        batch = to_device(next(self._composed), self.device)
        enabled = self.autocast != torch.float32
        with torch.no_grad(), torch.autocast(self.device.type, self.autocast if enabled else None, enabled=enabled):
            prepared = self.prepare(batch)
        self._composed_size = len(prepared["caption"])
        start = self._count * self._composed_size
        for name, value in prepared.items():
            if not isinstance(value, Tensor):
                self._rows.setdefault(name, []).extend(value)
                continue
            if name not in self._rows:
                dtype = self.dtype if value.is_floating_point() else value.dtype
                shape = (self.size * self._composed_size, *value.shape[1:])
                self._rows[name] = torch.empty(shape, dtype=dtype, device=self.device)
            self._rows[name][start : start + len(value)] = value
        self._count += 1


def _float(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value
