"""The Generate tab: a form, the square of the reference, live previews, cancel, and the images."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from blip_diffusion import images
from blip_diffusion.errors import InputError
from blip_diffusion.generation.request import GenerationRequest, read_reference
from blip_diffusion.serving.errors import UnknownId
from blip_diffusion.serving.page import widgets
from blip_diffusion.serving.page.follow import View, follow
from blip_diffusion.serving.page.form import (
    MAX_IMAGES,
    MAX_PROMPTS,
    MAX_STEPS,
    MAX_SUBJECTS,
    MODEL_DEFAULT,
    NO_CONTROL,
    NO_PRESET,
    Form,
    control_choices,
    to_request,
)

if TYPE_CHECKING:
    from blip_diffusion.serving.job_service import JobService

PRESETS = (NO_PRESET, "exact", "fast", "turbo")
RESIZE_MODES = (MODEL_DEFAULT, "crop", "squash", "pad", "subject")
PREVIEWS = 3
CROP_TIMEOUT = 60.0
"""Seconds that the crop waits for a free worker, or for the first model to load."""
REFERENCE, SUBJECT = "Reference image", "Tuned subject"
JOB_KEY = "blip-diffusion-job"
"""Key of the last job's id in the browser's storage; the job is followed again after a reload."""


@dataclass(frozen=True)
class FormFields:
    """The components of the form, in an order that events can pass on."""

    source: gr.Radio
    prompts: gr.Textbox
    reference: gr.Image
    category: gr.Textbox
    num_images: gr.Slider
    seed: gr.Number
    preset: gr.Radio
    model: gr.Dropdown
    target_category: gr.Textbox
    negative_prompt: gr.Textbox
    resize_mode: gr.Dropdown
    steps: gr.Slider
    guidance_scale: gr.Slider
    control: gr.Radio
    control_image: gr.Image
    control_scale: gr.Slider
    control_end: gr.Slider
    subjects: tuple[gr.Dropdown, ...]
    weights: tuple[gr.Slider, ...]

    def components(self) -> list[Any]:
        """Return all components, those of the mixture last."""
        single = [getattr(self, field.name) for field in fields(self)[:-2]]
        return [*single, *self.subjects, *self.weights]


def form_of(values: tuple[Any, ...]) -> Form:
    """Return the form of the values of `FormFields.components`."""
    names = [field.name for field in fields(FormFields)[:-2]]
    single = dict(zip(names, values, strict=False))
    rest = values[len(names) :]
    mixture = tuple(zip(rest[:MAX_SUBJECTS], rest[MAX_SUBJECTS:], strict=True))
    tuned = single.pop("source") == SUBJECT
    if tuned and not any(name for name, _ in mixture):
        raise InputError("No tuned subject is chosen: choose one, or use a reference image.")
    single["reference"] = None if tuned else single["reference"]
    return Form(**single, mixture=mixture if tuned else ())


def values_of(form: Form, request: GenerationRequest) -> list[Any]:
    """Return the values of `FormFields.components` for a form; the reference is that of the request."""
    tuned = bool(form.mixture)
    reference = None if tuned else images.open_lazily(io.BytesIO(request.reference))
    single = [
        SUBJECT if tuned else REFERENCE,
        form.prompts,
        reference,
        form.category,
        form.num_images,
        form.seed,
        form.preset,
        form.model,
        form.target_category,
        form.negative_prompt,
        form.resize_mode,
        form.steps,
        form.guidance_scale,
        form.control,
        form.control_image,
        form.control_scale,
        form.control_end,
    ]
    rows = [*form.mixture, *[("", 1.0)] * (MAX_SUBJECTS - len(form.mixture))]
    return [*single, *(name for name, _ in rows), *(weight for _, weight in rows)]


def build(service: JobService, page: gr.Blocks) -> FormFields:
    """Build the tab within the current context; `page` gets its load events."""
    job = gr.BrowserState("", storage_key=JOB_KEY)
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=300):
            form, crop = _form(service)
            with gr.Row():
                run = gr.Button("Generate", variant="primary", elem_id="generate")
                cancel = gr.Button("Cancel", variant="stop", elem_id="cancel", interactive=False)
        with gr.Column(scale=6, min_width=320):
            state = gr.HTML(widgets.status("Nothing generated yet."), elem_id="status")
            preview = gr.Image(
                label="Preview", interactive=False, visible=False, buttons=[], elem_id="preview", format="jpeg"
            )
            results = gr.Gallery(
                label="Images", columns=2, object_fit="contain", format="png", elem_id="results", buttons=["download"]
            )
    shown = [state, preview, results, run, cancel]

    def submit(*values: Any) -> str:
        with widgets.shown_errors():
            return service.submit(to_request(form_of(values), service), previews=PREVIEWS).id

    def watch(job_id: str) -> Iterator[list[Any]]:
        if not job_id:
            yield [gr.skip()] * len(shown)  # a generator without values would empty the buttons
            return
        for view in follow(service, job_id):
            yield _shown(service, view)

    def stop(job_id: str) -> None:
        with widgets.shown_errors():
            if job_id:
                service.cancel(job_id)

    run.click(submit, form.components(), job, api_name=False, show_progress="hidden", concurrency_limit=None).success(
        watch, job, shown, api_name=False, show_progress="hidden", concurrency_limit=None, trigger_mode="multiple"
    )
    cancel.click(stop, job, None, api_name=False, show_progress="hidden", concurrency_limit=None)
    page.load(watch, job, shown, api_name=False, show_progress="hidden", concurrency_limit=None)
    _crop_events(service, form, crop)
    page.load(lambda: _choices(service), None, list(form.subjects), **widgets.QUICK)
    _control_events(service, form, page)
    return form


def _shown(service: JobService, view: View) -> list[Any]:
    """Return the values of a view's components."""
    preview = gr.update(visible=False)
    if view.preview and not view.ended:
        preview = gr.update(value=widgets.jpeg(view.preview), visible=True)
    text = view.text or "Nothing generated yet."
    return [
        widgets.status(text, None if view.ended else view.share or 0.0),
        preview,
        widgets.image_paths(service, view.images),
        gr.update(interactive=view.ended),
        gr.update(interactive=not view.ended),
    ]


def _form(service: JobService) -> tuple[FormFields, gr.Image]:
    """Build the form, with the crop next to the reference."""
    source = gr.Radio([REFERENCE, SUBJECT], value=REFERENCE, label="Subject from", elem_id="source")
    with gr.Group() as by_reference, gr.Row():
        reference = widgets.upload(
            "Reference", height=230, min_width=140, sources=["upload", "clipboard"], elem_id="reference"
        )
        crop = gr.Image(
            label="Encoder input",
            interactive=False,
            height=230,
            min_width=140,
            buttons=[],
            elem_id="crop",
            format="png",
        )
    with gr.Group(visible=False) as by_subject:
        rows = [_subject_row(service, number) for number in range(MAX_SUBJECTS)]
    category = gr.Textbox("", label="Category", placeholder="dog", info="What the subject is, in a word or two.",
                          max_length=60, elem_id="category")  # fmt: skip
    prompts = gr.Textbox("", label="Prompts", placeholder="on the beach\nin the snow", lines=2, max_lines=MAX_PROMPTS,
                         info="One scene a line, without the subject.", elem_id="prompts")  # fmt: skip
    with gr.Row():
        num_images = gr.Slider(1, MAX_IMAGES, value=2, step=1, label="Images per prompt", elem_id="num-images",
                               scale=2, min_width=240)  # fmt: skip
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, elem_id="seed", scale=1, min_width=100)
    preset = gr.Radio(PRESETS, value="exact", label="Preset", elem_id="preset",
                      info="exact: best, fast: nearly the same in less time, turbo: two steps.")  # fmt: skip
    with gr.Accordion("More settings", open=False):
        models = list(service.settings.models)
        model = gr.Dropdown(models, value=service.settings.default_model, label="Model")
        target = gr.Textbox("", label="Target category", placeholder="the category", max_length=60,
                            info="What to generate the subject as.")  # fmt: skip
        negative = gr.Textbox("", label="Negative prompt", max_length=300)
        resize_mode = gr.Dropdown(list(RESIZE_MODES), value=MODEL_DEFAULT, label="Resize mode",
                                  info="How the reference becomes square.", elem_id="resize-mode")  # fmt: skip
        steps = gr.Slider(0, MAX_STEPS, value=0, step=1, label="Steps", info="0: the model's or the preset's.")
        guidance = gr.Slider(0, 20, value=0, step=0.5, label="Guidance scale", info="0: the model's.")
        controls = _control_fields(service)
    source.change(
        lambda choice: (gr.update(visible=choice == REFERENCE), gr.update(visible=choice == SUBJECT)),
        source, [by_reference, by_subject], api_name=False, show_progress="hidden",
    )  # fmt: skip
    names, weights = zip(*rows, strict=True)
    form = FormFields(source, prompts, reference, category, num_images, seed, preset, model, target, negative,
                      resize_mode, steps, guidance, *controls, names, weights)  # fmt: skip
    return form, crop


def _control_fields(service: JobService) -> tuple[gr.Radio, gr.Image, gr.Slider, gr.Slider]:
    """Build the fields of a control image; those of the image are shown once a kind is chosen."""
    choices = control_choices(service, service.settings.default_model)
    kind = gr.Radio(choices, value=NO_CONTROL, label="Structure control", elem_id="control",
                    info="mask: where the subject is, white on black. edges: outlines, from any image.")  # fmt: skip
    image = widgets.upload("Control image", height=200, sources=["upload", "clipboard"], visible=False,
                           elem_id="control-image")  # fmt: skip
    scale = gr.Slider(0, 2, value=1.0, step=0.05, label="Control scale", visible=False)
    end = gr.Slider(0.05, 1, value=1.0, step=0.05, label="Control end", visible=False, elem_id="control-end",
                    info="The share of the steps in which it acts: 0.7 keeps more of the subject.")  # fmt: skip
    kind.change(lambda kind: [gr.update(visible=kind != NO_CONTROL)] * 3, kind, [image, scale, end],
                api_name=False, show_progress="hidden")  # fmt: skip
    return kind, image, scale, end


def _subject_row(service: JobService, number: int) -> tuple[gr.Dropdown, gr.Slider]:
    with gr.Row():
        label = "Tuned subject" if number == 0 else f"Mix with ({number + 1})"
        name = gr.Dropdown(widgets.subject_choices(service), value="", label=label, elem_id=f"subject-{number}")
        weight = gr.Slider(0, 1, value=1.0, step=0.05, label=f"Weight {number + 1}",
                           info="Weights are divided by their sum." if number == 0 else None)  # fmt: skip
    return name, weight


def _choices(service: JobService) -> list[Any]:
    """Return updates of the lists of subjects."""
    choices = widgets.subject_choices(service)
    return [gr.update(choices=choices) for _ in range(MAX_SUBJECTS)]


def _control_events(service: JobService, form: FormFields, page: gr.Blocks) -> None:
    """Offer the kinds of control that the chosen model serves, once it is loaded."""

    def offered(model: str, kind: str) -> Any:
        choices = control_choices(service, model)
        return gr.update(choices=choices, value=kind if kind in choices else NO_CONTROL)

    for event in (page.load, form.model.change):
        event(offered, [form.model, form.control], form.control, **widgets.QUICK)


def _crop_events(service: JobService, form: FormFields, crop: gr.Image) -> None:
    """Show the crop whenever the reference, its mode or the model changes."""

    def show(reference: str | None, mode: Any, model: str) -> Any:
        if not reference:
            return None
        with widgets.shown_errors():
            data = read_reference(Path(reference))  # as in a request
        try:
            crop = service.preview_reference(data, None if mode == MODEL_DEFAULT else mode, model, timeout=CROP_TIMEOUT)
            return widgets.jpeg(crop)
        except (InputError, UnknownId, TimeoutError):
            return None  # if every worker is busy, only the crop is missing

    for component in (form.reference, form.resize_mode, form.model):
        component.change(show, [form.reference, form.resize_mode, form.model], crop, api_name=False,
                         show_progress="minimal", concurrency_limit=4)  # fmt: skip
