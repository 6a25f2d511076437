"""The whole page: its tabs, its style, and its mounting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gradio as gr
from PIL import Image

from blip_diffusion import __version__
from blip_diffusion.images import MAX_PIXELS
from blip_diffusion.serving.page import (
    compare_tab,
    edit_tab,
    gallery_tab,
    generate_tab,
    queue_tab,
    subjects_tab,
    tune_tab,
    widgets,
)

if TYPE_CHECKING:
    from fastapi import FastAPI

    from blip_diffusion.serving.job_service import JobService

MAX_UPLOAD = "16mb"
KEEP = (3600, 24 * 3600)
"""Interval in seconds of the removal of Gradio's copies, and their least age."""
STYLE = """
.gradio-container { width: 100% !important; max-width: 1280px !important; margin: 0 auto !important; }
.job-status { display: flex; flex-direction: column; gap: .4rem; padding: .2rem 0; font-weight: 500; }
.job-status progress { width: 100%; height: .6rem; appearance: none; border: 0; }
.job-status progress::-webkit-progress-bar { background: var(--border-color-primary); border-radius: .3rem; }
.job-status progress::-webkit-progress-value { background: var(--color-accent); border-radius: .3rem; }
.job-status progress::-moz-progress-bar { background: var(--color-accent); border-radius: .3rem; }
#results .grid-wrap, #edit-results .grid-wrap, :is(#job-images, #photos) .grid-wrap { height: auto; max-height: none; }
:is(#job-images, #photos) .grid-container { grid-template-columns: repeat(auto-fill, minmax(8rem, 14rem)) !important; }
.block .gallery-container .grid-wrap { padding-top: 1.8rem; }
table.settings { width: 100%; border-collapse: collapse; }
.block .prose table.settings, .block .prose table.settings :is(tr, th, td) { border: 0; }
.block .prose table.settings tr { border-bottom: 1px solid var(--border-color-primary); }
.block .prose table.settings :is(th, td) { padding: .3rem .8rem .3rem 0; text-align: left; vertical-align: top; }
table.settings th { white-space: nowrap; }
table.settings td { overflow-wrap: anywhere; }
#preview img, #crop img { image-rendering: auto; object-fit: contain; }
"""
SCRIPT = """() => {
  const mend = () => {
    document.querySelectorAll("div.empty[aria-label]:not([role])").forEach((one) => one.setAttribute("role", "img"));
    document.querySelectorAll("svg [role=graphics-symbol]:not([aria-label])")
      .forEach((one) => one.setAttribute("aria-label", one.getAttribute("aria-roledescription") || "marks"));
  };
  new MutationObserver(mend)
    .observe(document.body, { childList: true, subtree: true, attributes: true, attributeFilter: ["role"] });
  mend();
}"""
"""Gradio's empty images have a label and no role, and marks in its plots have no label: screen readers need both."""
CONTRAST = {
    "block_label_text_color": "*primary_700",
    "block_title_text_color": "*primary_700",
    "block_info_text_color": "*neutral_600",
    "body_text_color_subdued": "*neutral_600",
    "input_placeholder_color": "*neutral_500",
    "button_primary_background_fill": "*primary_600",
    "button_primary_background_fill_hover": "*primary_700",
    "checkbox_label_background_fill_selected": "*primary_600",
    "color_accent": "*primary_600",
    "input_border_color": "*neutral_500",
    "input_border_width": "1px",
    "checkbox_border_color": "*neutral_500",
}
"""Where the theme's own colours contrast too little: less than 4.5 to 1 in texts, 3 to 1 around fields (WCAG 2, AA)."""
TITLE = "blip-diffusion"
NOTICE = "Images are kept for a day, and shown to no one else."
FONT = ["system-ui", "sans-serif"]
"""System fonts, so that nothing is downloaded."""


def build_page(service: JobService, *, public: bool = False) -> gr.Blocks:
    """Build the page.

    Args:
        service: The service for the page's jobs. It must run when the page is served.
        public: Show only the tabs with a visitor's own images, for visitors who do not know each other.

    Returns:
        The Gradio app. `mount_page` serves it.
    """
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=KEEP, fill_width=True) as page:
        gr.Markdown(f"# {TITLE}\nImages of your subject in any scene, from one reference image and a prompt.")
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab("Generate", id="generate"):
                form = generate_tab.build(service, page)
            with gr.Tab("Edit", id="edit-tab") as edit:
                edit_tab.build(service, edit)
            if not public:
                _private_tabs(service, form, tabs)
            with gr.Tab("Compare", id="compare"):
                compare_tab.build(service, form)
        gr.Markdown(f"Version {__version__}. " + (NOTICE if public else "Images and settings stay on this machine."))
    return page.queue(default_concurrency_limit=8, max_size=200)


def _private_tabs(service: JobService, form: generate_tab.FormFields, tabs: gr.Tabs) -> None:
    """Build the tabs that list the jobs, images and subjects of all."""
    with gr.Tab("Queue", id="queue") as queue:
        queue_timer = queue_tab.build(service, queue)
    with gr.Tab("Gallery", id="gallery") as gallery:
        gallery_tab.build(service, form, tabs, gallery)
    with gr.Tab("Subjects", id="subjects") as subjects:
        subjects_tab.build(service, form, tabs, subjects)
    with gr.Tab("Tune", id="tune") as tune:
        tune_timer = tune_tab.build(service, tune)

    def timers(event: gr.SelectData) -> list[Any]:
        return [gr.Timer(active=event.value == "Queue"), gr.Timer(active=event.value == "Tune")]

    tabs.select(timers, None, [queue_timer, tune_timer], **widgets.QUICK)


def mount_page(app: FastAPI, service: JobService, *, path: str = "/", public: bool = False) -> FastAPI:
    """Serve the page within an HTTP server.

    Args:
        app: The server; its checks of hosts, origins and sizes apply to the page too.
        service: See `build_page`.
        path: URL path of the page.
        public: See `build_page`.

    Returns:
        The server.
    """
    folder = service.settings.folder.absolute()
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # Pillow refuses twice as many; Gradio decodes what the brush sends
    return gr.mount_gradio_app(
        app,
        build_page(service, public=public),
        path=path,
        allowed_paths=[str(folder / "images"), str(folder / "tuning")],
        max_file_size=MAX_UPLOAD,
        show_error=True,
        ssr_mode=False,
        enable_monitoring=False,
        footer_links=[],
        css=STYLE,
        js=SCRIPT,
        theme=gr.themes.Soft(font=FONT, font_mono=["ui-monospace", "monospace"], spacing_size="sm").set(**CONTRAST),
    )
