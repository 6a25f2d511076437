"""Evaluate a model on a benchmark: generate images, score them, and write the report."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch

from blip_diffusion.argument_checks import choice, function, instance, whole_number
from blip_diffusion.checkpoint.adapter_refs import EmbeddingRef, LoraRef, loaded_adapters
from blip_diffusion.config import check_types
from blip_diffusion.data.benchmarks.dreambench import Bench
from blip_diffusion.data.benchmarks.registry import load_benchmark
from blip_diffusion.data.segmentation import saliency
from blip_diffusion.data.synthetic.assets import AssetLibrary
from blip_diffusion.devices import present_device
from blip_diffusion.errors import InputError
from blip_diffusion.evaluation.generators import model as generators
from blip_diffusion.evaluation.generators.cache import IMAGES, LogFn, Shard, claim_output_dir, generate_missing, silent
from blip_diffusion.evaluation.generators.conditions import (
    CONDITIONS,
    MODEL_CONDITIONS,
    ConditionResult,
    ConditionRunner,
    GeneratorSet,
)
from blip_diffusion.evaluation.generators.digests import scheduler_digest, weights_digest
from blip_diffusion.evaluation.generators.personalized import SUBJECTS, SubjectTuner, check_tunable, tuned
from blip_diffusion.evaluation.instances import Instance, build_instances
from blip_diffusion.evaluation.metrics.aggregate import MetricResult, score
from blip_diffusion.evaluation.metrics.memorization import (
    NearestTrainingImage,
    nearest_training_images,
    sample_diversity,
    training_bank,
)
from blip_diffusion.evaluation.metrics.registry import MetricBuilder, MetricSuite, build_metrics, check_metric_names
from blip_diffusion.evaluation.reporting.schema import PROTOCOL, Report, path_in, report_images
from blip_diffusion.evaluation.reporting.write import copy_references, write_report
from blip_diffusion.fileio import as_path
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline
from blip_diffusion.pipelines.presets import Engine, preset_on_engine
from blip_diffusion.ray_pool import Backend, actor_pool
from blip_diffusion.training.personalize.config import TuneConfig

DTYPES = ("float32", "float16", "bfloat16")
MAX_PROBE_IMAGES = 10_000
RAY_SHARDS = 64
"""Parts of the images with Ray: several for each actor, so that a slow one delays little."""


@dataclass(frozen=True)
class EvalConfig:
    """Settings of an evaluation.

    Attributes:
        model: `mini`, a model folder, or a hub id.
        loras: LoRA files that the model has, with their weights.
        embeddings: Textual inversions, whose words the benchmark's prompts and categories may hold.
        benchmark: `mini`, `drawings`, `dreambench`, or a folder in DreamBench's layout.
        condition: One of `CONDITIONS`.
        seeds: Images per prompt, 1 to 100.
        subjects: Evaluate only this many subjects; by default all.
        prompts: Evaluate only this many prompts; by default all.
        steps: Sampling steps, 1 to 1000; by default the model's.
        guidance_scale: 0 to 100; by default the model's.
        metrics: Names of metrics; by default those that fit the benchmark.
        dataset: The assets that MiniBench was made of.
        dtype: The precision of the model, such as `float32`.
        preset: The name of a speed preset.
        engine: Backend that runs the U-Net.
        probe_images: Images per scene for fitting the probes of `text`.
        tuning: The configuration of the condition `tuned`. Its device is the evaluation's.
    """

    model: str = "mini"
    benchmark: str = "mini"
    condition: str = "zero-shot"
    seeds: int = 4
    subjects: int | None = None
    prompts: int | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    metrics: tuple[str, ...] = ()
    dataset: Path = Path("world/world.zip")
    dtype: str = "float32"
    preset: str = ""
    engine: Engine = "torch"
    probe_images: int = 24
    tuning: TuneConfig = field(default_factory=TuneConfig)
    loras: tuple[LoraRef, ...] = ()
    embeddings: tuple[EmbeddingRef, ...] = ()

    def __post_init__(self) -> None:
        check_types(self, InputError)
        choice("dtype", self.dtype, DTYPES)
        whole_number("probe_images", self.probe_images, 1, MAX_PROBE_IMAGES)
        if self.condition not in CONDITIONS:
            known = f"{', '.join(CONDITIONS[:-1])} or {CONDITIONS[-1]}"
            raise InputError(f"--condition is {self.condition}: use {known}.")
        if self.steps is not None and not 1 <= self.steps <= 1000:
            raise InputError(f"--steps is {self.steps}: use a number from 1 to 1000.")
        if self.guidance_scale is not None and not 0 <= self.guidance_scale <= 100:
            raise InputError(f"--guidance-scale is {self.guidance_scale}: use a number from 0 to 100.")
        check_metric_names(self.metrics)


def run_settings(
    config: EvalConfig, bench: Bench, pipe: BlipDiffusionPipeline, tuner: SubjectTuner | None
) -> dict[str, Any]:
    """Return all settings that the images depend on: not the batch size, the device, the shard or the metrics."""
    return {
        "protocol": PROTOCOL,
        "condition": config.condition,
        "model": config.model,
        "weights": weights_digest(pipe.model),
        **_adapters(config),
        "benchmark": bench.name,
        "benchmark_digest": bench.digest,
        "subjects": [subject.name for subject in bench.subjects],
        "prompts": list(bench.prompt_ids),
        "seeds": config.seeds,
        "preset": config.preset or "none",
        "engine": config.engine,
        "steps": config.steps or pipe.preset.steps_of(int(pipe.config.num_inference_steps)),
        "guidance_scale": _guidance_scale(config, pipe),
        "guidance_rescale": float(pipe.config.guidance_rescale),
        "noise_scale": float(pipe.config.noise_scale),
        "prompt_reps": int(pipe.config.prompt_reps),
        "scheduler": type(pipe.scheduler).__name__,
        "scheduler_digest": scheduler_digest(pipe.scheduler),
        "image_size": pipe.model.image_size,
        "dtype": config.dtype,
        "reference": "the subject's first image, cropped square",
        **({} if tuner is None else tuner.settings(int(pipe.text_encoder.config.hidden_size))),
    }


def _adapters(config: EvalConfig) -> dict[str, Any]:
    """Return the LoRAs and embeddings, where there are any."""
    loras = [[Path(one.path).name, one.sha256[:16], one.weight] for one in config.loras]
    embeddings = [[Path(one.path).name, one.sha256[:16]] for one in config.embeddings]
    return {**({"loras": loras} if loras else {}), **({"embeddings": embeddings} if embeddings else {})}


def _guidance_scale(config: EvalConfig, pipe: BlipDiffusionPipeline) -> float:
    """Return the guidance scale in use; 1 if the preset's LoRA was distilled with guidance."""
    if not pipe.preset.uses_cfg:
        return 1.0
    return float(pipe.config.guidance_scale if config.guidance_scale is None else config.guidance_scale)


def build_generators(
    pipe: BlipDiffusionPipeline,
    world: AssetLibrary | None,
    *,
    steps: int,
    guidance_scale: float,
    tuner: SubjectTuner | None = None,
) -> GeneratorSet:
    """Build the generators of a model's conditions."""
    pipe.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": steps, "guidance_scale": guidance_scale}
    by_condition = {
        "zero-shot": generators.zero_shot(pipe, **settings),
        "no-subject": generators.no_subject(pipe, **settings),
    }
    if tuner is not None:
        by_condition["tuned"] = tuned(pipe, tuner, **settings)
    return GeneratorSet(by_condition, generators.autoencoder_reconstruction(pipe.model), pipe.model.image_size, world)


@dataclass(frozen=True)
class EvalRun:
    """An evaluation: its benchmark, model, generators and output folder."""

    config: EvalConfig
    full_bench: Bench
    bench: Bench
    pipe: BlipDiffusionPipeline
    generators: GeneratorSet
    settings: dict[str, Any]
    out: Path
    batch_size: int
    log: LogFn

    @property
    def instances(self) -> list[Instance]:
        """All instances of the evaluated condition."""
        return build_instances(self.bench, self.config.seeds)

    def generate_shard(self, shard: Shard) -> None:
        """Generate a part of the model's images. The other images are quick, and `score` generates them."""
        claim_output_dir(self.out, self.settings)
        condition = self.config.condition
        for name in dict.fromkeys([condition, "no-subject"]):
            if name in MODEL_CONDITIONS:
                needed = [one for one in self.instances if name == condition or one.sample_index == 0]
                selected = shard.select(needed, by_subject=name == "tuned")  # each subject is tuned once
                generator, folder = self.generators.by_condition[name], self.out / IMAGES / name
                generate_missing(generator, selected, folder, batch_size=self.batch_size, log=self.log)

    def score(self) -> Report:
        """Generate missing images, score all conditions, and return the report."""
        self.log("the metrics are being prepared")  # first, so that errors are reported before an hour of generation
        suite = build_metrics(self.config.metrics, self._metric_builder())
        claim_output_dir(self.out, self.settings)
        runner = ConditionRunner(self.bench, self.generators, self.out, self.batch_size, self.log)
        conditions = runner.run(self.config.condition, self.instances, baselines=suite.baselines)
        return self._report(suite, conditions)

    def _metric_builder(self) -> MetricBuilder:
        return MetricBuilder(self.bench, self.full_bench, self.generators, self.config.probe_images, self.batch_size)

    def _report(self, suite: MetricSuite, conditions: dict[str, ConditionResult]) -> Report:
        results: list[MetricResult] = []
        for metric in suite.metrics:
            results.append(score(metric, conditions, self.settings["subjects"]))
            self.log(f"scored by {metric.info.name}")
        evaluated = conditions[self.config.condition]
        return Report(
            PROTOCOL,
            self.settings,
            encoder_family(self.pipe),
            copy_references(self.bench.subjects, self.out),
            {subject.name: subject.category for subject in self.bench.subjects},
            report_images(evaluated, self.out),
            results,
            None if suite.features is None else sample_diversity(suite.features, evaluated),
            self._nearest_training_images(suite, evaluated),
        )

    def _nearest_training_images(self, suite: MetricSuite, evaluated: ConditionResult) -> list[NearestTrainingImage]:
        world = self.generators.world
        if suite.features is None or world is None or not any(row.split == "train" for row in world.cutouts):
            return []
        bank = training_bank(world, self.out / "training", size=self.generators.size)
        nearest = nearest_training_images(suite.features, evaluated.images, bank)
        return [NearestTrainingImage(path_in(self.out, a), path_in(self.out, b), cosine) for a, b, cosine in nearest]


def evaluate(
    config: EvalConfig,
    out: Path,
    *,
    shard: Shard | None = None,
    batch_size: int = 16,
    device: torch.device | str = "cpu",
    log: LogFn = silent,
    backend: Backend = "local",
    actors: int | None = None,
) -> Report | None:
    """Generate the missing images of a benchmark and, unless this is a shard, score them and write the report.

    Args:
        config: What to evaluate.
        out: The folder of the run, for the images, `report.json`, `report.md`, `subjects.csv` and `index.html`.
        shard: Generate only this part of the images, and score nothing.
        batch_size: Images generated at once, 1 or more. The images don't depend on it.
        device: Device of the model.
        log: Called with lines of progress.
        backend: "local", this process, or "ray": the actors of a cluster generate the model's images, in a folder that
            all nodes share, and this process scores them.
        actors: Number of actors.

    Returns:
        The report; `None` for a shard.

    Raises:
        BlipDiffusionError: For an unusable benchmark, model or metric, or a folder that holds another run.

    Example:
        >>> report = evaluate(EvalConfig(model="mini", seeds=1, metrics=("focus",)), Path("report"))
    """
    instance("config", config, EvalConfig)
    out, device = as_path("out", out), present_device(device)
    whole_number("--batch-size", batch_size, 1)
    choice("backend", backend, get_args(Backend))
    whole_number("actors", 1 if actors is None else actors, 1)
    if shard is not None:
        instance("shard", shard, Shard)
    function("log", log, "a line", optional=False)
    with _prepared(config, out, batch_size, device, log) as run:
        if shard is not None:
            run.generate_shard(shard)
            return None
        if backend == "ray":
            _generate_on_ray(config, out.resolve(), batch_size, device, log, actors)
        report = run.score()
    write_report(report, out)
    return report


def _generate_on_ray(
    config: EvalConfig, out: Path, batch_size: int, device: torch.device | str, log: LogFn, actors: int | None
) -> None:
    shards = [Shard(index, RAY_SHARDS) for index in range(1, RAY_SHARDS + 1)]
    with actor_pool(partial(_shard_function, config, out, batch_size, device), actors=actors) as generate:
        for shard, _ in zip(shards, generate(shards), strict=True):
            log(f"shard {shard.index} of {shard.count} is generated")


@contextmanager
def _shard_function(
    config: EvalConfig, out: Path, batch_size: int, device: torch.device | str
) -> Iterator[Callable[[Shard], None]]:
    """Context manager: the model is loaded, and the function generates a shard."""
    with _prepared(config, out, batch_size, device, silent) as run:
        yield run.generate_shard


@contextmanager
def _prepared(
    config: EvalConfig, out: Path, batch_size: int, device: torch.device | str, log: LogFn
) -> Iterator[EvalRun]:
    full_bench, world = load_benchmark(config.benchmark, config.dataset)
    bench = full_bench.part(config.subjects, config.prompts)
    build_instances(bench, config.seeds)  # a wrong number of seeds is reported before the model is loaded
    pipe = BlipDiffusionPipeline.from_pretrained(config.model, torch_dtype=getattr(torch, config.dtype)).to(device)
    pipe.set_preset(preset_on_engine(config.preset, config.engine))
    with loaded_adapters(pipe, config.loras, config.embeddings):
        tuner = _build_tuner(config, bench, out, device, log) if config.condition == "tuned" else None
        settings = run_settings(config, bench, pipe, tuner)
        built = build_generators(
            pipe, world, steps=settings["steps"], guidance_scale=settings["guidance_scale"], tuner=tuner
        )
        yield EvalRun(config, full_bench, bench, pipe, built, settings, out, batch_size, log)


def _build_tuner(config: EvalConfig, bench: Bench, out: Path, device: torch.device | str, log: LogFn) -> SubjectTuner:
    check_tunable(bench.subjects, config.tuning)
    folder, adapters = out / SUBJECTS, (config.loras, config.embeddings)
    return SubjectTuner(config.model, folder, config.tuning, saliency(), log, device, *adapters)


def encoder_family(pipe: BlipDiffusionPipeline) -> str:
    """Return the family of the generator's image encoder."""
    tower = type(pipe.qformer.image_encoder.tower).__name__
    return next((family for family in ("EfficientNet", "CLIP", "DINO") if family.lower() in tower.lower()), tower)
