"""The job service of the HTTP server and the web page. Imports no torch.

A request becomes a job in the durable queue. The job runs batch by batch on the worker processes; its images are saved
in the store, and its events in the event log. If a worker or the service is killed, only the current batch is lost.
"""

import threading
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal

from blip_diffusion.errors import InputError
from blip_diffusion.fileio import sha256_of
from blip_diffusion.generation.control_kinds import check_served
from blip_diffusion.generation.request import GenerationRequest
from blip_diffusion.generation.subject_refs import SubjectRef, thumbnail_png
from blip_diffusion.serving.errors import JobFailed, KeyReused, QueueFull, UnknownId
from blip_diffusion.serving.events import Event, EventLog
from blip_diffusion.serving.job_queue import JobQueue, QueuedJob
from blip_diffusion.serving.job_request import adopt, check_files, from_table, references_of, to_table, whole_job
from blip_diffusion.serving.jobs import Job
from blip_diffusion.serving.joiner import Joiner
from blip_diffusion.serving.messages import Batch, Crop, Progress
from blip_diffusion.serving.peers import peers_of
from blip_diffusion.serving.pool import WorkerPool
from blip_diffusion.serving.server_lock import lock_of
from blip_diffusion.serving.settings import ServiceSettings
from blip_diffusion.serving.store import JOB_ID, Store

REMOVAL_INTERVAL = 3600.0
"""Seconds between two removals of old jobs."""


class JobService:
    """Accepts requests, generates images, and stores the results. All methods are thread-safe.

    Args:
        settings: See `ServiceSettings`.

    Example:
        >>> with JobService(ServiceSettings(Path("server"))) as service:
        ...     job = service.wait(service.submit(request).id)
        ...     png = service.store.read_image(job.images[0])
    """

    def __init__(self, settings: ServiceSettings) -> None:
        self.settings = settings
        self.store = Store(settings.folder)
        self.log = EventLog()
        self.pool = WorkerPool(
            settings.devices,
            settings.models[settings.default_model],
            max_attempts=settings.max_attempts,
            timeout=settings.step_timeout,
        )
        self._joiner = Joiner(self.pool, settings.max_joint_images)
        self._lock = lock_of(settings)
        self._queue = JobQueue(settings, self._lock.name, self._run)
        self._started: set[str] = set()  # jobs that a worker has begun; others that run wait for one
        self._peers = peers_of(self._lock, self._queue, self.log, self.get, self._interrupt)
        self._stopped = threading.Event()
        self._runs = False

    def __enter__(self) -> "JobService":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the workers, which load models in the background, and continue the jobs of the last run.

        A running service is left as it is.

        Raises:
            InputError: If another service uses the folder, or the database can't be reached.
        """
        if self._runs:
            return
        self._lock.acquire()
        self._runs = True
        self.pool.start()
        self._joiner.start()
        self._queue.start()
        if self._peers is not None:
            self._peers.start()
        threading.Thread(target=self._remove_periodically, daemon=True).start()

    def close(self) -> None:
        """Stop the service. Waiting and running jobs stay in the queue and continue at the next start."""
        self._stopped.set()
        if self._peers is not None:
            self._peers.stop()
        self._joiner.stop()
        self.pool.stop()
        self._queue.stop()
        self._lock.release()

    @property
    def is_ready(self) -> bool:
        """Whether a worker has loaded the default model."""
        return self.pool.is_ready

    @property
    def problem(self) -> str:
        """Why the default model can't be loaded, or empty."""
        return self.pool.problem

    def control_kinds(self, model: str) -> tuple[str, ...] | None:
        """Return the kinds of control that a model serves; `None` if that isn't known, as of one that isn't loaded."""
        return self.pool.control_kinds if model == self.settings.default_model else None

    # ---------------------------------------------------------------------------------------------------- jobs

    def submit(
        self,
        request: GenerationRequest,
        *,
        owner: str = "",
        key: str = "",
        previews: int = 0,
        auto_dtype: bool = True,
    ) -> Job:
        """Store a request as a job and return at once.

        Args:
            request: What to generate. Its model is one of the settings' names; the paths of its subjects are ids.
            owner: Name of the API key. Other keys can't read the job.
            key: Idempotency key of this owner: the same key and request give the same job.
            previews: Previews of each batch.
            auto_dtype: Use the fastest precision of the preset and the device. `False`: the request's.

        Raises:
            InputError: If the model is not one of the settings', or is known not to serve a kind of control.
            UnknownId: If a subject, or the photo or the mask of an edit, is not in the store.
            QueueFull: If too many jobs are waiting.
            KeyReused: If the key was used with another request.
        """
        if request.model not in self.settings.models:
            raise InputError(f"There is no model {request.model!r} here: use {', '.join(self.settings.models)}.")
        self._check_controls(request)
        check_files(request, self.store)
        request = self._screened(request)
        table = to_table(request, self.store)
        previews = 0 if request.safety_checker else previews  # which nothing checks
        table = {"request": table, "previews": previews, "auto_dtype": auto_dtype}
        job_id = sha256_of(f"{owner}\0{key}".encode())[:32] if key else uuid.uuid4().hex
        queued = self._queue.get(job_id) if key else None
        if queued is None:
            self._check_room(owner)
            queued = self._queue.add(job_id, owner, table)
            self.log.add(job_id, "queued")
        if queued.table != table:
            raise KeyReused("This idempotency key was used with another request: use a new key.")
        return self._job(queued)

    def _check_controls(self, request: GenerationRequest) -> None:
        """Raise `InputError` for a control that the request's model is known not to serve."""
        served = self.control_kinds(request.model)
        if served is not None:
            for control in request.controls:
                check_served(control.kind, served)

    def _screened(self, request: GenerationRequest) -> GenerationRequest:
        """Return a request with the safety checker and the watermark of the settings, beside its own."""
        return replace(
            request,
            safety_checker=request.safety_checker or self.settings.safety_checker,
            watermark=request.watermark or self.settings.watermark,
        )

    def _check_room(self, owner: str) -> None:
        waiting = self._queue.waiting()
        if len(waiting) >= self.settings.max_waiting:
            raise QueueFull(f"{len(waiting)} jobs are waiting, which is the limit: try again later.")
        count = sum(job.owner == owner for job in waiting)
        if owner and count >= self.settings.max_waiting_per_owner:
            raise QueueFull(f"{count} of your jobs are waiting, which is the limit: try again later.")

    def get(self, job_id: str, *, owner: str | None = None) -> Job:
        """Return a job. Raises `UnknownId`, also for another owner's job if an owner is given."""
        queued = self._queue.get(job_id) if JOB_ID.fullmatch(job_id) else None
        if queued is None or owner not in (None, queued.owner):
            raise UnknownId(f"There is no job {job_id[:80]!r} here: check the id.")
        return self._job(queued)

    def list_jobs(self, limit: int = 50, *, owner: str | None = None) -> list[Job]:
        """Return the newest jobs, of one owner or of all."""
        return [self._job(queued) for queued in self._queue.newest(limit, owner)]

    def position(self, job_id: str) -> int:
        """Return the number of waiting jobs before a job; 0 if it isn't waiting."""
        ids = [*self._joiner.waiting(), *(job.id for job in self._queue.waiting())]
        return ids.index(job_id) if job_id in ids else 0

    def waiting(self) -> int:
        """Return the number of waiting jobs."""
        return len(self._joiner.waiting()) + len(self._queue.waiting())

    def cancel(self, job_id: str, *, owner: str | None = None) -> Job:
        """Cancel a job, which ends at its next sampling step. A job that has ended is unchanged."""
        if not self.get(job_id, owner=owner).has_ended:
            self._queue.cancel(job_id)
            self._interrupt(job_id)
            if not (job := self.get(job_id)).has_ended or job.state == "cancelled":
                self.log.add(job_id, "cancelled")
        return self.get(job_id)

    def _interrupt(self, job_id: str) -> None:
        self._joiner.cancel(job_id)
        self.pool.cancel(job_id)

    def events_after(self, job_id: str, number: int = 0) -> Sequence[Event]:
        """Return the events of a job with a higher number; of a job of an earlier process, its last event."""
        events = self.log.after(job_id, number)
        if events or self.log.after(job_id, 0):
            return events
        job = self.get(job_id)
        if job.state in ("done", "failed", "cancelled"):
            return [Event(number + 1, job.state, job.ending)]
        return []

    def wait(self, job_id: str, timeout: float = 600.0) -> Job:
        """Return a job when it has ended, or its current state after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while not (job := self.get(job_id)).has_ended and time.monotonic() < deadline:
            time.sleep(0.05)
        return job

    def _job(self, queued: QueuedJob) -> Job:
        so_far = (event.data["id"] for event in self.log.after(queued.id, 0) if event.kind == "image")
        is_here = queued.server == self._lock.name
        waits = queued.state == "running" and is_here and queued.id not in self._started
        request = None
        with suppress(UnknownId, KeyError):
            request = from_table(queued.table["request"], self.store)
        return Job(
            id=queued.id,
            state="queued" if waits else queued.state,
            owner=queued.owner,
            created=queued.created,
            started=queued.started,
            finished=queued.finished,
            request=request,
            images=tuple(dict.fromkeys(queued.result.get("images", so_far))),
            problem=str(queued.error or ""),
            cause=str(getattr(queued.error, "cause", "internal_error")) if queued.error else "",
            seconds=queued.result.get("seconds", 0.0),
        )

    def adopt(self, request: GenerationRequest) -> GenerationRequest:
        """Return a request from a PNG file with this service's ids. Nothing that the file names is opened.

        Raises:
            InputError: If it needs a model, a photo, a subject or other weights that this service doesn't have.
        """
        return adopt(request, self.store, self.settings.models)

    # ------------------------------------------------------------------------------------------------- running

    def _run(self, job_id: str, table: dict[str, Any]) -> dict[str, Any]:
        """Run a job, in a thread of the queue."""
        try:
            result = self._run_batches(job_id, table)
        except (JobFailed, UnknownId) as error:
            self.log.add(job_id, "failed", {"problem": str(error), "cause": getattr(error, "cause", error.code)})
            raise
        finally:
            self._started.discard(job_id)
        self.log.add(job_id, "done", {"images": result["images"]})
        return result

    def _run_batches(self, job_id: str, table: dict[str, Any]) -> dict[str, Any]:
        whole = whole_job(job_id, table, self.store, self.settings.models)
        size = self.settings.batch_size if whole.edit is None else 1  # edits run one after another
        result: dict[str, Any] = {"images": [], "seconds": 0.0}
        for start in range(0, len(whole.images), size):
            batch = replace(whole, images=whole.images[start : start + size])
            images, seconds = self._queue.step(f"images from {start}", partial(self._generate, batch, start))
            for image_id in images:
                self.log.add(job_id, "image", {"id": image_id})
            result = {"images": [*result["images"], *images], "seconds": result["seconds"] + seconds}
        return result

    def _generate(self, batch: Batch, start: int) -> tuple[list[str], float]:
        """Generate a batch and store its images. Files of an earlier attempt are overwritten."""
        queued = self._not_cancelled(batch.job)
        on_start, on_progress = partial(self._on_start, batch.job), partial(self._on_progress, batch, start)
        finished = self._joiner.do(batch, order=queued.created, on_start=on_start, on_progress=on_progress)
        if finished.outcome == "failed":
            raise JobFailed(finished.problem, finished.cause)
        self._not_cancelled(batch.job)
        return self.store.add_images(batch.job, start, finished.files), finished.seconds

    def _not_cancelled(self, job_id: str) -> QueuedJob:
        """Return a job, unless it is cancelled."""
        queued = self._queue.get(job_id)
        if queued is None or queued.state == "cancelled":
            raise self._queue.abandon(job_id)
        return queued

    def _on_start(self, job_id: str) -> None:
        if job_id not in self._started:
            self._started.add(job_id)
            self.log.add(job_id, "started")

    def _on_progress(self, batch: Batch, start: int, progress: Progress) -> None:
        data = {"step": progress.step, "steps": progress.steps, "first_image": start, "images": len(batch.images)}
        self.log.add(batch.job, "progress", data)
        for preview in progress.previews:
            self.log.add(batch.job, "preview", data, preview)

    # --------------------------------------------------------------------------------- references and subjects

    def preview_reference(
        self,
        reference: bytes,
        resize_mode: Literal["crop", "squash", "pad", "subject"] | None = None,
        model: str | None = None,
        timeout: float = 5.0,
    ) -> bytes:
        """Return the square of a reference that the image encoder reads, as PNG.

        Args:
            reference: An image file.
            resize_mode: See `GenerationRequest`.
            model: Name of the model.
            timeout: Seconds to wait for a free worker.

        Raises:
            InputError: If the file is not an image.
            TimeoutError: If all workers are busy.
        """
        path = self.settings.models.get(model or self.settings.default_model)
        if path is None:
            raise InputError(f"There is no model {model!r} here: use {', '.join(self.settings.models)}.")
        finished = self.pool.do(Crop(reference, path, resize_mode), lambda _: None, timeout=timeout)
        if finished.outcome == "failed":
            raise InputError(finished.problem)
        return finished.files[0]

    def subject_ref(self, subject_id: str, weight: float = 1.0) -> SubjectRef:
        """Return the reference to a stored subject for a request. Raises `UnknownId`."""
        header = self.store.subject(subject_id).header
        return SubjectRef(subject_id, subject_id, weight, header.category)

    def subject_reference(self, subject_id: str) -> bytes:
        """Return a subject's thumbnail as PNG, for use as a request's reference. Raises `UnknownId`."""
        return thumbnail_png(self.store.subject(subject_id).header.thumbnail)

    # -------------------------------------------------------------------------------------------- housekeeping

    def _remove_periodically(self) -> None:
        while not self._stopped.wait(REMOVAL_INTERVAL):
            self.remove_old(time.time() - self.settings.retention)

    def remove_old(self, before: float) -> int:
        """Remove ended jobs created before a Unix time, their images, and references that no job needs."""
        moment = datetime.fromtimestamp(before, UTC).isoformat()
        old = [job.id for job in self._queue.ended_before(moment)]
        if old:
            self._queue.remove(old)
        for job_id in old:
            self.store.remove_images(job_id)
        used = set().union(*(references_of(table["request"]) for table in self._queue.all_tables()))
        self.store.remove_references_except(used, older_than=before)
        return len(old)
