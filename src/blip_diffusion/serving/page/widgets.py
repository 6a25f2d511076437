"""Helpers of several tabs: errors as messages, images from the store, the state of a job as HTML."""

from __future__ import annotations

import html
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import gradio as gr
from PIL import Image

from blip_diffusion import images
from blip_diffusion.errors import BlipDiffusionError
from blip_diffusion.serving.errors import UnknownId

if TYPE_CHECKING:
    from blip_diffusion.serving.job_service import JobService

QUIET: dict[str, Any] = {"api_name": False, "show_progress": "hidden"}
"""Options of events that are no part of an API, and show no progress on their outputs."""
QUICK = {**QUIET, "queue": False}
"""Options of events that end at once and don't fail. They stay outside Gradio's queue: of two of its events that begin
together, the page may lose the longer one, when Gradio closes the stream of both after the shorter one."""


@contextmanager
def shown_errors() -> Iterator[None]:
    """Show the sentence of an error that the user can correct, instead of a stack trace."""
    try:
        yield
    except BlipDiffusionError as error:
        raise gr.Error(html.escape(str(error)), duration=12, print_exception=False) from None


def upload(label: str, **options: object) -> gr.Image:
    """Return an image field whose upload is not decoded before `open_image` has checked its size."""
    return gr.Image(label=label, type="filepath", image_mode=None, format="png", **options)


def status(text: str, share: float | None = None) -> str:
    """Return a status line as HTML, with a progress bar if a share in [0, 1] is given."""
    bar = "" if share is None else f'<progress max="1" value="{share:.3f}" aria-label="progress"></progress>'
    return f'<div role="status" class="job-status">{bar}<span>{html.escape(text)}</span></div>'


def table(rows: Sequence[tuple[str, str]]) -> str:
    """Return names and texts as an HTML table."""
    lines = "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>" for name, text in rows)
    return f'<table class="settings">{lines}</table>' if lines else ""


def jpeg(data: bytes) -> Image.Image:
    """Return a preview as an image."""
    return images.open_lazily(io.BytesIO(data))


def image_paths(service: JobService, ids: Sequence[str]) -> list[str]:
    """Return the files of generated images; one that has been removed meanwhile is left out."""
    paths = []
    for image_id in ids:
        try:
            paths.append(str(service.store.image_path(image_id)))
        except UnknownId:
            continue
    return paths


def subject_choices(service: JobService) -> list[tuple[str, str]]:
    """Return labels and ids of the stored subjects for a list. The empty id is "none"."""
    stored = [(f"{one.header.name} ({one.header.category})", one.id) for one in service.store.subjects()]
    return [("none", ""), *stored]
