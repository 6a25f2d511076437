"""Worker processes: start them, give each one task at a time, and replace those that die. Imports no torch."""

import logging
import multiprocessing
import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from blip_diffusion.escaping import escaped
from blip_diffusion.serving.errors import JobFailed, ServiceStopping
from blip_diffusion.serving.messages import Cancel, Finished, Progress, Ready, Task

LOGGER = logging.getLogger(__name__)
OnProgress = Callable[[Progress], None]
GRACE = 2.0
"""Seconds before a stopped process is killed."""


class WorkerDied(Exception):  # noqa: N818  # an event
    """A worker process has ended or hangs."""


class Worker:
    """One worker process and the pipe to it. One thread at a time gives it tasks.

    Args:
        device: Device of its models.
        model: The model that it loads first.
        timeout: Seconds without a message after which it counts as dead.
    """

    def __init__(self, device: str, model: str, timeout: float) -> None:
        self._device, self._model, self._timeout = device, model, timeout
        self._process: Any = None
        self._connection: Connection | None = None
        self._sending = threading.Lock()
        self.jobs: tuple[str, ...] = ()
        """The ids of its current jobs."""

    @property
    def process_id(self) -> int | None:
        """The process's id; `None` without a process."""
        return self._process.pid if self._process is not None else None

    def start(self) -> Ready:
        """Start a new process, wait until its model is loaded, and return what it reports."""
        self.stop()
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self._connection = ours
        self._process = context.Process(target=_work, args=(theirs, self._device, self._model), daemon=True)
        self._process.start()
        theirs.close()  # so that the pipe closes when the process ends
        ready = self._receive()
        return ready if isinstance(ready, Ready) else Ready()

    def do(self, task: Task, on_progress: OnProgress) -> Finished:
        """Do a task. Raises `WorkerDied`."""
        self.jobs = task.jobs
        try:
            self._send(task)
            while not isinstance(message := self._receive(), Finished):
                on_progress(message)
            return message
        finally:
            self.jobs = ()

    def cancel(self, job: str) -> None:
        """Send the process a request to stop a job, if that is one of its current jobs."""
        if job in self.jobs:
            try:
                self._send(Cancel(job))
            except WorkerDied:
                return

    def stop(self) -> None:
        """End the process. The pipe is not closed here, because another thread may be reading from it."""
        if self._process is not None:
            self._process.terminate()
            self._process.join(GRACE)
            self._process.kill()
            self._process.join(GRACE)

    def _send(self, message: Task | Cancel) -> None:
        try:
            assert self._connection is not None
            with self._sending:
                self._connection.send(message)
        except (OSError, ValueError) as error:
            raise WorkerDied from error

    def _receive(self) -> Any:
        try:
            assert self._connection is not None
            if self._connection.poll(self._timeout):
                return self._connection.recv()
        except (EOFError, OSError) as error:
            raise WorkerDied from error
        raise WorkerDied


def _work(connection: Connection, device: str, model: str) -> None:
    from blip_diffusion.serving.worker import main  # imports torch, in the new process only

    main(connection, device, model)


class WorkerPool:
    """A worker process for each device.

    Args:
        devices: A device for each process.
        model: The model that each loads first.
        max_attempts: How often a task is tried while processes die.
        timeout: Seconds without a sampling step after which a process is replaced.
    """

    def __init__(self, devices: Sequence[str], model: str, *, max_attempts: int, timeout: float) -> None:
        self.workers = [Worker(device, model, timeout) for device in devices]
        self.restarts = 0
        self.problem = ""
        """The error of loading the first model, or empty."""
        self.control_kinds: tuple[str, ...] | None = None
        """The kinds of control that the first model serves; `None` until it is loaded."""
        self._idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        self._max_attempts = max_attempts
        self._stopping = False
        self._ready = threading.Event()

    @property
    def is_ready(self) -> bool:
        """Whether a worker has loaded its model."""
        return self._ready.is_set() and not self.problem

    def start(self) -> None:
        """Start all processes, each in a separate thread, and return at once."""
        for worker in self.workers:
            threading.Thread(target=self._start, args=(worker,), daemon=True).start()

    def _start(self, worker: Worker) -> None:
        with suppress(WorkerDied):  # the first task starts it again, with a limit of attempts
            self._report(worker.start())
        if self.problem:
            LOGGER.error("The worker can't load its model. %s", escaped(self.problem))
        self._idle.put(worker)

    def do(self, task: Task, on_progress: OnProgress, *, timeout: float | None = None) -> Finished:
        """Do a task on the next free worker.

        Args:
            task: What to do.
            on_progress: Called after each sampling step.
            timeout: Seconds to wait for a free worker.

        Raises:
            TimeoutError: If no worker is free in time.
            JobFailed: If the task's processes died `max_attempts` times.
            ServiceStopping: If the pool was stopped meanwhile.
        """
        try:
            worker = self._idle.get(timeout=timeout)
        except queue.Empty as error:
            raise TimeoutError from error
        try:
            return self._attempt(worker, task, on_progress)
        finally:
            self._idle.put(worker)

    def _attempt(self, worker: Worker, task: Task, on_progress: OnProgress) -> Finished:
        for _ in range(self._max_attempts):
            if self._stopping:
                raise ServiceStopping
            try:
                return worker.do(task, on_progress)
            except WorkerDied:
                self._restart(worker)
        raise JobFailed(
            f"The worker process died {self._max_attempts} times: request fewer or smaller images.", "worker_died"
        )

    def _restart(self, worker: Worker) -> None:
        if self._stopping:
            raise ServiceStopping
        self.restarts += 1
        with suppress(WorkerDied):  # the next attempt fails too and restarts it
            self._report(worker.start())

    def _report(self, ready: Ready) -> None:
        self.problem, self.control_kinds = ready.problem, ready.control_kinds
        self._ready.set()

    def cancel(self, job: str) -> None:
        """Interrupt a job at its next sampling step, if a worker is running it."""
        for worker in self.workers:
            worker.cancel(job)

    def stop(self) -> None:
        """End all processes. Tasks under way raise `ServiceStopping` in their threads."""
        self._stopping = True
        for worker in self.workers:
            worker.stop()
