"""The Gallery tab: all images, the settings in their PNG files, and buttons to load them into the form."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from blip_diffusion.generation.png_metadata import decode
from blip_diffusion.images import open_image
from blip_diffusion.serving.page import widgets
from blip_diffusion.serving.page.form import from_request, settings_of
from blip_diffusion.serving.page.generate_tab import FormFields, values_of

if TYPE_CHECKING:
    from blip_diffusion.serving.job_service import JobService

MAX_JOBS = 60


def build(service: JobService, form: FormFields, tabs: gr.Tabs, tab: gr.Tab) -> None:
    """Build the tab. "Use these settings" fills `form` and shows the first of `tabs`."""
    chosen = gr.State("")
    with gr.Row():
        with gr.Column(scale=3, min_width=320):
            images = gr.Gallery(label="Images, the newest first", columns=4, object_fit="contain", format="png",
                                allow_preview=False, buttons=[], elem_id="gallery")  # fmt: skip
            refresh = gr.Button("Refresh", size="sm")
        with gr.Column(scale=2, min_width=320):
            opened = gr.File(label="Or open a PNG file", file_types=[".png"], height=150,
                             elem_id="open-png")  # fmt: skip
            shown = gr.Image(label="Image", interactive=False, buttons=["fullscreen"], format="png", height=280,
                             elem_id="gallery-image")  # fmt: skip
            settings = gr.HTML("Choose an image to see its settings.", elem_id="settings")
            use = gr.Button("Use these settings", variant="primary", interactive=False, elem_id="use-settings")
            as_reference = gr.Button("Use as reference", interactive=False)
            download = gr.DownloadButton("Download PNG", interactive=False)
    outputs = [chosen, shown, settings, use, as_reference, download]

    def show(path: str) -> list[Any]:
        with widgets.shown_errors():
            request, _ = decode(Path(path))
        rows = widgets.table(settings_of(request))
        return [path, path, rows, gr.update(interactive=True), gr.update(interactive=True),
                gr.update(value=path, interactive=True)]  # fmt: skip

    def select(event: gr.SelectData) -> list[Any]:
        paths = _newest(service)
        return show(paths[event.index]) if event.index < len(paths) else [gr.skip()] * len(outputs)

    def fill(path: str) -> list[Any]:
        with widgets.shown_errors():
            request, _ = decode(Path(path))
            form_values = values_of(from_request(request, service), request)
        return [gr.Tabs(selected="generate"), *form_values]

    def refer(path: str) -> list[Any]:
        with widgets.shown_errors():
            request, _ = decode(Path(path))
        return [gr.Tabs(selected="generate"), open_image(path), request.target_category]

    tab.select(lambda: _newest(service), None, images, **widgets.QUICK)
    refresh.click(lambda: _newest(service), None, images, **widgets.QUICK)
    images.select(select, None, outputs, **widgets.QUIET)
    opened.upload(show, opened, outputs, **widgets.QUIET)
    use.click(fill, chosen, [tabs, *form.components()], **widgets.QUIET)
    as_reference.click(refer, chosen, [tabs, form.reference, form.category], **widgets.QUIET)


def _newest(service: JobService) -> list[str]:
    """Return the files of the newest images."""
    ids = [image for job in service.list_jobs(MAX_JOBS) for image in job.images]
    return widgets.image_paths(service, ids)
