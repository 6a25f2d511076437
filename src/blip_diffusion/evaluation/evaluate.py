"""An evaluation from its order: bench, model, pictures, judges, report. The composition root of evaluation."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from blip_diffusion.data.benchmarks.dreambench import Bench, read_bench, read_dreambench
from blip_diffusion.data.benchmarks.minibench import fingerprint, unknown_to
from blip_diffusion.data.segmentation import saliency
from blip_diffusion.data.synthetic.assets import World
from blip_diffusion.errors import DataError, InputError
from blip_diffusion.evaluation.generators import baselines as methods
from blip_diffusion.evaluation.generators.cache import PICTURES, Shard, draw_missing, keep_settings
from blip_diffusion.evaluation.generators.conditions import DRAWN, METHODS, Row, Studio, rows_of
from blip_diffusion.evaluation.generators.personalized import SUBJECTS, Tuning, check_tunable
from blip_diffusion.evaluation.instances import Case, cases_of
from blip_diffusion.evaluation.metrics.aggregate import judged
from blip_diffusion.evaluation.metrics.memorization import Neighbour, distances, neighbours, training_pictures
from blip_diffusion.evaluation.metrics.registry import Panel, check_names, panel_of
from blip_diffusion.evaluation.reporting.html import write_page
from blip_diffusion.evaluation.reporting.schema import PROTOCOL, Report, keep_references, pictures_of, relative, write
from blip_diffusion.nn_utils import tensor_bytes
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline
from blip_diffusion.pipelines.presets import Engine, ordered
from blip_diffusion.training.personalize.api import TuneConfig

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Order:
    """What to evaluate. `None` leaves a thing to the bench or the model."""

    model: str = "mini"
    bench: str = "mini"
    method: str = "zero-shot"
    seeds: int = 4
    subjects: int | None = None
    prompts: int | None = None
    steps: int | None = None
    guidance: float | None = None
    judges: tuple[str, ...] = ()
    world: Path = Path("world/world.zip")
    dtype: str = "float32"
    preset: str = ""  # what else than the precision it chooses
    engine: Engine = "torch"
    lessons: int = 24  # pictures of each scene for the text judge
    tuning: TuneConfig = field(default_factory=TuneConfig)  # of the method "tuned"; its device is the evaluation's

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"--method is {self.method}: use {', '.join(METHODS[:-1])} or {METHODS[-1]}.")
        if self.steps is not None and not 1 <= self.steps <= 1000:
            raise InputError(f"--steps is {self.steps}: use a number from 1 to 1000.")
        if self.guidance is not None and not 0 <= self.guidance <= 100:
            raise InputError(f"--guidance is {self.guidance}: use a number from 0 to 100.")
        check_names(self.judges)


def open_bench(order: Order) -> tuple[Bench, World | None]:
    """The whole bench of an order, and the world of MiniBench."""
    if order.bench == "dreambench":
        return read_dreambench(Path("dreambench")), None
    folder = minibench_beside(order.world) if order.bench == "mini" else Path(order.bench)
    if not folder.is_dir():
        raise DataError(f"There is no bench at {folder}: use mini, dreambench, or a folder of its layout.")
    bench = read_bench(folder)
    if not bench.world:
        return bench, None
    world = World.load(order.world)
    check_same_world(bench, world, folder)
    return bench, world


def minibench_beside(world: Path) -> Path:
    """The folder of MiniBench, which is beside its world's file. Raises `DataError` where it isn't made yet."""
    folder = world.parent / "bench"
    if not folder.is_dir():
        raise DataError(
            f"There is no MiniBench at {folder}: make it with `blip-diffusion data build --bench --out {world.parent}`."
        )
    return folder


def check_same_world(bench: Bench, world: World, folder: Path) -> None:
    """Raises `DataError` where MiniBench was made of another world, or asks for what its own can't show."""
    if fingerprint(world) != bench.world:
        raise DataError(
            f"{folder} was made of another world than the one given: make it again with `blip-diffusion data build "
            "--bench`, or name its own --world."
        )
    if strange := unknown_to(world, bench):
        raise DataError(f"{folder} asks for {strange}, which its world lacks: make it again with `data build --bench`.")


def settings_of(order: Order, bench: Bench, pipe: BlipDiffusionPipeline, tuning: Tuning | None) -> dict[str, Any]:
    """All that pictures depend on, and nothing else: not the batch, the device, the shard or the judges."""
    return {
        "protocol": PROTOCOL,
        "method": order.method,
        "model": order.model,
        "weights": weights_digest(pipe),
        "bench": bench.name,
        "bench_digest": bench.digest,
        "subjects": [subject.name for subject in bench.subjects],
        "prompts": list(bench.asked),
        "seeds": order.seeds,
        "preset": order.preset or "none",
        "engine": order.engine,
        "steps": order.steps or pipe.preset.steps_of(int(pipe.config.num_inference_steps)),
        "guidance": _guidance(order, pipe),
        "guidance_rescale": float(pipe.config.guidance_rescale),
        "noise_scale": float(pipe.config.noise_scale),
        "prompt_reps": int(pipe.config.prompt_reps),
        "scheduler": type(pipe.scheduler).__name__,
        "noise_levels": noise_levels(pipe.scheduler),
        "size": picture_size(pipe),
        "dtype": order.dtype,
        "reference": "the subject's first picture, cropped square",
        **({} if tuning is None else tuning.settings(int(pipe.text_encoder.config.hidden_size))),
    }


def _guidance(order: Order, pipe: BlipDiffusionPipeline) -> float:
    """What pictures are drawn with; none, where a preset's LoRA has it in itself."""
    if not pipe.preset.guides:
        return 1.0
    return float(pipe.config.guidance_scale if order.guidance is None else order.guidance)


def noise_levels(scheduler: Any) -> str:
    """What tells a scheduler's settings from others; what diffusers notes beside them is in any order."""
    own = {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
    return _digest(json.dumps(own, sort_keys=True, default=str).encode())


def weights_digest(pipe: BlipDiffusionPipeline) -> str:
    """What tells a model's weights from others."""
    found = hashlib.sha256()
    for name, value in sorted(pipe.model.state_dict().items()):
        found.update(name.encode())
        found.update(tensor_bytes(value))
    return found.hexdigest()[:16]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def picture_size(pipe: BlipDiffusionPipeline) -> int:
    """The side of its pictures."""
    return int(pipe.unet.config.sample_size) * pipe.model.latents.factor


def studio_of(
    pipe: BlipDiffusionPipeline, world: World | None, *, steps: int, guidance: float, tuning: Tuning | None = None
) -> Studio:
    """A model's methods."""
    pipe.set_progress_bar_config(disable=True)
    how = {"num_inference_steps": steps, "guidance_scale": guidance}
    drawn = {"zero-shot": methods.zero_shot(pipe, **how), "no-subject": methods.no_subject(pipe, **how)}
    if tuning is not None:
        drawn["tuned"] = methods.tuned(pipe, tuning, **how)
    return Studio(drawn, methods.round_trip_of(pipe.model), picture_size(pipe), world)


def tuning_of(order: Order, bench: Bench, out: Path, device: torch.device | str, tell: Tell) -> Tuning:
    """How this bench's subjects are tuned, into a folder of the run's own."""
    check_tunable(bench.subjects, order.tuning)
    return Tuning(order.model, out / SUBJECTS, order.tuning, saliency(), tell, device)


def evaluate(
    order: Order,
    out: Path,
    *,
    shard: Shard | None = None,
    batch: int = 16,
    device: torch.device | str = "cpu",
    tell: Tell = lambda _: None,
) -> Report | None:
    """Draws what is missing and, unless this is a shard, has it judged and writes the report.

    Raises `BlipDiffusionError` for what can't be used: a bench, a model, a judge, a folder of another run.
    """
    if batch < 1:
        raise InputError(f"--batch is {batch}: use 1 or more.")
    whole, world = open_bench(order)
    bench = whole.part(order.subjects, order.prompts)
    cases = cases_of(bench, order.seeds)
    pipe = BlipDiffusionPipeline.from_pretrained(order.model, torch_dtype=getattr(torch, order.dtype)).to(device)
    pipe.set_preset(ordered(order.preset, order.engine))
    tuning = tuning_of(order, bench, out, device, tell) if order.method == "tuned" else None
    settings = settings_of(order, bench, pipe, tuning)
    studio = studio_of(pipe, world, steps=settings["steps"], guidance=settings["guidance"], tuning=tuning)
    if shard is not None:
        keep_settings(out, settings)
        draw_shard(order.method, shard, cases, studio, out, batch=batch, tell=tell)
        return None
    tell("the judges prepare themselves")  # before an hour of drawing, not after it
    panel = panel_of(order.judges, bench, whole, studio, lessons_each=order.lessons, batch=batch)
    keep_settings(out, settings)
    rows = rows_of(order.method, bench, cases, studio, out, batch=batch, tell=tell)
    report = _report(settings, pipe, bench, rows, panel, studio, out, tell)
    write(report, out)
    write_page(report, out)
    return report


def _report(
    settings: dict[str, Any],
    pipe: BlipDiffusionPipeline,
    bench: Bench,
    rows: dict[str, Row],
    panel: Panel,
    studio: Studio,
    out: Path,
    tell: Tell,
) -> Report:
    verdicts = []
    for judge in panel.judges:
        verdicts.append(judged(judge, rows, settings["subjects"]))
        tell(f"judged by {judge.card.name}")
    first = rows[str(settings["method"])]
    near = neighbours(panel.look, first.pictures, _bank(studio, out)) if studio.world is not None else []
    return Report(
        PROTOCOL,
        settings,
        family_of(pipe),
        keep_references(bench.subjects, out),
        {subject.name: subject.category for subject in bench.subjects},
        pictures_of(first, out),
        verdicts,
        distances(panel.look, first),
        [Neighbour(relative(a, out), relative(b, out), cosine) for a, b, cosine in near],
    )


def _bank(studio: Studio, out: Path) -> list[Path]:
    assert studio.world is not None
    return training_pictures(studio.world, out / "training", size=studio.size)


def family_of(pipe: BlipDiffusionPipeline) -> str:
    """The family of the generator's own image encoder."""
    tower = type(pipe.qformer.image_encoder.tower).__name__
    return next((family for family in ("EfficientNet", "CLIP", "DINO") if family.lower() in tower.lower()), tower)


def draw_shard(
    method: str, shard: Shard, cases: Sequence[Case], studio: Studio, out: Path, *, batch: int, tell: Tell
) -> None:
    """This part of what the model draws: all else is quick, and left to whoever scores."""
    for name in dict.fromkeys([method, "no-subject"]):
        if name in DRAWN:
            asked = [case for case in cases if name == method or case.copy == 0]
            own = shard.of(asked, whole_subjects=name == "tuned")  # no subject is tuned twice
            draw_missing(studio.drawn[name], own, out / PICTURES / name, batch=batch, tell=tell)
