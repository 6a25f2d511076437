"""Batches by index, composed by worker processes."""

from collections.abc import Iterable, Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset

from blip_diffusion.data.batches import Batches


class WorkerBatches:
    """Batches of which a sequence is composed by worker processes, equal to those of this process.

    Args:
        batches: Composes the batch of an index, on the CPU.
        workers: Number of processes; 0 composes the sequence in this process.
    """

    def __init__(self, batches: Batches, workers: int) -> None:
        self.batches = batches
        self.workers = workers

    def __call__(self, index: int) -> Any:
        """Return the batch of an index, composed in this process."""
        return self.batches(index)

    def sequence(self, indices: Iterable[int]) -> Iterator[Any]:
        """Yield the batches of these indices in order; workers prepare the next ones."""
        loader: DataLoader[Any] = DataLoader(
            _ByIndex(self.batches),
            batch_size=None,
            sampler=indices,
            num_workers=self.workers,
            collate_fn=_unchanged,
            multiprocessing_context="fork" if self.workers else None,  # the workers share the data's memory
            prefetch_factor=2 if self.workers else None,
        )
        return iter(loader)


class _ByIndex(Dataset[Any]):
    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __getitem__(self, index: int) -> Any:
        return self.batches(index)


def _unchanged(batch: Any) -> Any:
    return batch
