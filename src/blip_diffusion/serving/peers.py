"""What servers of one PostgreSQL queue do for each other. Imports no torch.

Any of them takes a waiting job. Each looks every second for jobs of servers that have ended, which it returns to the
queue, and for the jobs of its own clients that run, end or are cancelled elsewhere.
"""

import logging
import threading
from collections.abc import Callable

import psycopg

from blip_diffusion.serving.events import EventLog
from blip_diffusion.serving.job_queue import JobQueue, QueuedJob
from blip_diffusion.serving.jobs import Job
from blip_diffusion.serving.server_lock import DatabaseLock, ServerLock

INTERVAL = 1.0
"""Seconds between two looks at the database."""
PATIENCE = 5.0
LOGGER = logging.getLogger(__name__)


class Peers:
    """The thread of a server that follows the others.

    Args:
        lock: The server's lock, which is acquired.
        queue: The shared queue.
        log: The server's events.
        find: Returns a job by id.
        interrupt: Stops a job if it runs on this server.
    """

    def __init__(
        self,
        lock: DatabaseLock,
        queue: JobQueue,
        log: EventLog,
        find: Callable[[str], Job],
        interrupt: Callable[[str], None],
    ) -> None:
        self._lock, self._queue, self._log = lock, queue, log
        self._find, self._interrupt = find, interrupt
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, which may still wait for the database."""
        self._stopped.set()
        self._thread.join(PATIENCE)

    def _run(self) -> None:
        while not self._stopped.wait(INTERVAL):
            try:
                self._lock.renew()
                self._take_over()
            except psycopg.Error as error:
                LOGGER.warning("The queue's database can't be reached: %s", error)
                continue
            for job in self._queue.find(self._log.open_jobs()):
                self._follow(job)

    def _take_over(self) -> None:
        """Return the running jobs of servers that have ended to the queue."""
        others = {job.server for job in self._queue.running()} - {self._lock.name}
        for name in self._lock.ended(others):
            LOGGER.warning("Server %s has ended: its jobs continue elsewhere.", name)
            self._queue.take_over(name)

    def _follow(self, job: QueuedJob) -> None:
        """Log what another server did with a job."""
        if job.state == "cancelled":
            self._interrupt(job.id)
            self._log.add(job.id, "cancelled")
        elif job.server != self._lock.name and job.state == "running":
            if all(event.kind != "started" for event in self._log.after(job.id, 0)):
                self._log.add(job.id, "started")
        elif job.server != self._lock.name and job.state in ("done", "failed"):
            self._log.add(job.id, job.state, self._find(job.id).ending)


def peers_of(
    lock: ServerLock,
    queue: JobQueue,
    log: EventLog,
    find: Callable[[str], Job],
    interrupt: Callable[[str], None],
) -> Peers | None:
    """Return the peers of a server with such a lock; `None` for the only server of a folder."""
    return Peers(lock, queue, log, find, interrupt) if isinstance(lock, DatabaseLock) else None
