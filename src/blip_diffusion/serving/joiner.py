"""Dynamic batching: batches of several jobs with equal settings are generated together. Imports no torch."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from blip_diffusion.serving.errors import JobFailed, ServiceStopping
from blip_diffusion.serving.messages import Batch, Finished, JointBatch, Progress
from blip_diffusion.serving.pool import WorkerPool

LINGER = 0.02
"""Seconds that a batch waits for others with equal settings."""
OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, eq=False)
class _Waiting:
    """A queued batch."""

    batch: Batch
    order: float
    on_start: Callable[[], None]
    on_progress: OnProgress
    future: "Future[Finished]" = field(default_factory=Future)

    @property
    def key(self) -> tuple[Any, ...] | None:
        """Settings that joined batches must share; `None` for a batch that can't be joined."""
        batch = self.batch
        key = batch.request.batch_key
        return None if key is None else (*key, batch.model, batch.auto_dtype, batch.previews)


class Joiner:
    """Pass batches to a worker pool, the oldest job's first, each together with the batches that can be joined to it.

    Args:
        pool: The workers.
        max_images: Largest number of images that are generated together; a larger batch is generated alone.
    """

    def __init__(self, pool: WorkerPool, max_images: int) -> None:
        self._pool, self._max_images = pool, max_images
        self._waiting: list[_Waiting] = []
        self._changed = threading.Condition()
        self._stopped = False

    def start(self) -> None:
        """Start a thread for each worker."""
        for _ in self._pool.workers:
            threading.Thread(target=self._run_worker, daemon=True).start()

    def stop(self) -> None:
        """Stop; callers of queued batches get `ServiceStopping`."""
        with self._changed:
            self._stopped = True
            for one in self._waiting:
                one.future.set_exception(ServiceStopping())
            self._waiting.clear()
            self._changed.notify_all()

    def do(self, batch: Batch, *, order: float, on_start: Callable[[], None], on_progress: OnProgress) -> Finished:
        """Generate a batch, alone or with others, and return the result of this batch.

        Args:
            batch: The batch.
            order: Priority; the lowest is first.
            on_start: Called when a worker starts the batch.
            on_progress: Called after each sampling step, with at most one preview.

        Raises:
            JobFailed: If its worker processes died too often.
            ServiceStopping: If the service stops before the end.
        """
        waiting = _Waiting(batch, order, on_start, on_progress)
        with self._changed:
            if self._stopped:
                raise ServiceStopping
            self._waiting.append(waiting)
            self._waiting.sort(key=lambda one: one.order)
            self._changed.notify_all()
        return waiting.future.result()

    def cancel(self, job: str) -> None:
        """Cancel a job's batch if it is queued."""
        with self._changed:
            cancelled = [one for one in self._waiting if one.batch.job == job]
            self._waiting = [one for one in self._waiting if one not in cancelled]
        for one in cancelled:
            one.future.set_result(Finished(outcome="cancelled"))

    def waiting(self) -> list[str]:
        """Return the jobs of queued batches, in order."""
        with self._changed:
            return [one.batch.job for one in self._waiting]

    def _run_worker(self) -> None:
        while group := self._take():
            for one in group:
                one.on_start()
            self._generate(group)

    def _take(self) -> list[_Waiting]:
        """Wait for a batch, and return it with those that can be joined to it; an empty list when the service stops."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._waiting or self._stopped)
                if self._changed.wait_for(lambda: self._stopped, LINGER):
                    return []
                if group := self._group():  # empty if another thread took it, or it was cancelled
                    self._waiting = [one for one in self._waiting if one not in group]
                    return group

    def _group(self) -> list[_Waiting]:
        group = self._waiting[:1]
        for one in self._waiting[1:] if group and group[0].key is not None else []:
            total = sum(len(other.batch.images) for other in [*group, one])
            if one.key == group[0].key and total <= self._max_images:
                group.append(one)
        return group

    def _generate(self, group: Sequence[_Waiting]) -> None:
        """Generate batches together. If that fails, generate each alone, since one of them may be the cause."""
        try:
            finished = self._pool.do(JointBatch(tuple(one.batch for one in group)), _shared_progress(group))
            failed = finished.outcome == "failed"
        except JobFailed as error:
            finished, failed = Finished(outcome="failed", cause=error.cause, problem=str(error)), True
        except BaseException as error:
            for one in group:
                one.future.set_exception(error)
            return
        if failed and len(group) > 1:
            for one in group:
                self._generate([one])
            return
        for one, result in zip(group, _split(finished, group), strict=True):
            one.future.set_result(result)


def _shared_progress(group: Sequence[_Waiting]) -> OnProgress:
    """Return a callback that reports a step to each batch, with its preview."""

    def report(progress: Progress) -> None:
        for number, one in enumerate(group):
            one.on_progress(Progress(progress.step, progress.steps, progress.previews[number : number + 1]))

    return report


def _split(finished: Finished, group: Sequence[_Waiting]) -> list[Finished]:
    """Return the result of each batch: its files, and its share of the seconds."""
    if finished.outcome != "done":
        return [finished] * len(group)
    results, start, seconds = [], 0, finished.seconds / len(finished.files)
    for one in group:
        count = len(one.batch.images)
        results.append(Finished(finished.files[start : start + count], seconds=seconds * count))
        start += count
    return results
