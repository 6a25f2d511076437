"""What answers a bench: a method is a function from cases to pictures, whoever draws them.

Of a model: `zero_shot`, `tuned`, `no_subject`. Of nobody, for floors and ceilings: the reference handed back, another
instance of the category, the ground truth. MiniBench's are composed as the training world is; other benches have
photographs alone, and their ground truth is the subject's other photographs, as in the "real images" of DreamBooth.
"""

import random
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from blip_diffusion import images
from blip_diffusion.checkpoint.subject_file import Subject
from blip_diffusion.data.benchmarks.dreambench import Bench, BenchSubject
from blip_diffusion.data.benchmarks.minibench import bench_composer, first_rows, order_of, same_category
from blip_diffusion.data.synthetic.assets import World
from blip_diffusion.evaluation.instances import Case
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline

Draw = Callable[[Sequence[Case]], list[Image.Image]]
"""A method: cases to RGB pictures, one each."""

RoundTrip = Callable[[torch.Tensor], torch.Tensor]
"""Pictures (B, 3, S, S) in [0, 1] through a generator's autoencoder and back."""


def zero_shot(pipe: BlipDiffusionPipeline, **settings: Any) -> Draw:
    """The model, shown each subject's first picture. `settings` are arguments of the pipeline's call."""

    def draw(cases: Sequence[Case]) -> list[Image.Image]:
        references = {case.subject.name: images.open_picture(case.subject.pictures[0]) for case in cases}
        return _asked(pipe, cases, reference_image=[references[case.subject.name] for case in cases], **settings)

    return draw


def tuned(pipe: BlipDiffusionPipeline, tune: Callable[[BenchSubject], Subject], **settings: Any) -> Draw:
    """The model with each subject as `tune` has it, resident while it is drawn: afterwards the model is as before."""

    def draw(cases: Sequence[Case]) -> list[Image.Image]:
        pictures = []
        for subject, some in groupby(cases, key=lambda case: case.subject):
            resident = pipe.load_subject(tune(subject))
            try:
                pictures += _asked(pipe, list(some), **settings)
            finally:
                pipe.unload_subject(resident.name)
        return pictures

    return draw


def no_subject(pipe: BlipDiffusionPipeline, **settings: Any) -> Draw:
    """The model, told the words alone: no subject tokens stand in the prompt."""
    none = torch.zeros(1, 0, int(pipe.unet.config.cross_attention_dim))
    return lambda cases: _asked(pipe, cases, subject_embeds=none, **settings)


def _asked(pipe: BlipDiffusionPipeline, cases: Sequence[Case], **settings: Any) -> list[Image.Image]:
    pictures: list[Image.Image] = pipe(
        [case.prompt.after for case in cases],
        source_subject_category=[case.subject.category for case in cases],
        target_subject_category=[f"{case.prompt.before} {case.subject.category}".strip() for case in cases],
        generator=[torch.Generator().manual_seed(case.seed) for case in cases],
        **settings,
    ).images
    return pictures


def composite(world: World, *, size: int, other: bool = False) -> Draw:
    """MiniBench's ground truth: the subject as its prompt wants it; or another of its category there, as its floor."""
    composer, rows = bench_composer(world, size), first_rows(world)

    def compose(case: Case) -> torch.Tensor:
        rng = random.Random(f"truth {case.subject.identity} {case.number} {case.copy}")
        own = rows[case.subject.identity]
        row = rng.choice(same_category(world, own)) if other else own
        assert case.prompt.request is not None
        return composer.compose([order_of(composer, row, case.prompt.request, rng)], rng)["target"]

    return lambda cases: images.to_pictures(torch.cat([compose(case) for case in cases]))


def reference(case: Case) -> Path:
    """The reference itself, handed back."""
    return case.subject.pictures[0]


def photograph(case: Case) -> Path:
    """Another picture of the subject than its reference, where there is one."""
    others = case.subject.pictures[1:] or case.subject.pictures
    return others[(case.number + case.copy) % len(others)]


def photograph_of_another(bench: Bench) -> Callable[[Case], Path]:
    """A picture of another subject of the same category. Subjects without one must not be asked for."""

    def find(case: Case) -> Path:
        pictures = [path for other in peers(bench, case.subject) for path in other.pictures]
        return random.Random(f"other {case.file}").choice(pictures)

    return find


def peers(bench: Bench, subject: BenchSubject) -> list[BenchSubject]:
    """The other subjects of its category."""
    return [other for other in bench.subjects if other.category == subject.category and other != subject]


def round_trip_of(model: BlipDiffusion) -> RoundTrip:
    """A model's autoencoder, wherever it is and in its own precision; pictures come back to the CPU in float32."""
    latents = model.latents

    @torch.no_grad()
    def round_trip(pixels: torch.Tensor) -> torch.Tensor:
        moved = pixels.to(latents.vae.device, latents.vae.dtype)
        return latents.decode(latents.encode(moved)).float().cpu()

    return round_trip


def decoded(draw: Draw, round_trip: RoundTrip) -> Draw:
    """A method's pictures through the generator's autoencoder: what no generator before this decoder can surpass."""
    return lambda cases: images.to_pictures(round_trip(images.to_tensor(draw(cases))))
