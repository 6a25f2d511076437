"""How much sooner does few-shot tuning know a subject than DreamBooth and Textual Inversion do?

    python -m studies.personalization_speed.compare --world FILE --out DIR

The paper's headline (Li et al. 2023): up to 20 times, at equal fidelity. Measured on held-out subjects of a world, on
one machine in one run. Some of a subject's views are its photos, the others log how alike a image is; a metric that
nobody here has trained scores both. Every method has its own best learning rate, which is searched on other subjects.
A run that was stopped goes on with the same command. `--methods` splits it between processes, one or more methods each;
afterwards the command without it reads what they have left, and writes the table.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from blip_diffusion.checkpoint.folder import find_model, read_parts, whole
from blip_diffusion.checkpoint.subject_file import fingerprint
from blip_diffusion.data.benchmarks.minibench import fingerprint as world_fingerprint
from blip_diffusion.data.synthetic.assets import World
from blip_diffusion.devices import device_of
from blip_diffusion.errors import BlipDiffusionError
from blip_diffusion.evaluation.features.dinov2_saliency import DinoV2Saliency
from blip_diffusion.evaluation.features.efficientnet import EfficientNetLite2
from blip_diffusion.evaluation.generators.cache import claim_output_dir
from blip_diffusion.evaluation.reporting.write import write_text
from blip_diffusion.images import grid, to_pictures
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.sampling import Personal, draw_scenes
from blip_diffusion.training.objective import Method
from blip_diffusion.training.personalize.api import Lesson, TuneConfig, prepare, run
from blip_diffusion.training.personalize.early_stopping import ValidationConfig
from blip_diffusion.training.trainer import HookContext
from studies.personalization_speed.report import (
    DREAMBOOTH,
    Curve,
    Outcome,
    Point,
    SpeedupConfig,
    charts,
    markdown,
)
from studies.personalization_speed.subjects import Backbones, EvalSubject, Scorer, eval_subjects


@dataclass(frozen=True)
class Candidate:
    """A way to tune, and the learning rates among which its best is searched."""

    name: str
    config: TuneConfig
    rates: tuple[float, ...]


CANDIDATES = (
    Candidate("few-shot", TuneConfig(train="unet"), (3e-5, 1e-4, 3e-4, 1e-3)),
    Candidate("few-shot-lora", TuneConfig(train="lora"), (3e-4, 1e-3, 3e-3, 1e-2)),
    Candidate(DREAMBOOTH, TuneConfig(method="dreambooth", prior_images=8), (3e-5, 1e-4, 3e-4, 1e-3)),
    Candidate("textual-inversion", TuneConfig(method="textual-inversion"), (3e-3, 1e-2, 3e-2, 1e-1)),
)

CURVE = "curve.json"
"""Of a candidate on one subject, where its images are: a run that was stopped takes up what it finds."""

NAMES = [candidate.name for candidate in CANDIDATES]


def moments(config: SpeedupConfig, steps: int) -> list[int]:
    """When a method is scored: at 0, after 5 and 10 steps, and then every so often."""
    return sorted(
        {0, *(step for step in (5, 10) if step < config.every), *range(config.every, steps + 1, config.every)}
    )


@dataclass(frozen=True)
class Experiment:
    """What every candidate runs on: the model, who metrics, how much is measured, and what tells them from others."""

    load: Callable[[], BlipDiffusion]
    scorer: Scorer
    config: SpeedupConfig
    made_of: Mapping[str, Any]

    def run(self, subject: EvalSubject, candidate: TuneConfig, work: Path, steps: int) -> Curve:
        """A candidate's curve on one subject: the one that `work` keeps, or else measured now.

        Raises `DataError` where `work` keeps one that was measured otherwise.
        """
        settings = replace(
            candidate, steps=steps, batch_size=self.config.batch_size, validation=ValidationConfig(every=1)
        )
        claim_output_dir(work, {**self.made_of, "subject": subject.identity, "tuning": asdict(settings)})
        kept = work / CURVE
        if kept.is_file():
            return [Point(**point) for point in json.loads(kept.read_text(encoding="utf-8"))]
        curve = self._measure(subject, settings, work)
        write_text(kept, json.dumps([asdict(point) for point in curve]))
        return curve

    def _measure(self, subject: EvalSubject, settings: TuneConfig, work: Path) -> Curve:
        """Tunes a fresh model on a subject's photos, and scores it as it goes. The seconds are training's alone."""
        model = self.load()
        began = time.perf_counter()
        lesson = prepare(model, subject.photos, subject.category, "subject", settings)
        ready = time.perf_counter() - began  # encoding photos, drawing class images: it belongs to the method
        curve: Curve = []

        def look(method: Method, step: int, seconds: float) -> None:
            images = self._drawn(method)
            curve.append(Point(step, ready + seconds, *self.scorer(subject, images)))
            grid(to_pictures(images), len(images)).save(work / f"{step:05d}.png")

        def hook(context: HookContext) -> None:
            if context.step in due:
                look(context.method, context.step, context.seconds)

        due = moments(self.config, settings.steps or 0)
        look(lesson.method, 0, 0.0)
        _quiet_run(lesson, work / "run", hook)
        return curve

    @torch.no_grad()
    def _drawn(self, method: Method) -> Tensor:
        config = self.config
        return draw_scenes(cast(Personal, method), config.prompts, seeds=config.seeds, steps=config.sampling_steps)


def _quiet_run(lesson: Lesson, folder: Path, hook: Callable[[HookContext], None]) -> None:
    """Raises `KeyboardInterrupt` where a signal ends it: half a curve would be taken for a whole one."""
    shutil.rmtree(folder, ignore_errors=True)
    ended = run(lesson, folder, hook)
    shutil.rmtree(folder)
    if ended.stopped == "signal":
        raise KeyboardInterrupt


def search(experiment: Experiment, shown: Sequence[EvalSubject], candidate: Candidate, work: Path) -> dict[str, float]:
    """Of every rate of a candidate, the best mean of both scores that tuning reaches, on average over subjects."""
    steps = experiment.config.search_steps or experiment.config.steps
    found = {}
    for rate in candidate.rates:
        tried = replace(candidate.config, learning_rate=rate)
        curves = [experiment.run(one, tried, work / f"{rate:g}" / one.folder, steps) for one in shown]
        best = [max((point.subject + point.text) / 2 for point in curve[1:]) for curve in curves]
        found[f"{rate:g}"] = sum(best) / len(best)
    return found


def compare(
    load: Callable[[], BlipDiffusion],
    world: World,
    backbones: Backbones,
    config: SpeedupConfig,
    work: Path,
    *,
    candidates: Sequence[Candidate] = CANDIDATES,
    log: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Searches rates on some subjects, and measures every candidate on others. Curves that `work` keeps stay."""
    model = load()
    size = int(model.unet.config.sample_size) * model.latents.factor
    people = eval_subjects(world, config.search_subjects + config.subjects, config.prompts, size=size)
    searched, measured = people[: config.search_subjects], people[config.search_subjects :]
    scorer = Scorer(
        backbones, world, model, people, config.prompts, seeds=config.seeds, probe_pictures=config.probe_pictures
    )
    experiment = Experiment(load, scorer, config, _made_of(model, world, backbones, people, config))
    rates: dict[str, float] = {}
    searches: dict[str, dict[str, float]] = {}
    curves: dict[str, list[Curve]] = {}
    for candidate in candidates:
        name = candidate.name
        searches[name] = search(experiment, searched, candidate, work / "search" / name)
        rates[name] = float(max(searches[name], key=searches[name].__getitem__))
        log(f"{name}: {rates[name]:g} of {searches[name]}")
    for candidate in candidates:
        chosen = replace(candidate.config, learning_rate=rates[candidate.name])
        curves[candidate.name] = []
        for one in measured:
            curve = experiment.run(one, chosen, work / candidate.name / one.folder, config.steps)
            curves[candidate.name].append(curve)
            last = curve[-1]
            log(f"{candidate.name}, {one.category}: subject {last.subject:.2f}, text {last.text:.2f}")
    return Outcome(config, backbones.backbone, rates, curves, searches)


def _made_of(
    model: BlipDiffusion, world: World, backbones: Backbones, people: Sequence[EvalSubject], config: SpeedupConfig
) -> dict[str, Any]:
    """All that a curve depends on beside its candidate: the scorer has seen every subject."""
    return {
        "model": fingerprint(model.unet, model.text_encoder),
        "world": world_fingerprint(world),
        "metric": backbones.backbone,
        "eval_subjects": [subject.identity for subject in people],
        **{name: value for name, value in asdict(config).items() if name not in ("steps", "search_steps")},
    }


def build_backbones(metric: str) -> Backbones:
    """Of the subject's two metrics in `evaluate`, one. The scene is seen by `focus`, as by the metric `text`."""
    focus = DinoV2Saliency()
    return (
        Backbones(EfficientNetLite2(focus), focus)
        if metric == "lite2"
        else Backbones(focus, focus, DinoV2Saliency.width)
    )


def publish(outcome: Outcome, out: Path) -> str:
    """Writes the table, the charts and all numbers, and returns the table: how many times sooner than DreamBooth.

    Where that was not measured, nothing is written, and a sentence says what to do.
    """
    if DREAMBOOTH not in outcome.curves:
        return "The curves are kept. For the table, run it once more without --methods, when all are measured."
    (out / "speedup.json").write_text(json.dumps(asdict(outcome), indent=1), encoding="utf-8")
    charts(outcome, out)
    (out / "speedup.md").write_text(markdown(outcome) + "\n", encoding="utf-8")
    return markdown(outcome)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures the methods that are named, and prints what came of it."""
    plain = SpeedupConfig()
    parser = argparse.ArgumentParser(description="How much sooner than DreamBooth few-shot tuning knows a subject.")
    parser.add_argument("--world", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--model", default="mini", help="a name or a folder")
    parser.add_argument("--metric", choices=("lite2", "focus"), default="lite2", help="(default: lite2)")
    for name in ("subjects", "search-subjects", "steps", "every", "seeds", "sampling-steps"):
        parser.add_argument(f"--{name}", type=int, default=getattr(plain, name.replace("-", "_")))
    parser.add_argument("--methods", nargs="+", choices=NAMES, default=NAMES, help="(default: all)")
    parser.add_argument("--search-steps", type=int, help="(default: as many as --steps)")
    flags = parser.parse_args(arguments)
    try:
        names = {f.name for f in fields(SpeedupConfig)}
        config = SpeedupConfig(**{key: value for key, value in vars(flags).items() if key in names})
        folder, device = find_model(flags.model), device_of("auto")
        backbones = build_backbones(flags.metric)
        world = World.load(flags.world)
        chosen = [candidate for candidate in CANDIDATES if candidate.name in flags.methods]
        log = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731
        outcome = compare(
            lambda: whole(read_parts(folder), folder).to(device),
            world,
            backbones,
            config,
            flags.out / "runs",
            candidates=chosen,
            log=log,
        )
    except BlipDiffusionError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted: the same command goes on, with the curves that are whole.", file=sys.stderr)
        return 130
    print(publish(outcome, flags.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
