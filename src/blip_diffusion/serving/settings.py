"""Settings of the job service."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from blip_diffusion.errors import InputError


@dataclass(frozen=True)
class ServiceSettings:
    """Settings of the job service, which clients can't change.

    Args:
        folder: Folder of jobs, references, subjects and images; created if missing.
        models: Names that clients may request, each with "mini", a folder or a hub id. The first is the default.
        devices: One worker process is started for each: "auto", "cpu", "cuda:0" …
        database_url: Database of the job queue. Empty: SQLite in `folder`. Several servers share a PostgreSQL one
            and the folder, each with as many devices.
        batch_size: Images per batch. A killed process loses at most one batch; previews and cancellation don't wait.
        max_joint_images: Most images of equal requests that are generated together; 1 joins none.
        max_waiting: Most waiting jobs; further ones are refused.
        max_waiting_per_owner: Most waiting jobs of one API key.
        max_attempts: How often a batch is tried while its worker process dies.
        step_timeout: Seconds without a sampling step after which a worker process is replaced; loading included.
        retention: Seconds after which finished jobs and their images are removed.
        safety_checker: Whether images that open_nsfw flags become black, for all requests. Previews are left out then,
            since they are not checked.
        watermark: Whether all images get an invisible watermark.

    Raises:
        InputError: If there is no model or no device, a limit is below 1, or the database is of another kind.
    """

    folder: Path
    models: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({"mini": "mini"}))
    devices: tuple[str, ...] = ("auto",)
    database_url: str = ""
    batch_size: int = 4
    max_joint_images: int = 8
    max_waiting: int = 100
    max_waiting_per_owner: int = 20
    max_attempts: int = 3
    step_timeout: float = 600.0
    retention: float = 30 * 24 * 3600.0
    safety_checker: bool = False
    watermark: bool = False

    def __post_init__(self) -> None:
        if not self.models or not self.devices:
            raise InputError("A server needs at least one model and one device.")
        for name in ("batch_size", "max_joint_images", "max_waiting", "max_waiting_per_owner", "max_attempts"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: use 1 or more.")
        if self.database_url and not self.database_url.startswith(("sqlite:", "postgresql:", "postgresql+psycopg:")):
            raise InputError(f"--database is {self.database_url.partition(':')[0]}: use postgresql:// or sqlite://.")

    @property
    def default_model(self) -> str:
        """The name of the model for requests without one."""
        return next(iter(self.models))

    @property
    def running_jobs(self) -> int:
        """The number of jobs that run at once: as many as the workers can join."""
        return len(self.devices) * self.max_joint_images

    @property
    def is_shared(self) -> bool:
        """Whether other servers may use the same job queue."""
        return self.database_url.startswith("postgresql")

    @property
    def queue_url(self) -> str:
        """The SQLAlchemy address of the job queue's database."""
        return self.database_url or f"sqlite:///{self.folder.absolute() / 'jobs.sqlite'}"
