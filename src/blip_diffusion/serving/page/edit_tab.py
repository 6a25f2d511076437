"""The Edit tab: a photo, a mask by brush or file, another subject, and the edits beside the photo."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
from PIL import Image, ImageOps

from blip_diffusion import images
from blip_diffusion.errors import BlipDiffusionError
from blip_diffusion.serving.page import widgets
from blip_diffusion.serving.page.edit_form import (
    BRUSH,
    FILE,
    FOUND,
    INVERSIONS,
    MASKS,
    MAX_EDITS,
    PAINT,
    REPLACE,
    EditForm,
    to_request,
)
from blip_diffusion.serving.page.follow import View, follow
from blip_diffusion.serving.page.form import MAX_STEPS, NO_PRESET

if TYPE_CHECKING:
    from blip_diffusion.serving.job_service import JobService

PRESETS = (NO_PRESET, "exact", "fast")
"""Others sample in too few steps to edit."""
JOB_KEY = "blip-diffusion-edit"
CANVAS = 640
"""Longest side of the photo under the brush; the mask is scaled to the photo."""
PREVIEWS = 3


def build(service: JobService, tab: gr.Tab) -> None:
    """Build the tab within the current context."""
    job = gr.BrowserState("", storage_key=JOB_KEY)
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=300):
            fields = _form(service, tab)
            with gr.Row():
                run = gr.Button("Edit", variant="primary", elem_id="edit")
                cancel = gr.Button("Cancel", variant="stop", elem_id="cancel-edit", interactive=False)
        with gr.Column(scale=6, min_width=320):
            state = gr.HTML(widgets.status("Nothing edited yet."), elem_id="edit-status")
            preview = gr.Image(label="Preview of the edit", interactive=False, visible=False, buttons=[],
                               elem_id="edit-preview", format="jpeg")  # fmt: skip
            results = gr.Gallery(label="Photo and edits", columns=2, object_fit="contain", format="png",
                                 elem_id="edit-results", buttons=["download"])  # fmt: skip
    shown = [state, preview, results, run, cancel]
    quiet: dict[str, Any] = {**widgets.QUIET, "concurrency_limit": None}

    def submit(*values: Any) -> str:
        named = dict(zip(fields, values, strict=True))
        painted = (named.pop("editor") or {}).get("layers") or ()
        with widgets.shown_errors():
            return service.submit(to_request(EditForm(painted=painted, **named), service), previews=PREVIEWS).id

    def watch(job_id: str) -> Iterator[list[Any]]:
        if not job_id:
            yield [gr.skip()] * len(shown)
            return
        for view in follow(service, job_id):
            yield _shown(service, job_id, view)

    def stop(job_id: str) -> None:
        with widgets.shown_errors():
            if job_id:
                service.cancel(job_id)

    run.click(submit, list(fields.values()), job, **quiet).success(watch, job, shown, trigger_mode="multiple", **quiet)
    cancel.click(stop, job, None, **quiet)
    tab.select(watch, job, shown, **quiet)  # also after a reload, which opens another tab


def _shown(service: JobService, job_id: str, view: View) -> list[Any]:
    """Return the values of a view's components: the photo, and beside it the edits so far."""
    preview = gr.update(visible=False)
    if view.preview and not view.ended:
        preview = gr.update(value=widgets.jpeg(view.preview), visible=True)
    paths = widgets.image_paths(service, view.images)
    photo = _photo(service, job_id, paths)
    return [
        widgets.status(view.text or "Nothing edited yet.", None if view.ended else view.share or 0.0),
        preview,
        [*([] if photo is None else [(photo, "Photo")]), *((path, "Edit") for path in paths)],
        gr.update(interactive=view.ended),
        gr.update(interactive=not view.ended),
    ]


def _photo(service: JobService, job_id: str, edits: list[str]) -> Image.Image | None:
    """Return a job's photo, cut to the shape of its edits; `None` if it has been removed."""
    try:
        edit = getattr(service.get(job_id).request, "edit", None)
        photo = None if edit is None else images.open_image(service.store.photo_path(edit.photo.path))
    except BlipDiffusionError:
        return None
    if photo is None or not edits:
        return photo and ImageOps.contain(photo, (CANVAS, CANVAS))
    with images.open_lazily(edits[0]) as result:
        return ImageOps.fit(photo, result.size, Image.Resampling.BICUBIC)


def _form(service: JobService, tab: gr.Tab) -> dict[str, Any]:
    """Build the form, and return its components by the fields of `EditForm`; `editor` holds the painted mask."""
    with gr.Row():
        photo = widgets.upload("Photo", height=230, min_width=140, sources=["upload", "clipboard"], elem_id="photo")
        reference = widgets.upload("Reference", height=230, min_width=140,
                                   sources=["upload", "clipboard"], elem_id="edit-reference")  # fmt: skip
    kind = gr.Radio([REPLACE, PAINT], value=REPLACE, label="Edit", elem_id="edit-kind")
    with gr.Row():
        source = gr.Textbox("", label="In the photo", placeholder="cat", max_length=60, elem_id="edit-from")
        target = gr.Textbox("", label="New subject", placeholder="owl", max_length=60, elem_id="edit-to")
    prompt = gr.Textbox("", label="Scene", placeholder="on the beach", max_length=300, elem_id="edit-prompt",
                        info="What is around the subject; may be empty.")  # fmt: skip
    mask = gr.Radio(list(MASKS), value=MASKS[0], label="Mask", elem_id="edit-mask",
                    info="Where the photo may change. Predicted: where the two prompts differ.")  # fmt: skip
    editor = gr.ImageEditor(
        label="Paint over what may change", type="pil", sources=[], transforms=[], layers=False, buttons=[],
        brush=gr.Brush(colors=["#e11d48"], color_mode="fixed", default_size=40), height=380, visible=False,
        elem_id="mask-editor", format="png",
    )  # fmt: skip
    mask_file = widgets.upload("Mask of the photo's size, white where it may change", height=200, sources=["upload"],
                               visible=False, elem_id="mask-file")  # fmt: skip
    subject = gr.Dropdown(widgets.subject_choices(service), value="", label="Tuned subject, in place of a reference")
    strength = gr.Slider(0.1, 1, value=1.0, step=0.05, label="Strength", info="Less keeps more of the photo.")
    with gr.Row():
        num_images = gr.Slider(1, MAX_EDITS, value=1, step=1, label="Edits")
        seed = gr.Number(0, label="Seed of the edit", precision=0, minimum=0)
    with gr.Accordion("More settings of the edit", open=False):
        models = list(service.settings.models)
        model = gr.Dropdown(models, value=service.settings.default_model, label="Model of the edit")
        preset = gr.Radio(PRESETS, value=NO_PRESET, label="Preset of the edit")
        inversion = gr.Radio(INVERSIONS, value="direct", label="Inversion",
                             info="ddpm: another edit for each seed. none: from noise.")  # fmt: skip
        steps = gr.Slider(0, MAX_STEPS, value=0, step=1, label="Steps of the edit", info="0: the model's.")
    mask.change(_mask_fields, mask, [editor, mask_file], **widgets.QUIET)
    photo.change(_canvas, photo, editor, **widgets.QUIET)
    kind.change(_by_kind, [kind, mask], [source, mask, inversion], **widgets.QUIET)
    tab.select(lambda: gr.update(choices=widgets.subject_choices(service)), None, subject, **widgets.QUICK)
    return {"photo": photo, "kind": kind, "source_category": source, "category": target, "prompt": prompt,
            "mask": mask, "editor": editor, "mask_file": mask_file, "reference": reference, "subject": subject,
            "strength": strength, "num_images": num_images, "seed": seed, "model": model, "preset": preset,
            "inversion": inversion, "steps": steps}  # fmt: skip


def _mask_fields(mask: str) -> list[Any]:
    return [gr.update(visible=mask == BRUSH), gr.update(visible=mask == FILE)]


def _by_kind(kind: str, mask: str) -> list[Any]:
    """Return the fields of a kind: only a painted or uploaded mask can be painted into."""
    replaces = kind == REPLACE
    choices = list(MASKS) if replaces else [BRUSH, FILE]
    mask = BRUSH if mask in FOUND and not replaces else mask
    return [gr.update(visible=replaces), gr.update(choices=choices, value=mask), gr.update(visible=replaces)]


def _canvas(photo: str | None) -> Any:
    """Return the photo as the editor's background, after the checks of its size."""
    if not photo:
        return None
    with widgets.shown_errors():
        background = images.open_image(Path(photo))
    background.thumbnail((CANVAS, CANVAS))
    return {"background": background, "layers": [], "composite": background}
