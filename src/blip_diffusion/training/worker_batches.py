"""Batches by index, composed by worker processes."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info


class WorkerBatches:
    """Batches of which a sequence is composed by worker processes, equal to those of this process.

    Args:
        batches: Composes the batch of an index, on the CPU.
        workers: Number of processes; 0 composes the sequence in this process.
        keep: Names of a sequence's values; `None`: all of them.
    """

    def __init__(self, batches: Callable[[int], Any], workers: int, keep: Sequence[str] | None = None) -> None:
        self.batches = batches
        self.workers = workers
        self.keep = keep

    def __call__(self, index: int) -> Any:
        """Return the batch of an index, composed in this process."""
        return self.batches(index)

    def sequence(self, indices: Iterable[int]) -> Iterator[Any]:
        """Yield the batches of these indices in order; workers prepare the next ones."""
        loader: DataLoader[Any] = DataLoader(
            _ByIndex(self.batches, self.keep),
            batch_size=None,
            sampler=indices,
            num_workers=self.workers,
            collate_fn=_unchanged,
            multiprocessing_context="fork" if self.workers else None,  # the workers share the data's memory
            prefetch_factor=2 if self.workers else None,
        )
        for batch in loader:
            yield {name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
                   for name, value in batch.items()}  # fmt: skip


class _ByIndex(Dataset[Any]):
    """Batches with arrays in place of tensors, which would need more shared memory than a container has."""

    def __init__(self, batches: Callable[[int], Any], keep: Sequence[str] | None) -> None:
        self.batches = batches
        self.keep = keep

    def __getitem__(self, index: int) -> dict[str, Any]:
        batch: dict[str, Any] = dict(self.batches(index))
        return {
            name: value.cpu().numpy() if isinstance(value, Tensor) and get_worker_info() else value
            for name, value in batch.items()
            if self.keep is None or name in self.keep
        }


def _unchanged(batch: Any) -> Any:
    return batch
