"""Micro-batches by number, prepared in a thread while the device computes."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from torch import Tensor

from blip_diffusion.training.worker_batches import WorkerBatches


class Prefetcher:
    """A process's micro-batches by number; a thread prepares the next ones while the device computes."""

    def __init__(
        self,
        batches: Callable[[int], Any],
        accelerator: Accelerator,
        *,
        gradient_accumulation_steps: int,
        steps: int,
        depth: int,
    ) -> None:
        self._batches, self._device = batches, accelerator.device
        self._processes, self._rank = accelerator.num_processes, accelerator.process_index
        self._accumulate, self._end, self._depth = (
            gradient_accumulation_steps,
            steps * gradient_accumulation_steps,
            depth,
        )
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="batches", initializer=self._choose_device)
        self._pending: dict[int, Future[Any]] = {}
        self._sequence: Iterator[Any] | None = None  # of worker processes, from micro-batch `_next` on
        self._next = -1

    def index(self, number: int) -> int:
        """Return the index, over all processes, of this process's micro-batch of a number."""
        return number * self._processes + self._rank

    def index_at(self, step: int, position: int) -> int:
        """Return the index of the micro-batch at a position within a step, see `StepContext.position`."""
        return step * self._accumulate * self._processes + position

    def __call__(self, number: int) -> Any:
        """Return this process's micro-batch of a number, and start to prepare the next ones."""
        if isinstance(self._batches, WorkerBatches):
            return self._from_workers(self._batches, number)
        if not self._depth:
            return self._batches(self.index(number))
        for upcoming in range(number, min(number + 1 + self._depth, self._end)):
            if upcoming not in self._pending:
                self._pending[upcoming] = self._pool.submit(self._batches, self.index(upcoming))
        return self._pending.pop(number).result()

    def _from_workers(self, batches: WorkerBatches, number: int) -> Any:
        """Return the next micro-batch of the worker processes, which are started at the first number."""
        if self._sequence is None or number != self._next:
            self._sequence = batches.sequence([self.index(later) for later in range(number, self._end)])
        self._next = number + 1
        return next(self._sequence)

    def _choose_device(self) -> None:
        """Select this process's GPU in the new thread, which would use the first one."""
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)

    def close(self) -> None:
        """Stop the thread and the worker processes, and drop pending batches."""
        self._sequence = None  # ends the worker processes
        self._pool.shutdown(wait=True, cancel_futures=True)


def to_device(value: Any, device: torch.device) -> Any:
    """Move a batch's tensors, in dicts, lists and tuples, to the device."""
    if isinstance(value, Tensor):
        pinned = value.pin_memory() if device.type == "cuda" and value.device.type == "cpu" else value
        return pinned.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {key: to_device(item, device) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(to_device(item, device) for item in value)
    return value


def size_of(batch: Any) -> int:
    """Return the number of samples in a batch: the length of its first value."""
    first = next(iter(batch.values())) if isinstance(batch, dict) else batch[0] if isinstance(batch, tuple) else batch
    return len(first)
