"""Measure whether structure control changes the scores of subject and text.

    python -m studies.structure_control.scores --dataset FILE --out DIR

MiniBench's images are generated without control, with the structure of their own ground truth, and with that of another
subject in the same prompt, as `blip-diffusion generate --control` does: with the subject's box in the control image,
and an adapter that acts on the conditional prediction only. All are scored by `focus` and `text`, the metrics of
`blip-diffusion evaluate`. The same command resumes a stopped run.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from blip_diffusion.data.batches import SubjectBatch
from blip_diffusion.data.benchmarks.dreambench import Bench
from blip_diffusion.data.benchmarks.registry import load_benchmark
from blip_diffusion.data.synthetic.assets import AssetLibrary
from blip_diffusion.errors import InputError
from blip_diffusion.evaluation.evaluate import DTYPES, build_generators
from blip_diffusion.evaluation.generators.baselines import composer
from blip_diffusion.evaluation.generators.cache import claim_output_dir
from blip_diffusion.evaluation.generators.conditions import (
    SHUFFLED_PROMPTS,
    SHUFFLED_SUBJECTS,
    VAE_RECONSTRUCTION,
    ConditionResult,
    ConditionRunner,
    GeneratorSet,
)
from blip_diffusion.evaluation.generators.digests import weights_digest
from blip_diffusion.evaluation.generators.model import ImageGenerator, zero_shot
from blip_diffusion.evaluation.instances import Instance, build_instances, with_other_subject
from blip_diffusion.evaluation.metrics.aggregate import MetricResult, score
from blip_diffusion.evaluation.metrics.registry import MetricBuilder
from blip_diffusion.evaluation.metrics.similarity import ACCURACY, Metric
from blip_diffusion.evaluation.metrics.statistics import Estimate, bootstrap_ci, normalized_between_bounds
from blip_diffusion.fileio import write_text
from blip_diffusion.framing import Box, box_of_mask, default_boxes
from blip_diffusion.images import to_pil
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline
from blip_diffusion.references import find_subject
from blip_diffusion.training.objectives.control import Hint, hint_of
from studies import print_result

Structure = Literal["own", "another"]
WITHOUT = "without-control"
STRUCTURES: Mapping[Structure, str] = {
    "own": "of its own ground truth",
    "another": "of another subject in the same prompt",
}
KINDS: Mapping[Hint, str] = {"canny": "edges", "mask": "mask"}
"""The words of the table."""


@dataclass(frozen=True)
class Controlled:
    """A condition with control: the kind of control image, and whose ground truth gives it."""

    hint: Hint
    structure: Structure

    @property
    def name(self) -> str:
        """The condition's name, which is that of its folder."""
        return f"{self.hint}-{self.structure}"

    @property
    def label(self) -> str:
        """The row's first cell."""
        return f"{KINDS[self.hint]} {STRUCTURES[self.structure]}"


@dataclass(frozen=True)
class ScoresConfig:
    """What is measured, and how much of MiniBench."""

    hints: tuple[Hint, ...] = ("canny", "mask")
    structures: tuple[Structure, ...] = ("own", "another")
    subjects: int | None = None  # default: all
    prompts: int | None = None
    probe_images: int = 24  # per scene, to fit the probes of `text` to
    batch_size: int = 8

    @property
    def conditions(self) -> list[Controlled]:
        """The conditions with control."""
        return [Controlled(hint, structure) for hint in self.hints for structure in self.structures]


@dataclass(frozen=True)
class ControlScores:
    """The scores of a condition, and their differences from those without control."""

    subject: Estimate
    text: Estimate
    subject_difference: Estimate | None = None
    text_difference: Estimate | None = None


def controlled(pipe: BlipDiffusionPipeline, world: AssetLibrary, bench: Bench, condition: Controlled) -> ImageGenerator:
    """Return a generator that follows the structure of ground truths, as `generate --control` does.

    Args:
        pipe: The model, with an adapter for the condition's control images.
        world: The assets of the ground truths.
        bench: The benchmark, whose other subjects give the structure of `another`.
        condition: The control images.

    Returns:
        A function from instances to images.
    """
    compose = composer(world, size=pipe.model.image_size)
    hint, network = condition.hint, pipe.t2i_adapters[condition.hint]

    def generate(instances: Sequence[Instance]) -> list[Image.Image]:
        shown = instances if condition.structure == "own" else with_other_subject(instances, bench)
        batches = [compose(instance) for instance in shown]
        hints = torch.cat([hint_of(hint, batch) for batch in batches])
        control = {"image": hints.expand(-1, 3, -1, -1), "controlnet": network, "guess_mode": True}
        if pipe.model.place_width:
            control["box"] = [subject_box(pipe, batch, hint) for batch in batches]
        return zero_shot(pipe, **control)(instances)

    return generate


def subject_box(pipe: BlipDiffusionPipeline, batch: SubjectBatch, hint: Hint) -> Box:
    """Return the subject's box, as `generate` finds it in a mask or a photo; the default one if it finds none."""
    found = box_of_mask(batch["target_alpha"][0, 0]) if hint == "mask" else None
    if hint == "canny":
        found = find_subject(pipe.model, to_pil(batch["target"])[0])
    return found or default_boxes("")[0]


def compare(pipe: BlipDiffusionPipeline, dataset: Path, out: Path, config: ScoresConfig, *, model: str) -> str:
    """Generate what is missing, score all conditions, write the table, and return it."""
    full, world = load_benchmark("mini", dataset)
    assert world is not None
    bench = full.part(config.subjects, config.prompts)
    steps, guidance = int(pipe.config.num_inference_steps), float(pipe.config.guidance_scale)
    generators = build_generators(pipe, world, steps=steps, guidance_scale=guidance)
    by_condition = {one.name: controlled(pipe, world, bench, one) for one in config.conditions}
    generators = replace(generators, by_condition={WITHOUT: generators.by_condition["zero-shot"], **by_condition})
    claim_output_dir(out, _settings(pipe, bench, model))
    runner = ConditionRunner(bench, generators, out, config.batch_size, print_progress)
    baselines = (*by_condition, "other-instance", "ground-truth", VAE_RECONSTRUCTION)
    conditions = runner.run(WITHOUT, build_instances(bench, 1), baselines=baselines)
    table = markdown(scores_of(bench, conditions, metrics_of(full, generators, config)), bench, config)
    write_text(out / "report.md", table + "\n")
    return table


def print_progress(line: str) -> None:
    """Print a line of progress to standard error."""
    print(line, file=sys.stderr, flush=True)


def _settings(pipe: BlipDiffusionPipeline, bench: Bench, model: str) -> dict[str, Any]:
    subjects, prompts = [subject.name for subject in bench.subjects], list(bench.prompt_ids)
    adapters = {hint: weights_digest(network) for hint, network in sorted(pipe.t2i_adapters.items())}
    digests = {"weights": weights_digest(pipe.model), "adapters": adapters, "benchmark_digest": bench.digest}
    return {"model": model, "dtype": str(pipe.dtype), **digests, "subjects": subjects, "prompts": prompts}


def metrics_of(full: Bench, generators: GeneratorSet, config: ScoresConfig) -> tuple[Metric, Metric]:
    """Return the metrics of subject and text; an image's prompt is found among all of the full benchmark."""
    builder = MetricBuilder(full, full, generators, config.probe_images)
    return builder.focus(), builder.text()


def scores_of(
    bench: Bench, conditions: Mapping[str, ConditionResult], metrics: tuple[Metric, Metric]
) -> dict[str, ControlScores]:
    """Score conditions: subject fidelity between its bounds, and the share of images whose prompt is found."""
    names = [subject.name for subject in bench.subjects]
    subject, text = (score(metric, conditions, names) for metric in metrics)
    bounds = {*subject.info.bounds, SHUFFLED_SUBJECTS, SHUFFLED_PROMPTS}
    scores = {}
    for name in conditions.keys() - bounds:
        controlled = name not in (WITHOUT, VAE_RECONSTRUCTION)
        scores[name] = ControlScores(
            fidelity(subject, name),
            text.conditions[name][ACCURACY],
            fidelity(subject, name, WITHOUT) if controlled else None,
            text_difference(text, name) if controlled else None,
        )
    return scores


def columns(result: MetricResult, key: str, *conditions: str) -> Tensor:
    """Return a score's means (K, N) of conditions and subjects; NaN without a value."""
    table = [[one if one is not None else float("nan") for one in result.subjects[name][key]] for name in conditions]
    return torch.tensor(table)


def fidelity(result: MetricResult, name: str, other: str | None = None) -> Estimate:
    """Return a condition's score, 0 at the lower bound and 1 at the upper one, or its difference from another's."""
    if other is None:
        return bootstrap_ci(columns(result, result.info.main, name, *result.info.bounds), normalized_between_bounds)
    values = columns(result, result.info.main, name, other, *result.info.bounds)
    return bootstrap_ci(values, lambda means: (means[0] - means[1]) / (means[3] - means[2]))


def text_difference(result: MetricResult, name: str) -> Estimate:
    """Return the difference of a condition's share of prompts that are found from that without control."""
    return bootstrap_ci(columns(result, ACCURACY, name, WITHOUT), lambda means: means[0] - means[1])


def markdown(scores: Mapping[str, ControlScores], bench: Bench, config: ScoresConfig) -> str:
    """Write the table."""
    size = f"{len(bench.subjects)} subjects of MiniBench in {len(bench.prompt_ids)} prompts"
    lines = [
        f"{size}; 95 % bootstrap intervals over subjects.",
        "",
        "| structure | subject | difference | text | difference |",
        "|---|---|---|---|---|",
    ]
    labels = {WITHOUT: "no control"} | {one.name: one.label for one in config.conditions}
    labels[VAE_RECONSTRUCTION] = "upper bound: the ground truth after the autoencoder"
    for name, label in labels.items():
        one = scores[name]
        cells = (one.subject, one.subject_difference, one.text, one.text_difference)
        lines.append(f"| {label} | {' | '.join(map(_cell, cells))} |")
    return "\n".join(lines)


def _cell(estimate: Estimate | None) -> str:
    return "" if estimate is None else f"{estimate.value:.2f} ({estimate.low:.2f} to {estimate.high:.2f})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Generate, score, and print the table."""
    parser = argparse.ArgumentParser(description="Compare scores of subject and text with and without control.")
    parser.add_argument("--dataset", required=True, type=Path, help="the assets; MiniBench is beside them")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--model", default="mini", help="a model folder (default: mini)")
    parser.add_argument("--hint", nargs="+", default=sorted(KINDS), choices=sorted(KINDS), help="default: all")
    known = list(STRUCTURES)
    parser.add_argument(
        "--structure", nargs="+", default=known, choices=known, help="whose ground truth (default: all)"
    )
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="precision of the model (default: float32)")
    parser.add_argument("--subjects", type=int, help="only this many subjects (default: all)")
    parser.add_argument("--prompts", type=int, help="only this many prompts (default: all)")
    parser.add_argument("--probe-images", type=int, default=24, help="per scene, for probes of text (default: 24)")
    flags = parser.parse_args(arguments)
    return print_result(lambda: _run(flags))


def _run(flags: Any) -> str:
    if flags.probe_images < 1:
        raise InputError("--probe-images must be at least 1.")
    hints, structures = (tuple(dict.fromkeys(values)) for values in (flags.hint, flags.structure))
    config = ScoresConfig(hints, structures, flags.subjects, flags.prompts, flags.probe_images)
    pipe = BlipDiffusionPipeline.from_pretrained(flags.model, torch_dtype=getattr(torch, flags.dtype))
    if missing := [hint for hint in config.hints if hint not in pipe.t2i_adapters]:
        raise InputError(f"{flags.model} has no adapter for {missing[0]}: name other control images with --hint.")
    return compare(pipe, flags.dataset, flags.out, config, model=flags.model)


if __name__ == "__main__":
    sys.exit(main())
