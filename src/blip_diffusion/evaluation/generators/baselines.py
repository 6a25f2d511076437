"""Images that no model generates, as lower and upper bounds of scores.

They are the reference itself, another instance of the category, and the ground truth. MiniBench's are composed as its
training images are. Other benchmarks have photos only: their ground truth is the subject's other photos, as in the
"real images" of DreamBooth (Ruiz et al. 2023).
"""

import random
from collections.abc import Callable
from pathlib import Path

import torch

from blip_diffusion.data.batches import SubjectBatch
from blip_diffusion.data.benchmarks.dreambench import Bench, BenchSubject
from blip_diffusion.data.benchmarks.minibench import bench_sampler, first_rows, pair_spec_of, same_category
from blip_diffusion.data.synthetic.assets import AssetLibrary
from blip_diffusion.evaluation.generators.model import ImageGenerator
from blip_diffusion.evaluation.instances import Instance
from blip_diffusion.images import to_pil


def composite(world: AssetLibrary, *, size: int, other: bool = False) -> ImageGenerator:
    """Compose MiniBench's ground truth; or, with `other`, another subject of the same category in its place."""
    compose = composer(world, size=size, other=other)
    return lambda instances: to_pil(torch.cat([compose(instance)["target"] for instance in instances]))


def composer(world: AssetLibrary, *, size: int, other: bool = False) -> Callable[[Instance], SubjectBatch]:
    """Return a function that composes the ground truth of one instance, with its mask, as a batch of one."""
    sampler, first = bench_sampler(world, size), first_rows(world)

    def compose(instance: Instance) -> SubjectBatch:
        rng = random.Random(f"truth {instance.subject.identity} {instance.prompt_index} {instance.sample_index}")
        row = first[instance.subject.identity]
        row = rng.choice(same_category(world, row)) if other else row
        assert instance.prompt.request is not None
        return sampler.render([pair_spec_of(sampler, row, instance.prompt.request, rng)], rng)

    return compose


def reference_copy(instance: Instance) -> Path:
    """Return the reference image itself."""
    return instance.subject.images[0]


def other_photo(instance: Instance) -> Path:
    """Return a photo of the subject other than its reference, if there is one."""
    others = instance.subject.images[1:] or instance.subject.images
    return others[(instance.prompt_index + instance.sample_index) % len(others)]


def photo_of_other_subject(bench: Bench) -> Callable[[Instance], Path]:
    """Return a function that picks a photo of another subject of the category. Each subject must have one."""

    def find(instance: Instance) -> Path:
        paths = [path for other in same_category_subjects(bench, instance.subject) for path in other.images]
        return random.Random(f"other {instance.file}").choice(paths)

    return find


def has_peer(source: AssetLibrary | Bench, subject: BenchSubject) -> bool:
    """Return whether assets, or a benchmark of photos, have another subject of a subject's category."""
    if isinstance(source, Bench):
        return bool(same_category_subjects(source, subject))
    return any(one.category == subject.category and one.identity != subject.identity for one in source.cutouts)


def same_category_subjects(bench: Bench, subject: BenchSubject) -> list[BenchSubject]:
    """List the other subjects of a subject's category."""
    return [other for other in bench.subjects if other.category == subject.category and other != subject]
