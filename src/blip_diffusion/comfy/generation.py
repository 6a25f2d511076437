"""Run a node's generation request in batches, with progress and previews for ComfyUI."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from blip_diffusion.checkpoint.adapter_refs import LoraRef
from blip_diffusion.comfy.loaded_model import LoadedModel
from blip_diffusion.comfy.subjects import GeneratedImages, SubjectInput
from blip_diffusion.errors import BlipDiffusionError, InputError
from blip_diffusion.generation.jobs import batches_of
from blip_diffusion.generation.previews import preview_image, preview_steps
from blip_diffusion.generation.request import ControlInput, GenerationRequest
from blip_diffusion.generation.run import prepared

NO_PRESET = "none"
Report = Callable[[int, int, Image.Image | None], None]
"""Called with the current step, the number of steps, and a preview or `None`; an exception ends the generation."""
FLAG = re.compile(r"--([a-z]+(?:-[a-z]+)*)")


def request_of(
    model: LoadedModel,
    subject: SubjectInput | None,
    prompt: str,
    *,
    target_category: str = "",
    preset: str = NO_PRESET,
    controls: Sequence[ControlInput] = (),
    loras: Sequence[LoraRef] = (),
    **numbers: Any,
) -> GenerationRequest:
    """Return the generation request of a node's inputs, equal to the command line's for the same values.

    Args:
        model: The model.
        subject: The subject; `None` for a `target_category` that a LoRA was trained on.
        prompt: The scene.
        target_category: What to generate the subject as; empty for its own category.
        preset: "exact", "fast", "turbo" or "none".
        controls: Control maps.
        loras: LoRAs with their weights.
        **numbers: Fields of `GenerationRequest`: `seed`, `num_images`, `negative_prompt`; and `steps`,
            `guidance_scale`, `width`, `height`, where 0 stands for the model's default.

    Raises:
        InputError: If a value is empty or out of range.
    """
    category = subject.category if subject is not None else target_category
    if subject is None and not (loras and category.strip()):
        raise InputError("There is no subject: connect one, or a LoRA with its word as target_category.")
    references = subject.references if subject is not None else ()
    tuned = subject.tuned if subject is not None else ()
    chosen = "" if preset == NO_PRESET else preset
    optional: dict[str, Any] = {
        name: numbers.pop(name, 0) or None for name in ("steps", "guidance_scale", "width", "height")
    }
    return GenerationRequest(
        prompts=(prompt,),
        reference=tuned[0].thumbnail if tuned else next(iter(references), b""),
        more_references=tuple(references[1:]),
        category=category,
        target_category=target_category.strip() or category,
        model=model.name,
        subjects=tuned,
        loras=tuple(loras),
        controls=tuple(controls),
        resize_mode=subject.resize_mode if subject is not None else None,
        preset=chosen,
        engine=model.engine,
        dtype=model.dtype_of(chosen),
        **optional,
        **numbers,
    )


def generate(
    model: LoadedModel, request: GenerationRequest, report: Report, *, previews: int = 0
) -> tuple[list[Image.Image], GeneratedImages]:
    """Generate the images of a request.

    Args:
        model: The model; LoRAs and subjects are removed from it afterwards.
        request: The request.
        report: Called after each sampling step.
        previews: Number of previews of each batch, evenly spaced; each decodes the latents once.

    Returns:
        The images, and the request with the prompt and seed of each.

    Raises:
        InputError: If the request does not fit the model.
        CheckpointError: If a file that it names is missing, damaged, or for another model.
    """
    batches = batches_of(request)
    pipe = model.pipe(request.dtype)
    results: list[Image.Image] = []
    with prepared(pipe, request) as ready:
        for index, batch in enumerate(batches):
            on_step = partial(_on_step, report, previews, index, len(batches))
            results += ready.generate(batch, on_step)
    return results, GeneratedImages(request, tuple(image for batch in batches for image in batch))


def _on_step(
    report: Report,
    previews: int,
    batch: int,
    batches: int,
    pipe: Any,
    index: int,
    _timestep: Tensor,
    tensors: dict[str, Tensor],
) -> dict[str, Tensor]:
    steps = len(pipe.scheduler.timesteps)
    is_preview_step = index + 1 in preview_steps(steps, previews)
    preview = preview_image(pipe, tensors["latents"]) if is_preview_step else None
    report(batch * steps + index + 1, batches * steps, preview)
    return {}


@contextmanager
def node_rules() -> Iterator[None]:
    """Context manager for the code of a node.

    It disables inference mode, in which ComfyUI calls nodes, since weights loaded in it couldn't be changed later.
    Error messages name inputs of nodes in place of flags.
    """
    try:
        with torch.inference_mode(False), torch.no_grad():
            yield
    except BlipDiffusionError as error:
        raise type(error)(error_message(error)) from error


def error_message(error: Exception) -> str:
    """Return an error's message, with the names of inputs in place of flags."""
    return FLAG.sub(lambda flag: flag[1].replace("-", "_"), str(error))
