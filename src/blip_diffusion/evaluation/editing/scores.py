"""Scores of edited images: of pixels, learned distances from the photo, and fidelity to subject and text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from blip_diffusion.data.benchmarks.dreambench import Bench
from blip_diffusion.errors import InputError
from blip_diffusion.evaluation.editing.distances import Distance, background_distance, dino_structure, structure
from blip_diffusion.evaluation.editing.tasks import EditTask
from blip_diffusion.evaluation.features.clip import CLIP_IDS, Clip
from blip_diffusion.evaluation.generators.conditions import GeneratorSet
from blip_diffusion.evaluation.metrics.edit_fidelity import masked_psnr, masked_ssim, unchanged_share
from blip_diffusion.evaluation.metrics.registry import MetricBuilder, build_metrics
from blip_diffusion.evaluation.metrics.similarity import ACCURACY, SIMILARITY
from blip_diffusion.images import open_image, to_pil, to_tensor
from blip_diffusion.training.initialization import perceptual_distance

BENCH_METRICS: dict[str, dict[str, str]] = {
    "focus": {"focus": SIMILARITY},
    "text": {"text": SIMILARITY, "prompt": ACCURACY, "scene": "scene"},
}
"""Metrics of MiniBench's subjects and prompts: columns of the report, each with the metric's score."""
DISTANCES = ("structure", "dino", "lpips", "perceptual")
"""Learned distances of the edited image from the photo; the last is like LPIPS, without its fitted weights."""
CLIPS = tuple(f"clip-{kind}" for kind in CLIP_IDS)
"""CLIP scores of the edited image, by CLIP's size."""
METRICS = (*BENCH_METRICS, *DISTANCES, *CLIPS)

Score = Callable[[Sequence[EditTask], Sequence[Path]], dict[str, Tensor]]
"""Tasks and the files of their edited images to columns of the report, each (N,)."""


def check_metrics(names: Sequence[str], lpips: Path | None, *, minibench: bool) -> None:
    """Raise `InputError` for metrics that are unknown, lack their weights, or don't fit the benchmark."""
    plain = [name.partition("=")[0] for name in names]
    for name, full in zip(plain, names, strict=True):
        if name not in METRICS:
            raise InputError(f"There is no metric {name} for edits: use some of {', '.join(METRICS)}.")
        if name != full and name not in ("dino", *CLIPS):
            raise InputError(f"The metric {name} takes no model: remove the part from = on.")
        if name in BENCH_METRICS and not minibench:
            raise InputError(f"The metric {name} supports only MiniBench's subjects and prompts: leave it out.")
    if ("lpips" in plain) != (lpips is not None):
        raise InputError("The metric lpips and --lpips FOLDER, with its weights, go together: give both.")


@dataclass(frozen=True)
class BenchScores:
    """What the metrics of MiniBench need: the benchmark, and the generators of their probe images."""

    bench: Bench
    generators: GeneratorSet


def build_scores(names: Sequence[str], lpips: Path | None, minibench: BenchScores | None) -> list[Score]:
    """Load the networks of metrics, and return them as functions; scores of pixels come first."""
    scores: list[Score] = [pixel_scores]
    if (known := [name for name in names if name in BENCH_METRICS]) and minibench is not None:
        suite = build_metrics(known, MetricBuilder(minibench.bench, minibench.bench, minibench.generators))
        scores += [partial(_bench_scores, metric) for metric in suite.metrics]
    for name, _, source in (full.partition("=") for full in names):
        if name in DISTANCES:
            scores.append(partial(_distances, name, _distance(name, source, lpips)))
        elif name in CLIPS:
            scores.append(partial(clip_scores, Clip(source or CLIP_IDS[name.removeprefix("clip-")])))
    return scores


def pixel_scores(tasks: Sequence[EditTask], paths: Sequence[Path]) -> dict[str, Tensor]:
    """Return scores of pixels: of the background against the photo, and against the target image if it is known."""
    rows = [_pixel_scores(task, open_image(path)) for task, path in zip(tasks, paths, strict=True)]
    return {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}


def _pixel_scores(task: EditTask, edited: Image.Image) -> dict[str, float]:
    image, photo, background = to_tensor([edited]), task.photo[None], task.background[None]
    everywhere = torch.ones_like(background)
    scores = {
        "background_psnr": masked_psnr(image, photo, background),
        "background_ssim": masked_ssim(image, photo, background),
        "unchanged": unchanged_share(image, photo, background),
    }
    if task.truth is None or task.subject is None:
        scores["published_psnr"] = masked_psnr(image * background, photo * background, everywhere)
    else:
        scores["subject_psnr"] = masked_psnr(image, task.truth[None], task.subject[None])
        scores["whole_psnr"] = masked_psnr(image, task.truth[None], everywhere)
    return {name: float(value) for name, value in scores.items()}


def clip_scores(clip: Clip, tasks: Sequence[EditTask], paths: Sequence[Path]) -> dict[str, Tensor]:
    """Return 100 times the cosine to the edit's prompt, at least 0, of the image and of its edited region.

    Outside of the region, the image is black for the second score, as in PIE-Bench.
    """
    texts = F.normalize(clip.encode_text([task.text for task in tasks]), dim=1)
    whole = [open_image(path) for path in paths]
    inside = [to_pil(to_tensor([image]) * (1 - task.background))[0] for task, image in zip(tasks, whole, strict=True)]
    columns = {"clip": whole, "clip_inside": inside}
    return {name: _clip_score(clip, images, texts) for name, images in columns.items()}


def _clip_score(clip: Clip, images: Sequence[Image.Image], texts: Tensor) -> Tensor:
    features = torch.cat([clip([image]) for image in images])
    return 100 * (F.normalize(features, dim=1) * texts).sum(1).clamp(min=0)


def _bench_scores(metric: Any, tasks: Sequence[EditTask], paths: Sequence[Path]) -> dict[str, Tensor]:
    scores = metric(paths, [task.instance for task in tasks])
    return {column: scores[name] for column, name in BENCH_METRICS[metric.info.name].items()}


def _distance(name: str, source: str, lpips: Path | None) -> Distance:
    if name == "structure":
        return structure()
    if name == "dino":
        return dino_structure(source)
    return background_distance(perceptual_distance(lpips if name == "lpips" else None))


def _distances(name: str, distance: Distance, tasks: Sequence[EditTask], paths: Sequence[Path]) -> dict[str, Tensor]:
    values = [
        distance(to_tensor([open_image(path)]), task.photo[None], task.background[None])
        for task, path in zip(tasks, paths, strict=True)
    ]
    return {name: torch.cat(values)}
