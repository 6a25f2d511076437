"""Evaluate edits: generate the images of each condition, score them, and write a table and a contact sheet."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from blip_diffusion.argument_checks import function, instance, number, whole_number
from blip_diffusion.config import check_types
from blip_diffusion.data.benchmarks.pie_bench import read_pie_bench
from blip_diffusion.data.benchmarks.registry import MINI, load_benchmark
from blip_diffusion.devices import present_device
from blip_diffusion.errors import InputError
from blip_diffusion.evaluation.editing import editbench, pie_bench
from blip_diffusion.evaluation.editing.report import EditScores, row, write_report
from blip_diffusion.evaluation.editing.scores import BenchScores, Score, build_scores, check_metrics
from blip_diffusion.evaluation.editing.tasks import BOUNDS, CONDITIONS, EditTask, check_conditions, edit_generator
from blip_diffusion.evaluation.generators.cache import IMAGES, LogFn, claim_output_dir, generate_missing, silent
from blip_diffusion.evaluation.generators.conditions import GeneratorSet
from blip_diffusion.evaluation.generators.model import autoencoder_reconstruction
from blip_diffusion.evaluation.metrics.statistics import bootstrap_ci
from blip_diffusion.fileio import as_path, save_image
from blip_diffusion.images import grid, open_image, to_pil
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline
from blip_diffusion.pipelines.presets import Engine, preset_on_engine


@dataclass(frozen=True)
class EditEvaluationConfig:
    """Configuration of an evaluation of edits.

    Args:
        model: "mini", a folder or a hub id.
        pie_bench: The folder of PIE-Bench; by default, EditBench is used.
        dataset: The asset library `world.zip` of EditBench, beside which MiniBench is cached.
        edits: Number of edits, at least 2; by default 60 of EditBench, and all of PIE-Bench that replace a subject.
        conditions: Names of `CONDITIONS`; by default those of the benchmark.
        strength: Share in (0, 1] of the steps that are run.
        steps: Sampling steps; by default the model's.
        engine: Backend of the U-Net; attention control always uses torch.
        metrics: Learned metrics, of `METRICS`; without any, evaluation is a minute faster. `None`: focus, text and
            structure for EditBench, and structure for PIE-Bench. "dino" and CLIP's may name a folder: "dino=FOLDER".
        lpips: Folder of LPIPS' two published files, required by the metric lpips.
    """

    model: str = "mini"
    pie_bench: Path | None = None
    dataset: Path = Path("world/world.zip")
    edits: int | None = None
    conditions: tuple[str, ...] = ()
    strength: float = 1.0
    steps: int | None = None
    engine: Engine = "torch"
    metrics: tuple[str, ...] | None = None
    lpips: Path | None = None

    def __post_init__(self) -> None:
        check_types(self, InputError)
        number("strength", self.strength, 0.01, 1)
        whole_number("steps", 1 if self.steps is None else self.steps, 1, 1000)
        if self.edits is not None and self.edits < 2:
            raise InputError(f"--edits is {self.edits}: use a number from 2.")
        check_conditions(self.conditions)
        if self.pie_bench is not None and "truth" in self.conditions:
            raise InputError("PIE-Bench has no target images: leave the condition truth out.")
        check_metrics(self.chosen_metrics, self.lpips, minibench=self.pie_bench is None)

    @property
    def chosen_metrics(self) -> tuple[str, ...]:
        """The learned metrics; LPIPS is added where its weights are given without names of metrics."""
        if self.metrics is not None:
            return self.metrics
        chosen = ("structure",) if self.pie_bench is not None else ("focus", "text", "structure")
        return chosen if self.lpips is None else (*chosen, "lpips")

    @property
    def chosen_conditions(self) -> tuple[str, ...]:
        """The conditions, or the benchmark's by default."""
        return self.conditions or (editbench if self.pie_bench is None else pie_bench).DEFAULT


@dataclass(frozen=True)
class Benchmark:
    """The edits of a benchmark, its scores, and what the report says of it."""

    name: str
    tasks: list[EditTask]
    scores: list[Score]


def load_edits(config: EditEvaluationConfig, pipe: BlipDiffusionPipeline) -> Benchmark:
    """Load the edits of a benchmark and the networks of its metrics.

    Raises:
        BlipDiffusionError: If the benchmark or a network can't be loaded.
    """
    size = pipe.model.image_size
    if config.pie_bench is not None:
        edits, skipped = read_pie_bench(config.pie_bench)
        scores = build_scores(config.chosen_metrics, config.lpips, None)
        name = f"PIE-Bench ({len(edits)} edits replace a subject, {skipped} others are skipped)"
        return Benchmark(name, pie_bench.build_tasks(edits, config.edits, size=size), scores)
    bench, world = load_benchmark(MINI, config.dataset)
    assert world is not None
    tasks = editbench.build_tasks(bench, world, config.edits or editbench.EDITS, size=size)
    generators = GeneratorSet({}, autoencoder_reconstruction(pipe.model), size, world)
    return Benchmark(
        "EditBench", tasks, build_scores(config.chosen_metrics, config.lpips, BenchScores(bench, generators))
    )


def evaluate_edits(
    config: EditEvaluationConfig, out: Path, *, device: torch.device | str = "cpu", log: LogFn = silent
) -> list[EditScores]:
    """Generate missing edits, score all, and write `edits.json`, `edits.md` and `sheet.jpg`.

    Args:
        config: Model, benchmark, conditions and metrics.
        out: Folder of the run; images in it are not generated again.
        device: Device of the model.
        log: Receives lines of progress.

    Returns:
        The scores of each condition.

    Raises:
        BlipDiffusionError: If the benchmark or the model can't be loaded, or the folder holds another run.

    Example:
        >>> evaluate_edits(EditEvaluationConfig(edits=4, conditions=("copy", "direct/difference")), Path("edits"))
    """
    instance("config", config, EditEvaluationConfig)
    out, device = as_path("out", out), present_device(device)
    function("log", log, "a line", optional=False)
    pipe = BlipDiffusionPipeline.from_pretrained(config.model).to(device)
    pipe.set_progress_bar_config(disable=True)
    benchmark = load_edits(config, pipe)
    tasks, settings = benchmark.tasks, {"strength": config.strength, "num_inference_steps": config.steps}
    run = {"model": config.model, "edits": len(tasks), "engine": config.engine, **settings}
    claim_output_dir(out, run if config.pie_bench is None else {**run, "benchmark": str(config.pie_bench)})
    results, files = [], {}
    for name in config.chosen_conditions:
        start = time.monotonic()
        files[name], generated = _generate(pipe, tasks, name, config.engine, out, settings, log)
        seconds = (time.monotonic() - start) / generated if generated else 0.0
        values: dict[str, Any] = {}
        for score in benchmark.scores:
            values |= score(tasks, files[name])
        results.append(EditScores(name, {key: bootstrap_ci(value[None]) for key, value in values.items()}, seconds))
        log(row(results[-1]))
    heading = f"{len(tasks)} edits of {benchmark.name} by {config.model}"
    write_report(results, f"{heading}; ± is half of the 95 % interval over edits.", out)
    save_image(sheet(tasks, files), out / "sheet.jpg", quality=85)
    return results


def _generate(
    pipe: BlipDiffusionPipeline,
    tasks: Sequence[EditTask],
    name: str,
    engine: Engine,
    out: Path,
    settings: Mapping[str, Any],
    log: LogFn,
) -> tuple[list[Path], int]:
    """Return the images of a condition, and how many were generated now."""
    condition, instances = CONDITIONS[name], [task.instance for task in tasks]
    pipe.set_preset(preset_on_engine("", "torch" if condition.controls_attention else engine))
    folder = out / IMAGES / name.replace("/", "-")
    missing = sum(not (folder / instance.file).is_file() for instance in instances)
    generator = edit_generator(pipe, tasks, condition, **settings)
    return generate_missing(generator, instances, folder, batch_size=10, log=log), missing


def sheet(tasks: Sequence[EditTask], files: Mapping[str, Sequence[Path]], *, rows: int = 8) -> Image.Image:
    """Return a contact sheet with a row per edit: photo, reference, the edit of each condition, and the target."""
    count = min(rows, len(tasks))
    cells: list[Image.Image] = []
    for i in (place * len(tasks) // count for place in range(count)):
        task = tasks[i]
        photo = to_pil(task.photo[None])[0]
        cells.append(photo)
        if task.reference is not None:
            cells.append(task.reference.resize(photo.size))
        cells += [open_image(paths[i]) for name, paths in files.items() if CONDITIONS[name].kind not in BOUNDS]
        if task.truth is not None:
            cells += to_pil(task.truth[None])
    return grid(cells, len(cells) // count)
