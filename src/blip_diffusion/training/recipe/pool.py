"""Pairs composited by worker processes, in shared memory, and a pool of them on the training device."""

import math
import mmap
import multiprocessing as mp
import os
import queue
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from blip_diffusion.data.batches import Batches
from blip_diffusion.errors import BlipDiffusionError
from blip_diffusion.training.recipe.packing import Packer, Rows

PATIENCE = 1.0  # seconds between checks that the workers are alive


class Pool:
    """A ring buffer of rows on a device. Derived columns are computed when rows are added."""

    def __init__(self, capacity: int, device: torch.device) -> None:
        self.capacity, self.device = capacity, device
        self.rows: Rows = {}
        self.added = 0
        self._derive: Callable[[Rows], Rows] | None = None

    @property
    def count(self) -> int:
        """Number of rows in the pool."""
        return min(self.added, self.capacity)

    def add(self, rows: Rows) -> None:
        """Write rows over the oldest ones."""
        size = len(next(iter(rows.values())))
        positions = (torch.arange(size) + self.added) % self.capacity
        for part in _runs(positions):
            chunk = slice(int(part[0]), int(part[-1]) + 1)
            at = int((part[0] - self.added) % self.capacity)
            self._write(chunk, {name: value[at : at + len(part)] for name, value in rows.items()})
            if self._derive is not None:
                self._write(chunk, self._derive({name: value[chunk] for name, value in self.rows.items()}))
        self.added += size

    def derive(self, function: Callable[[Rows], Rows] | None, *, chunk: int = 256) -> None:
        """Set a function that computes further columns, for present rows and those added later; `None` removes it."""
        self._derive = function
        for start in range(0, self.count if function else 0, chunk):
            part = slice(start, min(start + chunk, self.count))
            assert function is not None
            self._write(part, function({name: value[part] for name, value in self.rows.items()}))

    def take(self, index: Tensor, names: Sequence[str]) -> Rows:
        """Return the columns `names` of the rows at an index (B,)."""
        return {name: self.rows[name][index] for name in names}

    def sample(self, size: int, rng: torch.Generator) -> Tensor:
        """Return a random index (size,), with replacement."""
        return torch.randint(0, self.count, (size,), device=self.device, generator=rng)

    def _write(self, part: slice, rows: Rows) -> None:
        for name, value in rows.items():
            if name not in self.rows:
                shape = (self.capacity, *value.shape[1:])
                self.rows[name] = torch.zeros(shape, dtype=value.dtype, device=self.device)
            self.rows[name][part].copy_(value, non_blocking=True)


def _runs(positions: Tensor) -> list[Tensor]:
    """Split ring positions where they wrap around."""
    wrapped = int((positions == 0).nonzero()[0]) if (positions[1:] == 0).any() else 0
    return [positions[:wrapped], positions[wrapped:]] if wrapped else [positions]


class Feeder:
    """Worker processes fill slots of shared memory; each slot is reused once its rows are on the device.

    Worker r of W composites the batches of index first + r, first + r + W, ... Without workers, each batch is
    composited in this process on demand.
    """

    def __init__(self, batches: Batches, packer: Packer, *, workers: int, slots: int, first: int = 0) -> None:
        self._batches, self._packer, self.first, self._next = batches, packer, first, first
        self._workers: list[Any] = []
        self._pending: list[tuple[int, torch.cuda.Event | None]] = []
        if workers:
            self._start(workers, slots, first)

    def _start(self, workers: int, slots: int, first: int) -> None:
        context = mp.get_context("fork")  # the workers share the asset library's memory
        example = self._packer(self._batches(first))
        self._slots = {name: _shared((slots, *value.shape), value.dtype) for name, value in example.items()}
        self._free, self._ready = context.Queue(), context.Queue()
        for slot in range(slots):
            self._free.put(slot)
        for rank in range(workers):
            indices = (first + rank, workers)
            arguments = (self._batches, self._packer, self._slots, self._free, self._ready, indices, os.getpid())
            self._workers.append(context.Process(target=_work, args=arguments, daemon=True))
            self._workers[-1].start()

    def pin(self) -> None:
        """Let a GPU copy from the slots without waiting; call it after the workers have started."""
        for value in getattr(self, "_slots", {}).values():
            runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
            runtime.cudaHostRegister(value.data_ptr(), value.numel() * value.element_size(), 0)

    def drain(self, pool: Pool, *, at_most: int) -> None:
        """Move finished batches into the pool; without workers, composite one."""
        if not self._workers:
            self._composite(pool)
            return
        self._release_slots()
        for _ in range(at_most):
            try:
                self._take(pool, self._ready.get_nowait())
            except queue.Empty:
                return

    def fill(self, pool: Pool, count: int) -> None:
        """Wait until the pool holds `count` rows."""
        while pool.count < min(count, pool.capacity):
            if not self._workers:
                self._composite(pool)
                continue
            self._release_slots()
            try:
                self._take(pool, self._ready.get(timeout=PATIENCE))
            except queue.Empty:
                self._check_workers()

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.terminate()
            worker.join()
        self._workers = []

    def _composite(self, pool: Pool) -> None:
        pool.add(self._packer(self._batches(self._next)))
        self._next += 1

    def _take(self, pool: Pool, slot: int) -> None:
        pool.add({name: value[slot] for name, value in self._slots.items()})
        event = None
        if pool.device.type == "cuda":
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        self._pending.append((slot, event))

    def _release_slots(self) -> None:
        while self._pending and _done(self._pending[0][1]):
            self._free.put(self._pending.pop(0)[0])

    def _check_workers(self) -> None:
        if any(not worker.is_alive() for worker in self._workers):
            raise BlipDiffusionError("A worker process that composites pairs has ended: see its error above.")


def _work(
    batches: Batches, packer: Packer, slots: Rows, free: Any, ready: Any, indices: tuple[int, int], parent: int
) -> None:
    """Composite and pack batches in a worker process, until the training process `parent` has ended.

    A parent that is killed while the worker starts has ended too, so that the worker can't ask for its id.
    """
    torch.set_num_threads(1)
    os.nice(10)  # the training process has priority
    index, step = indices
    while True:
        rows = packer(batches(index))
        slot = _next_slot(free, parent)
        if slot is None:
            return
        for name, value in rows.items():
            slots[name][slot].copy_(value)
        ready.put(slot)
        index += step


def _next_slot(free: Any, parent: int) -> int | None:
    """Wait for a free slot; `None` if the training process has ended."""
    while os.getppid() == parent:
        try:
            return int(free.get(timeout=PATIENCE))
        except queue.Empty:
            continue
    return None


def _done(event: torch.cuda.Event | None) -> bool:
    return event is None or bool(event.query())  # type: ignore[no-untyped-call]


def _shared(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return a tensor in memory shared with forked processes."""
    size = math.prod(shape) * dtype.itemsize
    return torch.frombuffer(mmap.mmap(-1, size), dtype=dtype).view(*shape)
