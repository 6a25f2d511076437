"""The view of a job on the page, from its events. It can be followed again after a reload, and by several pages."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from blip_diffusion.serving.errors import UnknownId
from blip_diffusion.serving.events import ENDS

if TYPE_CHECKING:
    from blip_diffusion.serving.events import Event
    from blip_diffusion.serving.job_service import JobService
    from blip_diffusion.serving.jobs import Job

POLL, QUIET = 0.1, 2.0
"""Seconds between polls of the events, and seconds without events after which the job's state is read."""


@dataclass(frozen=True)
class View:
    """The view of a job.

    Args:
        text: One line.
        share: Share of the work that is done, in [0, 1]; `None` if unknown.
        preview: The newest preview as JPEG.
        images: Ids of the images so far.
        ended: Whether the job has ended.
    """

    text: str = ""
    share: float | None = None
    preview: bytes = b""
    images: tuple[str, ...] = ()
    ended: bool = False


def follow(service: JobService, job_id: str) -> Iterator[View]:
    """Yield a job's view whenever it changes, until the job ends. An unknown job has an empty, ended view.

    The last event comes before the queue has stored the end, so from then on the job is read until it has ended.
    """
    try:
        job = service.get(job_id)
    except UnknownId:
        yield View(ended=True)
        return
    view, number, last_read, ends = view_of(job), 0, time.monotonic(), False
    yield view
    total = len(job.request.prompts) * job.request.num_images if job.request else 1
    while not view.ended:
        events = service.events_after(job_id, number)
        changed = view
        for event in events:
            number, ends = event.number, ends or event.kind in ENDS
            changed = after_event(changed, event, total)
        if ends or time.monotonic() - last_read > QUIET:
            last_read = time.monotonic()
            job = service.get(job_id)
            changed = view_of(job) if job.has_ended else changed
        if changed != view:
            view = changed
            yield view
        time.sleep(0 if view.ended else POLL)


def view_of(job: Job) -> View:
    """Return the view of a job's state in the queue."""
    match job.state:
        case "queued":
            return View("Waiting for its turn.", images=job.images)
        case "running":
            return View("Starting.", images=job.images)
        case "done":
            count = f"{len(job.images)} image{'s' if len(job.images) != 1 else ''}"
            return View(f"Done: {count} in {job.seconds:.1f} s.", images=job.images, ended=True)
        case "cancelled":
            return View("Cancelled.", images=job.images, ended=True)
    return View(f"Failed: {job.problem}", images=job.images, ended=True)


def after_event(view: View, event: Event, total: int) -> View:
    """Return the view after an event. The share of the work includes the progress of the current batch."""
    match event.kind:
        case "started":
            return replace(view, text="Starting.", share=0.0)
        case "progress":
            step, steps = int(event.data["step"]), max(1, int(event.data["steps"]))
            done = len(view.images) / total
            batch = int(event.data.get("images", 1)) / total
            text = f"Step {step} of {steps}" + (f", {len(view.images)} of {total} images done" if total > 1 else "")
            return replace(view, text=text + ".", share=min(1.0, done + batch * step / steps))
        case "preview":
            return replace(view, preview=event.preview)
        case "image":
            image = str(event.data["id"])
            return view if image in view.images else replace(view, images=(*view.images, image))
    return view
