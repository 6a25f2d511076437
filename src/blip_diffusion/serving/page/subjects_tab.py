"""The Subjects tab: the tuned subjects of this server, with upload, download and removal."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from blip_diffusion.serving.page import widgets
from blip_diffusion.serving.page.form import MAX_SUBJECTS
from blip_diffusion.serving.page.generate_tab import SUBJECT, FormFields

if TYPE_CHECKING:
    from blip_diffusion.serving.job_service import JobService
    from blip_diffusion.serving.store import StoredSubject
MAX_THUMBNAIL = 512


def build(service: JobService, form: FormFields, tabs: gr.Tabs, tab: gr.Tab) -> None:
    """Build the tab. "Use in Generate" fills the form's mixture and shows the first of `tabs`."""
    gr.Markdown("Subjects that were tuned, here or with `blip-diffusion tune`. Choose up to three to mix them.")
    stored = gr.CheckboxGroup(label="Subjects", elem_id="shelf", info="Weights are set in Generate.")
    thumbnails = gr.Gallery(label="Photos", columns=6, object_fit="contain", buttons=[], format="png", elem_id="photos")
    with gr.Row():
        use = gr.Button("Use in Generate", variant="primary", interactive=False, elem_id="use-subjects")
        download = gr.Button("Prepare download", interactive=False)
        remove = gr.Button("Remove", variant="stop", interactive=False, elem_id="remove-subject")
    files = gr.File(label="Files", file_count="multiple", visible=False, interactive=False)
    upload = gr.File(label="Upload a subject file", file_types=[".safetensors"], height=150, elem_id="upload-subject")
    listed = [stored, thumbnails, use, download, remove, *form.subjects]

    def add(path: str) -> list[Any]:
        with widgets.shown_errors():
            service.store.add_subject(Path(path).read_bytes())
        return [*_listed(service), None]

    def delete(chosen: list[str]) -> list[Any]:
        with widgets.shown_errors():
            for subject in chosen:
                service.store.remove_subject(subject)
        return _listed(service)

    def mix(chosen: list[str]) -> list[Any]:
        if not 0 < len(chosen) <= MAX_SUBJECTS:
            raise gr.Error(f"{len(chosen)} subjects are chosen: choose 1 to {MAX_SUBJECTS}.", print_exception=False)
        names = [*chosen, *[""] * (MAX_SUBJECTS - len(chosen))]
        return [gr.Tabs(selected="generate"), SUBJECT, *names]

    def copies(chosen: list[str]) -> Any:
        with widgets.shown_errors():
            return gr.update(value=[_named_copy(service, subject) for subject in chosen], visible=bool(chosen))

    tab.select(lambda: _listed(service), None, listed, **widgets.QUICK)
    upload.upload(add, upload, [*listed, upload], **widgets.QUIET)
    remove.click(delete, stored, listed, **widgets.QUIET)
    use.click(mix, stored, [tabs, form.source, *form.subjects], **widgets.QUIET)
    download.click(copies, stored, files, **widgets.QUIET)


def _listed(service: JobService) -> list[Any]:
    """Return updates of the list of subjects, their thumbnails, the buttons and the form's lists."""
    stored = list(service.store.subjects())
    choices = widgets.subject_choices(service)
    thumbnails = [(widgets.jpeg(one.header.thumbnail), one.header.name) for one in stored if _has_thumbnail(one)]
    lists = [gr.update(choices=choices) for _ in range(MAX_SUBJECTS)]
    info = "Weights are set in Generate." if stored else "None yet: tune one in Tune, or upload a file."
    buttons = [gr.update(interactive=bool(stored))] * 3
    return [gr.update(choices=choices[1:], value=[], info=info), thumbnails, *buttons, *lists]


def _has_thumbnail(subject: StoredSubject) -> bool:
    """Return whether a thumbnail is a small image; it is untrusted."""
    try:
        with widgets.jpeg(subject.header.thumbnail) as image:
            return max(image.size) <= MAX_THUMBNAIL
    except Exception:  # for damaged files, Pillow raises errors of many types
        return False


def _named_copy(service: JobService, subject: str) -> str:
    """Return the path of a copy of a subject file, named after the subject."""
    stored = service.store.subject(subject)
    name = re.sub(r"[^\w-]", "_", stored.header.name)[:64] or "subject"  # the header is untrusted
    path = Path(tempfile.mkdtemp(prefix="blip-diffusion-")) / f"{name}.safetensors"
    shutil.copyfile(service.store.subject_path(subject), path)
    return str(path)
