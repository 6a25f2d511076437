"""Errors of jobs and of requests to the service."""

from typing import ClassVar

from blip_diffusion.errors import BlipDiffusionError


class JobFailed(BlipDiffusionError):  # noqa: N818  # a state of a job
    """A job ended without its images.

    Args:
        sentence: The problem and how to correct it.
        cause: For programs: the code of an error class, or "worker_died".
    """

    code: ClassVar[str] = "job_failed"

    def __init__(self, sentence: str, cause: str = "error") -> None:
        super().__init__(sentence, cause)  # both, so that it can be pickled
        self.cause = cause

    def __str__(self) -> str:
        return str(self.args[0])


class UnknownId(BlipDiffusionError):  # noqa: N818
    """A job, image or subject that doesn't exist, or belongs to another key."""

    code: ClassVar[str] = "not_found"


class QueueFull(BlipDiffusionError):  # noqa: N818
    """Too many jobs are waiting."""

    code: ClassVar[str] = "queue_full"


class KeyReused(BlipDiffusionError):  # noqa: N818
    """An idempotency key that was used with another request."""

    code: ClassVar[str] = "idempotency_key_reused"


class ServiceStopping(BaseException):
    """Unwinds a job's thread when the service stops. The queue records nothing, so the job continues at next start."""
