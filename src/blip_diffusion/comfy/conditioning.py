"""Text states with subjects as conditioning for ComfyUI's samplers, equal to those of this package's pipeline."""

from typing import Any

from torch import Tensor

from blip_diffusion.comfy.generation import request_of
from blip_diffusion.comfy.loaded_model import LoadedModel
from blip_diffusion.comfy.subjects import SubjectInput
from blip_diffusion.errors import InputError
from blip_diffusion.generation.run import prepared
from blip_diffusion.pipelines.subject_registry import changes_unet

SD_CHANNELS = 4
"""Latent channels of Stable Diffusion 1.5."""


def text_states(
    model: LoadedModel,
    subject: SubjectInput,
    prompt: str,
    *,
    target_category: str = "",
    negative_prompt: str = "",
) -> tuple[Tensor, Tensor]:
    """Return text states (1, L, D) of a prompt with a subject in it, and of a negative prompt, in float32 on the CPU.

    Args:
        model: A model with the U-Net of Stable Diffusion 1.5, such as the published one.
        subject: References, or tuned subjects without U-Net weights.
        prompt: The scene.
        target_category: What to generate the subject as; empty for its own category.
        negative_prompt: What should not appear.

    Raises:
        InputError: If the states are not enough for another sampler: `mini` gives each token a position, and a tuned
            subject may have U-Net weights.
    """
    request = request_of(model, subject, prompt, target_category=target_category, negative_prompt=negative_prompt)
    pipe = model.pipe(request.dtype)
    if pipe.model.place_width or pipe.vae.config.latent_channels != SD_CHANNELS:
        raise InputError(
            "KSampler can't sample with this model, whose U-Net isn't Stable Diffusion 1.5's: use the node Generate."
        )
    with prepared(pipe, request) as ready:
        _check_unet(pipe)
        arguments = {name: value for name, value in ready.arguments.items() if name != "box"}
        states, negative = pipe.encode_prompt(prompt, negative_prompt=negative_prompt, **arguments)
    return states.float().cpu(), negative.float().cpu()


def _check_unet(pipe: Any) -> None:
    """Raise `InputError` for active subjects with U-Net weights, which other samplers don't apply."""
    for name in pipe.active_subjects:
        if changes_unet(pipe.adapters.registry.get(name)):
            raise InputError(f"{name!r} has tuned weights of the U-Net, which KSampler doesn't apply: use Generate.")
