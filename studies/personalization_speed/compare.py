"""Compare few-shot tuning with DreamBooth and Textual Inversion: how much sooner does it reach the same fidelity?

    python -m studies.personalization_speed.compare --dataset FILE --out DIR

The paper (Li et al. 2023) claims up to 20 times. Here it is measured on held-out subjects, on one machine in one run.
Some views of a subject are the photos to tune on; images are scored by the other views, with a network that was not
trained here. The learning rate of each method is searched on other subjects.

The same command resumes a stopped run. `--methods` splits it between processes, one or more methods each; afterwards
the command without it reads their results and writes the table.
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

from blip_diffusion.checkpoint.locate import find_model
from blip_diffusion.checkpoint.model_folder import assemble, read_parts
from blip_diffusion.checkpoint.subject_file import fingerprint
from blip_diffusion.data.benchmarks.minibench import fingerprint as world_fingerprint
from blip_diffusion.data.synthetic.assets import AssetLibrary
from blip_diffusion.devices import device_of
from blip_diffusion.errors import BlipDiffusionError
from blip_diffusion.evaluation.features.dinov2_saliency import DinoV2Saliency
from blip_diffusion.evaluation.features.efficientnet import EfficientNetLite2
from blip_diffusion.evaluation.generators.cache import claim_output_dir
from blip_diffusion.fileio import write_text
from blip_diffusion.images import grid, to_pil
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.sampling import PersonalizedObjective, sample_prompts
from blip_diffusion.training.objective import Objective
from blip_diffusion.training.personalize.api import TuningJob, prepare, run_job
from blip_diffusion.training.personalize.config import TuneConfig
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
from studies.personalization_speed.subjects import Backbones, EvalSubject, Scorer, ScorerConfig, eval_subjects


@dataclass(frozen=True)
class Candidate:
    """A way to tune, and the learning rates to search."""

    name: str
    config: TuneConfig
    rates: tuple[float, ...]


CANDIDATES = (
    Candidate("few-shot", TuneConfig(trainable="unet"), (3e-5, 1e-4, 3e-4, 1e-3)),
    Candidate("few-shot-lora", TuneConfig(trainable="lora"), (3e-4, 1e-3, 3e-3, 1e-2)),
    Candidate(DREAMBOOTH, TuneConfig(method="dreambooth", num_class_images=8), (3e-5, 1e-4, 3e-4, 1e-3)),
    Candidate("textual-inversion", TuneConfig(method="textual-inversion"), (3e-3, 1e-2, 3e-2, 1e-1)),
)

CURVE = "curve.json"
"""The file of a candidate's curve on one subject, beside its images. A resumed run reads it."""

NAMES = [candidate.name for candidate in CANDIDATES]


def scored_steps(config: SpeedupConfig, steps: int) -> list[int]:
    """List the steps after which a method is scored: 0, 5, 10, and every `config.every`."""
    return sorted(
        {0, *(step for step in (5, 10) if step < config.every), *range(config.every, steps + 1, config.every)}
    )


@dataclass(frozen=True)
class Experiment:
    """What all candidates share: the model, the scorer, the configuration, and what identifies the results."""

    load: Callable[[], BlipDiffusion]
    scorer: Scorer
    config: SpeedupConfig
    identity: Mapping[str, Any]

    def run(self, subject: EvalSubject, candidate: TuneConfig, work: Path, steps: int) -> Curve:
        """Return a candidate's curve on one subject, read from `work` or measured now.

        Raises:
            DataError: If `work` holds a curve with other settings.
        """
        settings = replace(
            candidate, steps=steps, batch_size=self.config.batch_size, validation=ValidationConfig(every=1)
        )
        claim_output_dir(work, {**self.identity, "subject": subject.identity, "tuning": asdict(settings)})
        kept = work / CURVE
        if kept.is_file():
            return [Point(**point) for point in json.loads(kept.read_text(encoding="utf-8"))]
        curve = self._measure(subject, settings, work)
        write_text(kept, json.dumps([asdict(point) for point in curve]))
        return curve

    def _measure(self, subject: EvalSubject, settings: TuneConfig, work: Path) -> Curve:
        """Tune a fresh model on a subject's photos and score it on the way. Only training time is counted."""
        model = self.load()
        began = time.perf_counter()
        job = prepare(model, subject.photos, subject.category, "subject", settings)
        ready = time.perf_counter() - began  # time for encoding photos and generating class images
        curve: Curve = []

        def add_point(objective: Objective, step: int, seconds: float) -> None:
            images = self._sample(objective)
            curve.append(Point(step, ready + seconds, *self.scorer(subject, images)))
            grid(to_pil(images), len(images)).save(work / f"{step:05d}.png")

        def hook(context: HookContext) -> None:
            if context.step in due:
                add_point(context.objective, context.step, context.seconds)

        due = scored_steps(self.config, settings.steps or 0)
        add_point(job.objective, 0, 0.0)
        _quiet_run(job, work / "run", hook)
        return curve

    @torch.no_grad()
    def _sample(self, objective: Objective) -> Tensor:
        config = self.config
        return sample_prompts(
            cast(PersonalizedObjective, objective), config.prompts, seeds=config.seeds, steps=config.sampling_steps
        )


def _quiet_run(job: TuningJob, folder: Path, hook: Callable[[HookContext], None]) -> None:
    """Run in a temporary folder. Raises `KeyboardInterrupt` if a signal ends it: no partial curve is kept."""
    shutil.rmtree(folder, ignore_errors=True)
    ended = run_job(job, folder, hook)
    shutil.rmtree(folder)
    if ended.stopped == "signal":
        raise KeyboardInterrupt


def search(
    experiment: Experiment, subjects: Sequence[EvalSubject], candidate: Candidate, work: Path
) -> dict[str, float]:
    """Return, for each learning rate, the best mean of both scores that tuning reaches, averaged over subjects."""
    steps = experiment.config.search_steps or experiment.config.steps
    scores = {}
    for rate in candidate.rates:
        tried = replace(candidate.config, learning_rate=rate)
        curves = [experiment.run(one, tried, work / f"{rate:g}" / one.folder, steps) for one in subjects]
        best = [max((point.subject + point.text) / 2 for point in curve[1:]) for curve in curves]
        scores[f"{rate:g}"] = sum(best) / len(best)
    return scores


def compare(
    load: Callable[[], BlipDiffusion],
    world: AssetLibrary,
    backbones: Backbones,
    config: SpeedupConfig,
    work: Path,
    *,
    candidates: Sequence[Candidate] = CANDIDATES,
    log: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Search learning rates on some subjects and measure all candidates on others. Curves in `work` are reused."""
    model = load()
    size = model.image_size
    subjects = eval_subjects(world, config.search_subjects + config.subjects, config.prompts, size=size)
    searched, measured = subjects[: config.search_subjects], subjects[config.search_subjects :]
    scorer = Scorer(backbones, world, model, subjects, ScorerConfig(config.prompts, config.seeds, config.probe_images))
    experiment = Experiment(load, scorer, config, _identity(model, world, backbones, subjects, config))
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
            curve = experiment.run(one, chosen, work / candidate.name / one.folder, config.steps_of(candidate.name))
            curves[candidate.name].append(curve)
            last = curve[-1]
            log(f"{candidate.name}, {one.category}: subject {last.subject:.2f}, text {last.text:.2f}")
    return Outcome(config, backbones.backbone, rates, curves, searches)


def _identity(
    model: BlipDiffusion,
    world: AssetLibrary,
    backbones: Backbones,
    subjects: Sequence[EvalSubject],
    config: SpeedupConfig,
) -> dict[str, Any]:
    """Return all that a curve depends on besides its candidate. The scorer depends on all subjects."""
    return {
        "model": fingerprint(model.unet, model.text_encoder),
        "world": world_fingerprint(world),
        "metric": backbones.backbone,
        "eval_subjects": [subject.identity for subject in subjects],
        **{
            name: value
            for name, value in asdict(config).items()
            if not name.endswith("steps") or name == "sampling_steps"
        },
    }


def build_backbones(metric: str) -> Backbones:
    """Build the extractors of the subject metric `lite2` or `focus`. Scenes are classified as by the metric `text`."""
    saliency = DinoV2Saliency()
    return (
        Backbones(EfficientNetLite2(saliency), saliency)
        if metric == "lite2"
        else Backbones(saliency, saliency, DinoV2Saliency.width)
    )


def publish(outcome: Outcome, out: Path) -> str:
    """Write the table, the charts and all numbers, and return the table.

    If DreamBooth was not measured, write nothing and return a sentence that says what to do.
    """
    if DREAMBOOTH not in outcome.curves:
        return "The curves are kept. For the table, run the command without --methods after all methods are measured."
    (out / "speedup.json").write_text(json.dumps(asdict(outcome), indent=1), encoding="utf-8")
    charts(outcome, out)
    (out / "speedup.md").write_text(markdown(outcome) + "\n", encoding="utf-8")
    return markdown(outcome)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the named methods and print the table."""
    plain = SpeedupConfig()
    parser = argparse.ArgumentParser(description="How much sooner few-shot tuning reaches DreamBooth's fidelity.")
    parser.add_argument("--dataset", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--model", default="mini", help="a name or a folder")
    parser.add_argument("--metric", choices=("lite2", "focus"), default="lite2", help="(default: lite2)")
    for name in ("subjects", "search-subjects", "steps", "every", "seeds", "sampling-steps"):
        parser.add_argument(f"--{name}", type=int, default=getattr(plain, name.replace("-", "_")))
    parser.add_argument("--methods", nargs="+", choices=NAMES, default=NAMES, help="(default: all)")
    for name in ("search-steps", "dreambooth-steps"):
        parser.add_argument(f"--{name}", type=int, help="(default: as many as --steps)")
    flags = parser.parse_args(arguments)
    try:
        names = {f.name for f in fields(SpeedupConfig)}
        config = SpeedupConfig(**{key: value for key, value in vars(flags).items() if key in names})
        folder, device = find_model(flags.model), device_of("auto")
        backbones = build_backbones(flags.metric)
        world = AssetLibrary.load(flags.dataset)
        chosen = [candidate for candidate in CANDIDATES if candidate.name in flags.methods]
        log = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731
        outcome = compare(
            lambda: assemble(read_parts(folder), folder).to(device),
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
        print("Interrupted: the same command continues, and reuses complete curves.", file=sys.stderr)
        return 130
    print(publish(outcome, flags.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
