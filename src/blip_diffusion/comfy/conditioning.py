"""Subjects as conditioning for ComfyUI's own samplers: what this pipeline's U-Net would read of the same inputs."""

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
        model: A model with the layout of Stable Diffusion 1.5, as the published one has it.
        subject: References, or tuned subjects that leave the U-Net as it is.
        prompt: The scene.
        target_category: What to generate the subject as; empty: what it is.
        negative_prompt: What should not appear.

    Raises:
        InputError: If other samplers could not use the states alone: `mini` gives each token a place, and a tuned
            subject may bring U-Net weights.
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
    """Raise `InputError` for active subjects that change the U-Net, which another sampler has its own copy of."""
    for name in pipe.active_subjects:
        if changes_unet(pipe.adapters.registry.get(name)):
            raise InputError(f"{name!r} was tuned with weights of the U-Net, which KSampler has not: use Generate.")
