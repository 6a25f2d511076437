"""EditBench: edits with a known target image, because the same scene is composited with either subject.

A photo shows one subject of MiniBench in a scene; the answer shows another one in the same scene and light, in its
place. What should stay is compared with the photo, what should change with the answer. It is no benchmark of real
photographs.
"""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from blip_diffusion.data.benchmarks.dreambench import Bench
from blip_diffusion.data.benchmarks.minibench import bench_sampler, first_rows, pair_spec_of
from blip_diffusion.data.benchmarks.registry import MINI, load_benchmark
from blip_diffusion.data.synthetic.assets import AssetLibrary
from blip_diffusion.data.synthetic.pair_sampler import PairSampler
from blip_diffusion.errors import InputError
from blip_diffusion.evaluation.editing.report import EditScores, row, write_report
from blip_diffusion.evaluation.generators.cache import IMAGES, LogFn, claim_output_dir, generate_missing, silent
from blip_diffusion.evaluation.generators.conditions import GeneratorSet
from blip_diffusion.evaluation.generators.model import ImageGenerator, autoencoder_reconstruction
from blip_diffusion.evaluation.instances import Instance
from blip_diffusion.evaluation.metrics.edit_fidelity import masked_psnr, masked_ssim, unchanged_share
from blip_diffusion.evaluation.metrics.registry import MetricBuilder, build_metrics
from blip_diffusion.evaluation.metrics.statistics import bootstrap_ci
from blip_diffusion.fileio import atomic_file
from blip_diffusion.images import grid, open_image, to_pil, to_tensor
from blip_diffusion.pipelines.attention_alignment import AttentionControl
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline
from blip_diffusion.pipelines.presets import Engine, preset_on_engine

SHADOW, BRUSH = 6, 4
"""Pixels about the subjects that count neither as background nor as subject, and by which a user's mask is wider."""
NUMBERS = ("background_psnr", "background_ssim", "unchanged", "subject_psnr", "whole_psnr")
BOUNDS = ("copy", "truth")
"""Kinds of conditions that edit nothing."""
METRICS = {"focus": "similarity", "text": "scene"}
"""Learned metrics of the edited image, and what of them is shown."""


@dataclass(frozen=True)
class EditCondition:
    """How a photo is edited: `kind` is "edit", "inpaint", "generate", "copy" or "truth"."""

    kind: str = "edit"
    mask: str = "difference"
    options: Mapping[str, Any] = field(default_factory=dict)


def _conditions() -> dict[str, EditCondition]:
    """Return all conditions by name: floors, ceiling, and inversion x mask x attention."""
    found = {
        "copy": EditCondition("copy"),
        "generate": EditCondition("generate"),
        "truth": EditCondition("truth"),
        "inpaint-1": EditCondition("inpaint", "given", {"resamplings": 1}),
        "inpaint-2": EditCondition("inpaint", "given", {"resamplings": 2}),
        "inpaint-4": EditCondition("inpaint", "given", {"resamplings": 4}),
    }
    for mask in ("none", "difference", "subject", "given"):
        for inversion in ("direct", "ddpm", "ddim", "none"):
            found[f"{inversion}/{mask}"] = EditCondition("edit", mask, {"inversion": inversion})
            control = {"inversion": inversion, "attention": AttentionControl()}
            found[f"{inversion}/{mask}/attention"] = EditCondition("edit", mask, control)
        found[f"direct/{mask}/words"] = EditCondition("edit", mask, {"inversion": "direct", "describe_source": False})
    return found


CONDITIONS = _conditions()
DEFAULT = (
    "copy", "generate", "truth", "none/none", "direct/none", "ddpm/none", "ddim/none", "direct/none/attention",
    "none/difference", "direct/difference", "ddpm/difference", "direct/difference/attention", "direct/subject",
    "none/given", "direct/given", "ddpm/given", "direct/given/attention", "inpaint-2",
)  # fmt: skip


@dataclass(frozen=True)
class EditTask:
    """One edit.

    Args:
        instance: The new subject in its scene, as MiniBench has it.
        source_category: What the photo shows.
        photo: (3, S, S) in [0, 1].
        truth: The target, likewise.
        subject: (1, S, S), where the answer shows the new subject.
        background: (1, S, S), where neither subject nor its shadow is.
        given: (1, S, S), a mask as a user would draw it.
    """

    instance: Instance
    source_category: str
    photo: Tensor
    truth: Tensor
    subject: Tensor
    background: Tensor
    given: Tensor

    @property
    def prompt(self) -> str:
        """The scene's words."""
        return self.instance.prompt.after


@dataclass(frozen=True)
class EditBenchConfig:
    """What is evaluated.

    Args:
        model: "mini", a folder or a hub id.
        dataset: The world; MiniBench lies beside it.
        edits: Number of edits, from 2.
        conditions: Names of `CONDITIONS`.
        strength: Of all edits.
        steps: Sampling steps; by default the model's.
        engine: What runs the U-Net; attention control always takes torch.
        metrics: Learned metrics, of `METRICS`; none saves a minute.
    """

    model: str = "mini"
    dataset: Path = Path("world/world.zip")
    edits: int = 60
    conditions: tuple[str, ...] = DEFAULT
    strength: float = 1.0
    steps: int | None = None
    engine: Engine = "torch"
    metrics: tuple[str, ...] = tuple(METRICS)

    def __post_init__(self) -> None:
        if self.edits < 2:
            raise InputError(f"--edits is {self.edits}: use a number from 2.")
        for name in self.conditions:
            if name not in CONDITIONS:
                raise InputError(f"There is no condition {name}: use some of {', '.join(CONDITIONS)}.")
        for name in self.metrics:
            if name not in METRICS:
                raise InputError(f"There is no metric {name} of edits: use some of {', '.join(METRICS)}.")


def build_tasks(bench: Bench, world: AssetLibrary, count: int, *, size: int) -> list[EditTask]:
    """Compose the edits of a benchmark, spread over its subjects and scenes: a pure function of the world.

    Raises:
        InputError: If there are not so many.
    """
    scenes = [number for number in bench.prompt_ids if bench.objects[number].kind == "scene"]
    subjects = bench.subjects
    if not scenes or count > len(subjects) * len(scenes):
        raise InputError(f"--edits is {count}: this benchmark has {len(subjects) * len(scenes)}.")
    sampler, rows = bench_sampler(world, size), first_rows(world)
    return [_task(bench, sampler, rows, scenes, i) for i in range(count)]


def _task(bench: Bench, sampler: PairSampler, rows: Mapping[str, int], scenes: Sequence[int], number: int) -> EditTask:
    subjects, turn = bench.subjects, number // len(bench.subjects)
    target = subjects[number % len(subjects)]
    others = [one for one in subjects if one.category != target.category] or [one for one in subjects if one != target]
    source = others[(7 * number + 11 * turn) % len(others)]
    scene = scenes[(number + 5 * turn) % len(scenes)]
    instance = Instance(target, scene, bench.prompt(target, scene), 0)
    seed = f"edit {number}"
    assert instance.prompt.request is not None
    spec = pair_spec_of(sampler, rows[target.identity], instance.prompt.request, random.Random(seed))
    old = replace(spec, reference=rows[source.identity], target=rows[source.identity])
    edited, photo = (sampler.render([one], random.Random(seed)) for one in (spec, old))
    either = torch.maximum(edited["target_alpha"], photo["target_alpha"])
    return EditTask(
        instance,
        source.category,
        photo["target"][0],
        edited["target"][0],
        (edited["target_alpha"][0] > 0.5).float(),
        1 - _grown(either, 0.05, SHADOW)[0],
        _grown(either, 0.1, BRUSH)[0],
    )


def _grown(alpha: Tensor, threshold: float, reach: int) -> Tensor:
    return F.max_pool2d((alpha > threshold).float(), 2 * reach + 1, stride=1, padding=reach)


def editor(
    pipe: BlipDiffusionPipeline, tasks: Sequence[EditTask], condition: EditCondition, **settings: Any
) -> ImageGenerator:
    """Return the generator of a condition's images; `settings` are arguments of every call."""
    by_file = {task.instance.file: task for task in tasks}
    reconstruct = autoencoder_reconstruction(pipe.model)

    def one(task: EditTask) -> Image.Image:
        if condition.kind == "copy":
            return to_pil(task.photo[None])[0]
        if condition.kind == "truth":
            return to_pil(reconstruct(task.truth[None]))[0]
        return edited(pipe, task, condition, **settings)

    return lambda instances: [one(by_file[instance.file]) for instance in instances]


def edited(pipe: BlipDiffusionPipeline, task: EditTask, condition: EditCondition, **settings: Any) -> Image.Image:
    """Return the edit of one task."""
    instance = task.instance
    category, reference = instance.subject.category, open_image(instance.subject.images[0])
    settings["generator"] = torch.Generator().manual_seed(instance.seed)
    photo, given = to_pil(task.photo[None])[0], to_pil(task.given[None].expand(-1, 3, -1, -1))[0].convert("L")
    result: Any
    if condition.kind == "generate":
        settings.pop("strength", None)
        result = pipe(task.prompt, reference, category, category, **settings)
    elif condition.kind == "inpaint":
        options = {**condition.options, **settings, "prompt": task.prompt}
        result = pipe.inpaint(photo, given, reference, category, **options)
    else:
        mask: Any = given if condition.mask == "given" else condition.mask
        options = {**condition.options, **settings, "prompt": task.prompt, "mask": mask}
        result = pipe.edit(photo, task.source_category, category, reference, **options)
    image: Image.Image = result.images[0]
    return image


def scored(tasks: Sequence[EditTask], paths: Sequence[Path]) -> dict[str, Tensor]:
    """Return each of `NUMBERS` (N,) of the edits in these files."""
    images = to_tensor([open_image(path) for path in paths])
    photo, truth, subject, background = (
        torch.stack([getattr(task, name) for task in tasks]) for name in ("photo", "truth", "subject", "background")
    )
    return {
        "background_psnr": masked_psnr(images, photo, background),
        "background_ssim": masked_ssim(images, photo, background),
        "unchanged": unchanged_share(images, photo, background),
        "subject_psnr": masked_psnr(images, truth, subject),
        "whole_psnr": masked_psnr(images, truth, torch.ones_like(subject)),
    }


def evaluate_edits(
    config: EditBenchConfig, out: Path, *, device: torch.device | str = "cpu", log: LogFn = silent
) -> list[EditScores]:
    """Edit what is missing, score it, and write `edits.json`, `edits.md` and `sheet.jpg`.

    Args:
        config: What to evaluate.
        out: Folder of the run; images that are there already stay.
        device: Where the model runs.
        log: Takes lines of progress.

    Returns:
        The scores of each condition.

    Raises:
        BlipDiffusionError: For an unusable world, model or condition, or a folder that holds another run.

    Example:
        >>> evaluate_edits(EditBenchConfig(edits=4, conditions=("copy", "direct/difference")), Path("edits"))
    """
    bench, world = load_benchmark(MINI, config.dataset)
    assert world is not None
    pipe = BlipDiffusionPipeline.from_pretrained(config.model).to(device)
    pipe.set_progress_bar_config(disable=True)
    size = int(pipe.unet.config.sample_size) * pipe.model.latents.factor
    tasks = build_tasks(bench, world, config.edits, size=size)
    settings = {"strength": config.strength, "num_inference_steps": config.steps}
    claim_output_dir(out, {"model": config.model, "edits": config.edits, "engine": config.engine, **settings})
    metrics = _learned_metrics(config, bench, world, pipe, size)
    results, files = [], {}
    for name in config.conditions:
        controlled = CONDITIONS[name].options.get("attention") is not None
        pipe.set_preset(preset_on_engine("", "torch" if controlled else config.engine))
        began, instances = time.monotonic(), [task.instance for task in tasks]
        folder = out / IMAGES / name.replace("/", "-")
        there = sum((folder / one.file).is_file() for one in instances)
        generator = editor(pipe, tasks, CONDITIONS[name], **settings)
        paths = generate_missing(generator, instances, folder, batch_size=10, log=log)
        seconds = (time.monotonic() - began) / (len(tasks) - there) if there < len(tasks) else 0.0
        values = scored(tasks, paths) | {name: score(paths, instances) for name, score in metrics.items()}
        results.append(EditScores(name, {key: bootstrap_ci(value[None]) for key, value in values.items()}, seconds))
        files[name] = paths
        log(row(results[-1]))
    heading = f"{config.edits} edits by {config.model}; ± is half of the 95 % interval over edits."
    write_report(results, heading, out)
    with atomic_file(out / "sheet.jpg") as partial:
        sheet(tasks, files).save(partial, quality=85)
    return results


def _learned_metrics(
    config: EditBenchConfig, bench: Bench, world: AssetLibrary, pipe: BlipDiffusionPipeline, size: int
) -> dict[str, Callable[[Sequence[Path], Sequence[Instance]], Tensor]]:
    """Return the learned metrics, each a function of images and what they should show."""
    if not config.metrics:
        return {}
    generators = GeneratorSet({}, autoencoder_reconstruction(pipe.model), size, world)
    suite = build_metrics(config.metrics, MetricBuilder(bench, bench, generators))

    def score_of(metric: Any, key: str) -> Callable[[Sequence[Path], Sequence[Instance]], Tensor]:
        return lambda paths, instances: next(v for k, v in metric(paths, instances).items() if k.endswith(key))

    keys = {"focus": "cosine_similarity", "text": "scene"}
    return {one.info.name: score_of(one, keys[one.info.name]) for one in suite.metrics}


def sheet(tasks: Sequence[EditTask], files: Mapping[str, Sequence[Path]], *, rows: int = 8) -> Image.Image:
    """Return a page: photo, reference, each condition's edit and the true target, a row for each of some edits."""
    chosen = [i * len(tasks) // min(rows, len(tasks)) for i in range(min(rows, len(tasks)))]
    cells = []
    for i in chosen:
        task = tasks[i]
        photo, truth = to_pil(torch.stack([task.photo, task.truth]))
        shown = [open_image(task.instance.subject.images[0]).resize(photo.size)]
        shown += [
            open_image(paths[i]) for name, paths in files.items() if CONDITIONS[name].kind not in ("copy", "truth")
        ]
        cells += [photo, *shown, truth]
    return grid(cells, len(cells) // len(chosen))
