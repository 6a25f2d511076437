"""The model under evaluation as an image generator, and its autoencoder."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image

from blip_diffusion.evaluation.instances import Instance
from blip_diffusion.images import open_image, to_pil, to_tensor
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline

ImageGenerator = Callable[[Sequence[Instance]], list[Image.Image]]
"""Instances to RGB images, one each."""

ReconstructFn = Callable[[torch.Tensor], torch.Tensor]
"""Images (B, 3, S, S) in [0, 1], encoded and decoded by a generator's autoencoder."""


def zero_shot(pipe: BlipDiffusionPipeline, **settings: Any) -> ImageGenerator:
    """Generate from each subject's first image. `settings` are arguments of the pipeline's call."""

    def generate(instances: Sequence[Instance]) -> list[Image.Image]:
        subjects = {instance.subject.name: instance.subject for instance in instances}
        references = {name: open_image(subject.images[0]) for name, subject in subjects.items()}
        images = [references[instance.subject.name] for instance in instances]
        return run_pipeline(pipe, instances, reference_image=images, **settings)

    return generate


def no_subject(pipe: BlipDiffusionPipeline, **settings: Any) -> ImageGenerator:
    """Generate from the prompt alone, without subject tokens."""
    none = torch.zeros(1, 0, int(pipe.text_encoder.config.hidden_size))
    return lambda instances: run_pipeline(pipe, instances, subject_embeds=none, **settings)


def run_pipeline(pipe: BlipDiffusionPipeline, instances: Sequence[Instance], **settings: Any) -> list[Image.Image]:
    """Call the pipeline for instances, each with its seed."""
    generated: list[Image.Image] = pipe(
        [instance.prompt.after for instance in instances],
        source_subject_category=[instance.subject.category for instance in instances],
        target_subject_category=[f"{one.prompt.before} {one.subject.category}".strip() for one in instances],
        generator=[torch.Generator().manual_seed(instance.seed) for instance in instances],
        **settings,
    ).images
    return generated


def autoencoder_reconstruction(model: BlipDiffusion) -> ReconstructFn:
    """Return a function that encodes and decodes by a model's autoencoder; the result is float32 on the CPU."""
    latents = model.latents

    @torch.no_grad()
    def reconstruct(pixels: torch.Tensor) -> torch.Tensor:
        moved = pixels.to(latents.vae.device, latents.vae.dtype)
        return latents.decode(latents.encode(moved)).float().cpu()

    return reconstruct


def reconstructed(generator: ImageGenerator, reconstruct: ReconstructFn) -> ImageGenerator:
    """Pass a generator's images through an autoencoder: the best that any generator with this decoder can reach."""
    return lambda instances: to_pil(reconstruct(to_tensor(generator(instances))))
