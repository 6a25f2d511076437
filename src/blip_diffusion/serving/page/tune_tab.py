"""The Tune tab: tune a subject from photos, with the curve and samples during training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
import pandas as pd

from blip_diffusion.images import MAX_PHOTOS
from blip_diffusion.serving.page import widgets
from blip_diffusion.serving.page.tuning import MAX_STEPS, Tuning, TuningState

if TYPE_CHECKING:
    from blip_diffusion.serving.job_service import JobService

TRAINABLE = ("embedding", "lora", "cross-attention")
REFRESH = 2.0
NAMES = {"subject": "like the photos", "text": "true to prompts"}


def build(service: JobService, tab: gr.Tab) -> gr.Timer:
    """Build the tab, and return the timer that refreshes it while it is open."""
    tuning = Tuning(service)
    models = list(service.settings.models)
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            photos = gr.File(label=f"Photos of the subject, 1 to {MAX_PHOTOS}", file_count="multiple",
                             elem_id="tune-photos", height=150,
                             file_types=[".png", ".jpg", ".jpeg", ".webp"])  # fmt: skip
            category = gr.Textbox("", label="Category", placeholder="dog", max_length=60, elem_id="tune-category")
            name = gr.Textbox("", label="Name", placeholder="rex", max_length=64, elem_id="tune-name")
            trainable = gr.Radio(TRAINABLE, value="lora", label="Trainable",
                                 info="embedding: a small file; lora: closer to the photos.")  # fmt: skip
            steps = gr.Number(0, label="Steps", precision=0, minimum=0, maximum=MAX_STEPS, elem_id="tune-steps",
                              info="0: stops by itself.")  # fmt: skip
            model = gr.Dropdown(models, value=service.settings.default_model, label="Model")
            with gr.Row():
                run = gr.Button("Tune", variant="primary", scale=2, elem_id="tune")
                stop = gr.Button(
                    "Stop and keep the best", variant="stop", interactive=False, scale=3, elem_id="stop-tune"
                )
        with gr.Column(scale=3, min_width=320):
            state = gr.HTML(widgets.status("No tuning yet."), elem_id="tune-status")
            curve = gr.LinePlot(x="step", y="score", color="measure", height=280, label="Scores", elem_id="curve",
                                show_label=False)  # fmt: skip  # with a label, the plot is too high for its block
            samples = gr.Image(label="Newest samples", interactive=False, buttons=[], format="png", elem_id="samples")
    shown = [state, curve, samples, run, stop]
    timer = gr.Timer(REFRESH, active=False)

    def start(files: list[str] | None, category: str, name: str, trainable: str, steps: float, model: str) -> list[Any]:
        with widgets.shown_errors():
            paths = [Path(file) for file in files or ()]
            tuning.start(paths, category=category, name=name, trainable=trainable, steps=int(steps or 0), model=model)
        return _shown(tuning.state())

    def end() -> list[Any]:
        tuning.stop()
        return _shown(tuning.state())

    run.click(start, [photos, category, name, trainable, steps, model], shown, **widgets.QUIET)
    stop.click(end, None, shown, **widgets.QUIET)
    timer.tick(lambda: _shown(tuning.state()), None, shown, **widgets.QUICK)
    tab.select(lambda: _shown(tuning.state()), None, shown, **widgets.QUICK)
    return timer


def _shown(state: TuningState) -> list[Any]:
    rows = [
        {"step": score.step, "score": getattr(score, key), "measure": label}
        for score in state.scores
        for key, label in NAMES.items()
    ]
    table = pd.DataFrame(rows, columns=["step", "score", "measure"])
    return [widgets.status(state.text), table, str(state.samples) if state.samples else None,
            gr.update(interactive=not state.running), gr.update(interactive=state.running)]  # fmt: skip
