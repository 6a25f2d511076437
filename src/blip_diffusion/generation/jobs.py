"""The batches of a request."""

from typing import NamedTuple

from blip_diffusion.generation.request import GenerationRequest

BATCH_SIZE = 8
"""Images per batch: memory grows with it, and an interrupt loses the current batch."""


class Job(NamedTuple):
    """One batch of a request."""

    variant: int  # index in `request.variants()`
    batch: list[tuple[str, int]]  # prompt and seed of each image


def images_of(request: GenerationRequest) -> list[tuple[str, int]]:
    """Return the prompt and the seed of each image of a request."""
    return [(prompt, request.seed + copy) for prompt in request.prompts for copy in range(request.num_images)]


def batches_of(request: GenerationRequest) -> list[list[tuple[str, int]]]:
    """Return the images of a request in the batches that are generated together."""
    images = images_of(request)
    return [images[start : start + BATCH_SIZE] for start in range(0, len(images), BATCH_SIZE)]


def jobs_of(request: GenerationRequest) -> list[Job]:
    """Return the batches of all variants of a request."""
    return [Job(number, batch) for number in range(len(request.variants())) for batch in batches_of(request)]
