"""Measure the subjects that a prior invents: is their category named, do they differ, and are they new?

    python -m studies.subject_prior.measure --model runs/prior/export --dataset FILE --out DIR

A prior generates subject tokens from a category alone (Ramesh et al. 2022, section 2.2). Three figures:

* Category named: the share of images whose category a linear probe names. The probe is fitted to composites of training
  subjects; its bounds are the true images of held-out subjects, after the autoencoder, and chance.
* Diversity: the mean distance between the images of different seeds, and between their tokens, relative to that between
  different training subjects of the category.
* Nearest training subject: the distance of tokens to those of the nearest training subject of the category, for
  invented subjects and for held-out ones. A prior that only recalls is nearer.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from blip_diffusion.data.synthetic.assets import AssetLibrary
from blip_diffusion.errors import InputError
from blip_diffusion.evaluation.features.dinov2_saliency import DinoV2Saliency
from blip_diffusion.evaluation.features.extractor import CachedFeatures, FeatureExtractor
from blip_diffusion.evaluation.features.linear_probe import LinearClassifier, fit_classifier
from blip_diffusion.evaluation.generators.model import autoencoder_reconstruction
from blip_diffusion.evaluation.metrics.statistics import Estimate, bootstrap_ci, centred_cosine
from blip_diffusion.fileio import atomic_file, write_text
from blip_diffusion.generation.invent import PREVIEW, SubjectInventor, load_inventor
from blip_diffusion.images import column_page, to_pil
from blip_diffusion.sampling import sample_images, sample_subject_tokens
from blip_diffusion.training.recipe.cuda_graph import autocast
from studies import print_result
from studies.subject_prior.subjects import RealSubjects, chosen_categories, real_subjects

CHUNK = 8
INVENTED, PROMPT_ALONE, TRAINING, HELD_OUT = "invented", "prompt alone", "training subjects", "held-out subjects"
TRUE = "true images of held-out subjects, after the autoencoder"


@dataclass(frozen=True)
class PriorStudyConfig:
    """How much is measured."""

    categories: int = 12
    seeds: int = 4
    probe_images: int = 12  # training subjects of a category to which the probe is fitted
    steps: int = 50  # of the prior
    guidance: float = 2.0  # of the prior

    def __post_init__(self) -> None:
        for name, least in (("categories", 2), ("seeds", 2), ("probe_images", 1), ("steps", 1)):
            if getattr(self, name) < least:
                raise InputError(f"--{name.replace('_', '-')} must be at least {least}.")


@dataclass(frozen=True)
class ImageSet:
    """Images of a condition with their categories, and the tokens they were generated from."""

    categories: list[str]
    images: Tensor  # (N, 3, S, S)
    tokens: Tensor | None = None  # (N, Q, D), standardised

    def rows(self, category: str) -> list[int]:
        """Return the rows of a category."""
        return [row for row, name in enumerate(self.categories) if name == category]


@dataclass
class PriorFigures:
    """The three figures, by condition."""

    named: dict[str, Estimate]
    image_diversity: dict[str, Estimate]
    token_diversity: dict[str, Estimate]
    nearest: dict[str, Estimate] = field(default_factory=dict)
    nearest_ratio: Estimate | None = None


def generated(
    inventor: SubjectInventor, categories: Sequence[str], tokens: Tensor | None, seeds: Sequence[int]
) -> ImageSet:
    """Generate images on a white background, with subject tokens (N, Q, D) or from the prompt alone."""
    model, images = inventor.model, []
    for start in range(0, len(categories), CHUNK):
        part = slice(start, start + CHUNK)
        prompts = [PREVIEW.format(category) for category in categories[part]]
        with autocast(inventor.prior.device):
            states = model.text_states(prompts, None if tokens is None else tokens[part])
            images.append(sample_images(model, states, seeds[part]))
    standardized = None if tokens is None else inventor.prior.standardized(tokens)
    return ImageSet(list(categories), torch.cat(images), standardized)


def invented_tokens(inventor: SubjectInventor, categories: Sequence[str], config: PriorStudyConfig) -> Tensor:
    """Return tokens (N, Q, D) of invented subjects; the seed of a subject is its index."""
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(categories))]
    return sample_subject_tokens(
        inventor.model, inventor.prior, categories, generators, steps=config.steps, guidance=config.guidance
    )


@torch.no_grad()
def image_sets(
    inventor: SubjectInventor,
    training: RealSubjects,
    held_out: RealSubjects,
    categories: Sequence[str],
    config: PriorStudyConfig,
) -> dict[str, ImageSet]:
    """Generate the images of all conditions, and return the true images of held-out subjects with them."""
    repeated = [category for category in categories for _ in range(config.seeds)]
    seeds = list(range(len(repeated)))
    shown = [row for category in categories for row in training.rows(category)[: config.seeds]]
    reconstruct = autoencoder_reconstruction(inventor.model)
    return {
        INVENTED: generated(inventor, repeated, invented_tokens(inventor, repeated, config), seeds),
        PROMPT_ALONE: generated(inventor, repeated, None, seeds),
        TRAINING: generated(inventor, repeated, training.tokens[shown], seeds),
        HELD_OUT: generated(inventor, held_out.categories, held_out.tokens, range(len(held_out.categories))),
        TRUE: ImageSet(held_out.categories, reconstruct(held_out.images)),
    }


class CategoryProbe:
    """A network that was not trained here, with a probe of the category: names categories, and compares images."""

    def __init__(self, extractor: FeatureExtractor, width: int | None, images: Tensor, labels: Sequence[str]) -> None:
        """Fit the probe to images (N, 3, S, S); `width` is the number of leading features of the subject."""
        self._features, self._width = CachedFeatures(extractor), width
        fitted = self._of(images)
        self._centre = fitted.mean(dim=0)
        self._classify: LinearClassifier = fit_classifier(fitted, labels)

    def correct(self, images: ImageSet) -> Tensor:
        """Return 1 (N,) where an image's category is named, and 0 elsewhere."""
        named = self._classify(self._of(images.images))
        return torch.tensor([float(a == b) for a, b in zip(named, images.categories, strict=True)])

    def distances(self, images: Tensor) -> Tensor:
        """Return 1 - the centred cosine (N, N) between images (N, 3, S, S)."""
        features = self._of(images)
        return 1 - centred_cosine(features, features, self._centre, self._centre)

    def _of(self, images: Tensor) -> Tensor:
        return self._features.of_images(to_pil(images))[:, : self._width]


def token_distances(a: Tensor, b: Tensor) -> Tensor:
    """Return root mean squared differences (A, B) between standardised tokens (A, Q, D) and (B, Q, D)."""
    first, second = a.flatten(1), b.flatten(1)
    return torch.cdist(first, second) / first.shape[1] ** 0.5


def by_category(sets: ImageSet, categories: Sequence[str], statistic: Callable[[list[int]], Tensor]) -> Tensor:
    """Return a statistic of the rows of each category (C,)."""
    return torch.stack([statistic(sets.rows(category)).float() for category in categories])


def pairwise_mean(distances: Tensor) -> Tensor:
    """Return the mean of distances (N, N) without the diagonal."""
    return (distances.sum() - distances.trace()) / (len(distances) * (len(distances) - 1))


def diversity(
    sets: Mapping[str, ImageSet], categories: Sequence[str], distances: Callable[[ImageSet, list[int]], Tensor]
) -> dict[str, Estimate]:
    """Return mean distances within categories, relative to those between training subjects, with their intervals."""
    means = {
        name: by_category(one, categories, lambda rows, one=one: pairwise_mean(distances(one, rows)))  # type: ignore[misc]
        for name, one in sets.items()
    }
    return {
        name: bootstrap_ci(torch.stack([column, means[TRAINING]]), lambda both: both[0] / both[1])
        for name, column in means.items()
        if name != TRAINING
    }


def figures(
    sets: Mapping[str, ImageSet],
    probe: CategoryProbe,
    training: Tensor,
    labels: Sequence[str],
    categories: Sequence[str],
) -> PriorFigures:
    """Compute the three figures, with 95 % bootstrap intervals over categories.

    Args:
        sets: The images of all conditions.
        probe: Names categories and compares images.
        training: Standardised tokens (N, Q, D) of training subjects.
        labels: Their N categories.
        categories: The categories that are measured.

    Returns:
        The figures.
    """
    named = {}
    for name, one in sets.items():
        correct = probe.correct(one)
        named[name] = bootstrap_ci(by_category(one, categories, lambda rows, c=correct: c[rows].mean())[None])  # type: ignore[misc]
    seeded = {name: sets[name] for name in (INVENTED, PROMPT_ALONE, TRAINING)}
    with_tokens = {name: sets[name] for name in (INVENTED, TRAINING)}
    result = PriorFigures(
        named,
        diversity(seeded, categories, lambda one, rows: probe.distances(one.images[rows])),
        diversity(with_tokens, categories, lambda one, rows: token_distances(one.tokens[rows], one.tokens[rows])),  # type: ignore[index]
    )
    bank = ImageSet(list(labels), torch.empty(0), training)
    columns = {name: nearest(sets[name], bank, categories) for name in (INVENTED, HELD_OUT)}
    result.nearest = {name: bootstrap_ci(column[None]) for name, column in columns.items()}
    both = torch.stack([columns[INVENTED], columns[HELD_OUT]])
    result.nearest_ratio = bootstrap_ci(both, lambda means: means[0] / means[1])
    return result


def nearest(sets: ImageSet, bank: ImageSet, categories: Sequence[str]) -> Tensor:
    """Return the mean distance (C,) to the nearest training subject of the category."""
    tokens, real = sets.tokens, bank.tokens
    assert tokens is not None and real is not None
    rows = {category: bank.rows(category) for category in categories}
    means = [
        token_distances(tokens[sets.rows(category)], real[rows[category]]).amin(dim=1).mean() for category in categories
    ]
    return torch.stack(means)


def measure(
    inventor: SubjectInventor,
    world: AssetLibrary,
    out: Path,
    config: PriorStudyConfig,
    extractor: FeatureExtractor,
    width: int | None = None,
) -> str:
    """Invent subjects, measure them, write the table and a contact sheet, and return the table."""
    categories = chosen_categories(world, config.categories, shown=config.seeds)
    training = real_subjects(inventor.model, world, categories, split="train")
    held_out = real_subjects(inventor.model, world, categories, split="heldout")
    sets = image_sets(inventor, training, held_out, categories, config)
    fitted = [
        row
        for category in categories
        for row in training.rows(category)[config.seeds : config.seeds + config.probe_images]
    ]
    reconstructed = autoencoder_reconstruction(inventor.model)(training.images[fitted])
    probe = CategoryProbe(extractor, width, reconstructed, [training.categories[row] for row in fitted])
    standardized = inventor.prior.standardized(training.tokens)
    result = figures(sets, probe, standardized, training.categories, categories)
    table = markdown(result, len(categories), len(held_out.categories), config)
    write_text(out / "report.md", table + "\n")
    page = contact_sheet(sets, training, standardized, categories, config.seeds)
    with atomic_file(out / "sheet.png") as partial:
        page.save(partial, "PNG")
    return table


def contact_sheet(
    sets: Mapping[str, ImageSet], training: RealSubjects, tokens: Tensor, categories: Sequence[str], seeds: int
) -> Image.Image:
    """Return a row for each category: invented subjects, the training subject nearest to the first, the prompt alone.

    The last column is a true held-out subject, after the autoencoder.
    """
    invented, true = sets[INVENTED], sets[TRUE]
    assert invented.tokens is not None
    found = []
    for category in categories:
        rows = training.rows(category)
        distances = token_distances(invented.tokens[invented.rows(category)[:1]], tokens[rows])
        found.append(rows[int(distances.argmin())])
    columns = [invented.images[seed::seeds] for seed in range(seeds)]
    columns += [training.references[found], sets[PROMPT_ALONE].images[::seeds]]
    return column_page([*columns, true.images[[true.rows(category)[0] for category in categories]]])


def markdown(result: PriorFigures, categories: int, held_out: int, config: PriorStudyConfig) -> str:
    """Write the table."""
    size = (
        f"{categories} categories, {config.seeds} seeds each; {held_out} held-out subjects; 95 % bootstrap intervals "
        f"over categories. By chance, {1 / categories:.2f} of the categories are named."
    )
    lines = [
        size,
        "",
        "| images | category named | diversity, images | diversity, tokens | to the nearest training subject |",
        "|---|---|---|---|---|",
    ]
    for name, named in result.named.items():
        is_unit = name == TRAINING
        cells = [str(named)]
        cells += [
            "1" if is_unit else _cell(part.get(name)) for part in (result.image_diversity, result.token_diversity)
        ]
        lines.append(f"| {name} | {' | '.join(cells)} | {_cell(result.nearest.get(name))} |")
    ratio = f"Nearest training subject, invented relative to held-out: {result.nearest_ratio}."
    return "\n".join([*lines, "", ratio])


def _cell(estimate: Estimate | None) -> str:
    return "" if estimate is None else str(estimate)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description="Measure the subjects that a prior invents.")
    parser.add_argument("--model", required=True, help="a folder with a prior of subjects")
    parser.add_argument("--dataset", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--categories", type=int, default=12, help="the largest ones (default: 12)")
    parser.add_argument("--seeds", type=int, default=4, help="invented subjects of a category (default: 4)")
    parser.add_argument("--probe-images", type=int, default=12, help="of a category, to fit the probe (default: 12)")
    parser.add_argument("--steps", type=int, default=50, help="DDIM steps of the prior (default: 50)")
    parser.add_argument("--guidance-scale", type=float, default=2.0, help="of the prior (default: 2)")
    flags = parser.parse_args(arguments)
    return print_result(lambda: _run(flags))


def _run(flags: Any) -> str:
    config = PriorStudyConfig(flags.categories, flags.seeds, flags.probe_images, flags.steps, flags.guidance_scale)
    inventor, world = load_inventor(flags.model), AssetLibrary.load(flags.dataset)
    return measure(inventor, world, flags.out, config, DinoV2Saliency(), DinoV2Saliency.width)


if __name__ == "__main__":
    sys.exit(main())
