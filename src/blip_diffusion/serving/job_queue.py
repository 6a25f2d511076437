"""The durable queue, based on DBOS, which stores jobs in SQLite or PostgreSQL. Only this file uses DBOS.

A job is a workflow, and each of its batches a step, whose result is stored. After a crash the workflow runs again, with
the stored results, from the first missing step on. A running job belongs to the server that took it.
"""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from dbos import DBOS, DBOSConfig, DBOSContextSetAuth, SetWorkflowID, WorkflowStatus
from dbos import error as dbos_error

from blip_diffusion.serving.errors import JobFailed
from blip_diffusion.serving.jobs import State
from blip_diffusion.serving.settings import ServiceSettings

Result = TypeVar("Result")
NAME, WORKFLOW = "blip-diffusion", "generate"
VERSION = "1"
"""Version of the workflow's steps. DBOS continues only workflows of the same version."""
POLL = 0.1
"""Seconds between polls for waiting jobs."""
STATES: dict[str, State] = {
    "DELAYED": "queued",
    "ENQUEUED": "queued",
    "PENDING": "running",
    "SUCCESS": "done",
    "ERROR": "failed",
    "MAX_RECOVERY_ATTEMPTS_EXCEEDED": "failed",
    "CANCELLED": "cancelled",
}
WAITING = ["ENQUEUED", "DELAYED"]


@dataclasses.dataclass(frozen=True)
class QueuedJob:
    """A job as the queue stores it: `table` is its request and its options, `result` the value that `run` returned.

    `server` is the name of the server that runs it or has run it.
    """

    id: str
    state: State
    owner: str
    server: str
    table: dict[str, Any]
    result: dict[str, Any]
    error: Exception | None
    created: float
    started: float
    finished: float


class JobQueue:
    """A queue of jobs that outlives the process. A process has one queue, because DBOS has global state.

    Args:
        settings: Database and number of workers.
        server: Name of this server. At its start, a server continues the jobs that a server of this name has left.
        run: Runs a job with its id and its table, and returns JSON values. Called again after a crash.
    """

    def __init__(
        self, settings: ServiceSettings, server: str, run: Callable[[str, dict[str, Any]], dict[str, Any]]
    ) -> None:
        self._settings, self._server, self._run = settings, server, run
        self._workflow: Any = None

    def start(self) -> None:
        """Open the database and continue the jobs that were running when the process ended."""
        config = DBOSConfig(
            name=NAME,
            system_database_url=self._settings.queue_url,
            application_version=VERSION,
            executor_id=self._server,
            log_level="ERROR",
        )
        DBOS(config=config)
        logging.getLogger("dbos").addFilter(_is_problem)

        def workflow(table: dict[str, Any]) -> dict[str, Any]:
            return self._run(str(DBOS.workflow_id), table)

        workflow.__qualname__ = WORKFLOW
        self._workflow = DBOS.workflow(name=WORKFLOW)(workflow)
        DBOS.launch()
        DBOS.register_queue(NAME, worker_concurrency=self._settings.running_jobs, polling_interval_sec=POLL)

    def stop(self) -> None:
        """Close the database. Running jobs stay marked as running, and continue at the next start."""
        DBOS.destroy(destroy_registry=True)

    def add(self, job: str, owner: str, table: dict[str, Any]) -> QueuedJob:
        """Store a job and return it. An existing job of the same id is returned unchanged."""
        with SetWorkflowID(job), DBOSContextSetAuth(owner, []):
            DBOS.enqueue_workflow(NAME, self._workflow, table)
        stored = self.get(job)
        assert stored is not None
        return stored

    def get(self, job: str) -> QueuedJob | None:
        """Return a job; `None` if there is none."""
        return next(iter(self._list(workflow_ids=[job])), None)

    def find(self, jobs: Sequence[str]) -> list[QueuedJob]:
        """Return those of the jobs that exist."""
        return self._list(workflow_ids=list(jobs)) if jobs else []

    def newest(self, limit: int, owner: str | None = None) -> list[QueuedJob]:
        """Return the newest jobs, of one owner or of all."""
        return self._list(limit=limit, sort_desc=True, **({"user": owner} if owner else {}))

    def waiting(self) -> list[QueuedJob]:
        """Return all jobs that have not started, the oldest first."""
        return self._list(status=WAITING)

    def running(self) -> list[QueuedJob]:
        """Return all jobs that a server has taken and that have not ended."""
        return self._list(status=["PENDING"])

    def ended_before(self, moment: str) -> list[QueuedJob]:
        """Return jobs that were made before a moment, an ISO date and time, and have ended."""
        return self._list(status=["SUCCESS", "ERROR", "CANCELLED"], end_time=moment)

    def all_tables(self) -> list[dict[str, Any]]:
        """Return the tables of all jobs."""
        return [job.table for job in self._list()]

    def cancel(self, job: str) -> None:
        """Mark a job as cancelled. If it runs, it ends at its next step."""
        DBOS.cancel_workflow(job)

    def remove(self, jobs: Sequence[str]) -> None:
        """Delete jobs that have ended."""
        DBOS.delete_workflows(list(jobs))

    def take_over(self, server: str) -> None:
        """Return the running jobs of a server that has ended to the queue. Done twice, it is done once."""
        DBOS._recover_pending_workflows([server])  # public only over DBOS's own HTTP server

    @staticmethod
    def step(name: str, function: Callable[[], Result]) -> Result:
        """Within a job, run a function once: after a crash, its stored result is returned."""
        result: Result = DBOS.run_step({"name": name}, function)
        return result

    @staticmethod
    def abandon(job: str) -> BaseException:
        """Return the exception to raise within a cancelled job."""
        return dbos_error.DBOSWorkflowCancelledError(f"Job {job} is cancelled.")

    @staticmethod
    def _list(**filters: Any) -> list[QueuedJob]:
        return [_queued(status) for status in DBOS.list_workflows(name=WORKFLOW, **filters)]


def _is_problem(record: logging.LogRecord) -> bool:
    """Return whether a log record of the queue is an error, and not about a cancelled or failed job."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, dbos_error.DBOSAwaitedWorkflowCancelledError | JobFailed)


def _queued(status: WorkflowStatus) -> QueuedJob:
    arguments = status.input["args"] if status.input else ()
    error = status.error
    if status.status == "MAX_RECOVERY_ATTEMPTS_EXCEEDED":
        error = JobFailed("The server died too often while it ran this job.", "server_died")
    return QueuedJob(
        id=status.workflow_id,
        state=STATES[status.status],
        owner=status.authenticated_user or "",
        server=status.executor_id or "",
        table=arguments[0] if arguments else {},
        result=status.output or {},
        error=error,
        created=(status.created_at or 0) / 1000,
        started=(status.dequeued_at or 0) / 1000,
        finished=(status.completed_at or 0) / 1000,
    )
