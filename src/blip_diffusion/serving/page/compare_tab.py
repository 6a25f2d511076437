"""The Compare tab: the form's settings under several presets or seeds, side by side, with the seconds of each."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import gradio as gr

from blip_diffusion.generation.request import GenerationRequest
from blip_diffusion.serving.page import widgets
from blip_diffusion.serving.page.form import NO_PRESET, to_request
from blip_diffusion.serving.page.generate_tab import FormFields, form_of

if TYPE_CHECKING:
    from blip_diffusion.serving.job_service import JobService

BY_PRESET, BY_SEED = "Presets", "Seeds"
PRESETS = ("", "exact", "fast", "turbo")
SEEDS = 6
POLL = 0.3


def build(service: JobService, form: FormFields) -> None:
    """Build the tab."""
    gr.Markdown("Compares images of the settings in **Generate**, with its first prompt.")
    with gr.Row():
        by = gr.Radio([BY_PRESET, BY_SEED], value=BY_PRESET, label="Compare", elem_id="compare-by")
        run = gr.Button("Compare", variant="primary", elem_id="compare")
    state = gr.HTML(widgets.status("Nothing compared yet."), elem_id="compare-status")
    grid = gr.Gallery(label="Images", columns=4, object_fit="contain", format="png", elem_id="compare-grid")

    def compare(by: str, *values: Any) -> Iterator[list[Any]]:
        with widgets.shown_errors():
            request = to_request(form_of(values), service)
            jobs = {label: service.submit(one).id for label, one in variants(request, by)}
        yield from _results(service, jobs)

    run.click(compare, [by, *form.components()], [state, grid], api_name=False, show_progress="hidden",
              concurrency_limit=None)  # fmt: skip


def variants(request: GenerationRequest, by: str) -> list[tuple[str, GenerationRequest]]:
    """Return the requests to compare, one image each, with their labels."""
    one = replace(request, prompts=request.prompts[:1], num_images=1)
    if by == BY_SEED:
        return [(f"seed {seed}", replace(one, seed=seed)) for seed in range(request.seed, request.seed + SEEDS)]
    return [(preset or NO_PRESET, replace(one, preset=preset)) for preset in PRESETS]


def _results(service: JobService, jobs: dict[str, str]) -> Iterator[list[Any]]:
    """Yield the status and the images so far, until all jobs have ended."""
    shown = -1
    while True:
        states = {label: service.get(job_id) for label, job_id in jobs.items()}
        ended = sum(job.has_ended for job in states.values())
        if ended != shown:
            shown = ended
            captions = [
                (path, f"{label}: {job.seconds:.1f} s" if job.seconds else label)
                for label, job in states.items()
                for path in widgets.image_paths(service, job.images)
            ]
            failed = [f"{label}: {job.problem}" for label, job in states.items() if job.problem]
            text = " ".join([f"{ended} of {len(jobs)} done.", *failed])
            yield [widgets.status(text, None if ended == len(jobs) else ended / len(jobs)), captions]
        if ended == len(jobs):
            return
        time.sleep(POLL)
