"""The Queue tab: waiting, running and ended jobs of all pages, also after a reload."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import gradio as gr

from blip_diffusion.serving.page import widgets

if TYPE_CHECKING:
    from blip_diffusion.serving.job_service import JobService
    from blip_diffusion.serving.jobs import Job

MAX_JOBS = 40
REFRESH = 2.0
HEADERS = ["State", "Prompt", "Age"]


def build(service: JobService, tab: gr.Tab) -> gr.Timer:
    """Build the tab, and return the timer that refreshes it while it is open."""
    chosen = gr.State("")
    note = gr.HTML(widgets.status("Choose a job in the table."), elem_id="queue-note")
    jobs = gr.Dataframe(headers=HEADERS, interactive=False, wrap=True, elem_id="jobs", show_label=False,
                        column_widths=["30%", "48%", "22%"])  # fmt: skip
    with gr.Row():
        cancel = gr.Button("Cancel this job", variant="stop", interactive=False, elem_id="cancel-job")
        again = gr.Button("Generate again", interactive=False)
    images = gr.Gallery(label="Images of this job", columns=4, object_fit="contain", format="png",
                        elem_id="job-images")  # fmt: skip
    timer = gr.Timer(REFRESH, active=False)

    def select(event: gr.SelectData) -> list[Any]:
        job = service.list_jobs(MAX_JOBS)[event.index[0]]
        return [job.id, *_details(service, job)]

    def stop(job_id: str) -> list[Any]:
        with widgets.shown_errors():
            return _details(service, service.cancel(job_id))

    def repeat(job_id: str) -> str:
        with widgets.shown_errors():
            job = service.get(job_id)
            if job.request is not None:
                service.submit(job.request, previews=3)
        return widgets.status("The job is in the queue again.")

    tab.select(lambda: _rows(service), None, jobs, **widgets.QUICK)
    timer.tick(lambda: _rows(service), None, jobs, **widgets.QUICK)
    jobs.select(select, None, [chosen, note, cancel, again, images], **widgets.QUIET)
    cancel.click(stop, chosen, [note, cancel, again, images], **widgets.QUIET)
    again.click(repeat, chosen, note, **widgets.QUIET)
    return timer


def _rows(service: JobService) -> list[list[str]]:
    return [_row(job) for job in service.list_jobs(MAX_JOBS)]


def _row(job: Job) -> list[str]:
    prompt = " · ".join(job.request.prompts) if job.request else ""
    total = len(job.request.prompts) * job.request.num_images if job.request else len(job.images)
    return [f"{job.state}, {len(job.images)} of {total}", prompt[:80], _age(time.time() - job.created)]


def _details(service: JobService, job: Job) -> list[Any]:
    """Return the note, the two buttons and the images of a job."""
    text = f"Job {job.id[:8]}: {job.state}." + (f" {job.problem}" if job.problem else "")
    ended = job.has_ended
    return [widgets.status(text), gr.update(interactive=not ended), gr.update(interactive=ended and bool(job.request)),
            widgets.image_paths(service, job.images)]  # fmt: skip


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
