"""The prepare step: normalise and check the arguments of a call, and return one frozen object."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from blip_diffusion.diffusion.controlnet import Control
from blip_diffusion.diffusion.sampler import initial_noise
from blip_diffusion.errors import InputError
from blip_diffusion.framing import Box, check_box
from blip_diffusion.images import ResizeMode
from blip_diffusion.pipelines.broadcast import OneOrMany, as_list, as_str_list, broadcast, common_length
from blip_diffusion.pipelines.control import ControlRequest, Images, Numbers, Resample, control_request
from blip_diffusion.pipelines.host import PipelineHost
from blip_diffusion.pipelines.subject_registry import check_tokens
from blip_diffusion.prompts import subject_prompt

MAX_SIDE = 2048
MAX_STEPS = 1000
"""For a scheduler that names no limit."""
Boxes = Sequence[float] | Sequence[Sequence[float]]
"""A box (left, top, right, bottom), or one for each prompt."""
OUTPUT_TYPES = ("pil", "np", "pt", "latent")


@dataclass(frozen=True)
class CallArguments:
    """The arguments of `BlipDiffusionPipeline.__call__` that describe the images; see there."""

    prompt: OneOrMany[str]
    reference_image: OneOrMany[Image.Image] | None
    source_subject_category: OneOrMany[str]
    target_subject_category: OneOrMany[str]
    negative_prompt: OneOrMany[str] | None
    height: int | None
    width: int | None
    num_inference_steps: int | None
    guidance_scale: float | None
    guidance_rescale: float | None
    noise_scale: float | None
    num_images_per_prompt: int
    eta: float | None
    generator: OneOrMany[torch.Generator] | None
    latents: Tensor | None
    prompt_strength: float
    prompt_reps: int | None
    resize_mode: ResizeMode | None
    box: "Boxes | None"
    subject_embeds: Tensor | None
    output_type: str
    image: Images | list[Images] | None
    controlnet: Any
    controlnet_conditioning_scale: Numbers
    control_guidance_start: Numbers
    control_guidance_end: Numbers
    guess_mode: bool
    control_resample: Resample
    neg_prompt: OneOrMany[str] | None
    condtioning_image: Images | list[Images] | None

    @classmethod
    def select(cls, arguments: Mapping[str, Any]) -> "CallArguments":
        """Return those of a call's local variables that are fields."""
        return cls(**{field.name: arguments[field.name] for field in fields(cls)})


@dataclass(frozen=True)
class PipelineInputs:
    """Checked inputs of N prompts, each with `num_images_per_prompt` images: a batch of B images.

    Args:
        sentences: N prompts with their categories, once each.
        prompts: N sentences, repeated as often as `prompt_strength` and `prompt_reps` ask for.
        negative_prompts: N.
        references: N reference images; empty if there are `subject_embeds`.
        categories: N categories of the references.
        subject_embeds: Subject tokens (1 or N, Q, D).
        resize_mode: How references become square; `None`: as the model's are.
        boxes: N boxes of the subjects; `None`: where the words of the prompts put them.
        num_images_per_prompt: Images of each prompt.
        hides_subjects: Whether loaded subjects are inactive, because there is a reference.
        guided: Whether classifier-free guidance runs.
        controls: ControlNets with their maps (B, 3, H, W).
        guess_mode: Whether ControlNets run without the prompt.
        generators: B.
        latents: Initial noise (B, C, H / 8, W / 8).
        steps: Sampling steps.
        guidance_scale: Weight of guidance.
        guidance_rescale: Share of the rescaling after guidance.
        eta: Noise that DDIM adds at each step.
        output_type: One of OUTPUT_TYPES.
    """

    sentences: list[str]
    prompts: list[str]
    negative_prompts: list[str]
    references: list[Image.Image]
    categories: list[str]
    subject_embeds: Tensor | None
    resize_mode: ResizeMode | None
    boxes: list[Box] | None
    num_images_per_prompt: int
    hides_subjects: bool
    guided: bool
    controls: list[Control]
    guess_mode: bool
    generators: list[torch.Generator]
    latents: Tensor
    steps: int
    guidance_scale: float
    guidance_rescale: float
    eta: float | None
    output_type: str


def prepare_inputs(host: PipelineHost, given: CallArguments) -> PipelineInputs:
    """Normalise the arguments of a call.

    Args:
        host: The pipeline, for its defaults and limits.
        given: The arguments.

    Returns:
        The inputs of all later steps.

    Raises:
        InputError: If an argument is out of range, or arguments do not fit together.
    """
    height, width = _size(host, given)
    steps = _steps(host, given)
    control = _control(host, given)
    texts = _texts(host, given)
    n = len(texts["prompts"])
    generators = _generators(given.generator, n * given.num_images_per_prompt)
    scale = _default(host, given.guidance_scale, "guidance_scale")
    _warn_of_unused_guidance(host, given)
    return PipelineInputs(
        **texts,
        resize_mode=given.resize_mode,
        boxes=_boxes(host, given.box, n),
        num_images_per_prompt=given.num_images_per_prompt,
        hides_subjects=given.reference_image is not None and bool(host.adapters.registry.mixture),
        guided=scale > 1 and host.preset.uses_cfg,
        controls=control.controls(n, given.num_images_per_prompt, height, width) if control else [],
        guess_mode=control is not None and control.guess_mode,
        generators=generators,
        latents=_latents(host, given, generators, height, width),
        steps=steps,
        guidance_scale=scale,
        guidance_rescale=_default(host, given.guidance_rescale, "guidance_rescale"),
        eta=given.eta,
        output_type=given.output_type,
    )


def _default(host: PipelineHost, value: Any, name: str) -> Any:
    """Return a value, or the checkpoint's default for `None`."""
    return host.config[name] if value is None else value


def _size(host: PipelineHost, given: CallArguments) -> tuple[int, int]:
    """Return height and width in pixels."""
    factor = host.model.latents.factor
    default = int(host.unet.config.sample_size) * factor
    step = factor * 2 ** (len(host.unet.config.block_out_channels) - 1)
    for side in (given.height, given.width):
        if side is not None and (side % step or not step <= side <= MAX_SIDE):
            raise InputError(f"The size {side} can't be used: give a multiple of {step} from {step} to {MAX_SIDE}.")
    return given.height or default, given.width or default


def _steps(host: PipelineHost, given: CallArguments) -> int:
    """Return the sampling steps, after checking them and two other scalars."""
    if given.output_type not in OUTPUT_TYPES:
        choices = f"{', '.join(OUTPUT_TYPES[:-1])} or {OUTPUT_TYPES[-1]}"
        raise InputError(f"There is no output_type {given.output_type!r}: use {choices}.")
    default = host.preset.steps_of(host.config["num_inference_steps"])
    steps = default if given.num_inference_steps is None else given.num_inference_steps
    most = _max_steps(host.scheduler)
    if not 1 <= steps <= most:
        raise InputError(f"num_inference_steps is {steps}: use 1 to {most}.")
    if given.num_images_per_prompt < 1:
        raise InputError(f"num_images_per_prompt is {given.num_images_per_prompt}: use 1 or more.")
    return steps


def _max_steps(scheduler: Any) -> int:
    """Return the most steps: those of the distillation for a consistency model, else those of training."""
    limits = (scheduler.config.get(name) for name in ("original_inference_steps", "num_train_timesteps"))
    return min((int(limit) for limit in limits if limit), default=MAX_STEPS)


def _control(host: PipelineHost, given: CallArguments) -> ControlRequest | None:
    request = control_request(
        host.controlnet if given.controlnet is None else given.controlnet,
        given.image if given.image is not None else given.condtioning_image,
        given.controlnet_conditioning_scale,
        given.control_guidance_start,
        given.control_guidance_end,
        guess_mode=given.guess_mode,
        resample=given.control_resample,
    )
    if request is not None:
        request.check(host.unet)
    return request


def _texts(host: PipelineHost, given: CallArguments) -> dict[str, Any]:
    """Return the fields that have one value for each prompt, broadcast to one length."""
    embeds, source = given.subject_embeds, given.source_subject_category
    if given.reference_image is None and embeds is None and host.adapters.registry.mixture:
        embeds, source = host.adapters.registry.embedding(), source or host.adapters.registry.category()
    if embeds is not None:
        check_tokens(embeds, host.text_encoder, host.tokenizer)
        _check_grid(host, embeds)
    elif given.reference_image is None:
        raise InputError("There is no subject: give reference_image or subject_embeds, or load_subject first.")
    references = as_list(given.reference_image) if given.reference_image is not None else []
    negative = given.negative_prompt if given.negative_prompt is not None else given.neg_prompt
    lists = {"prompt": as_str_list(given.prompt), "negative_prompt": as_str_list(negative or "")}
    lists["source_subject_category"] = as_str_list(source)
    lists["target_subject_category"] = as_str_list(given.target_subject_category)
    lengths = {name: len(values) for name, values in lists.items()}
    lengths["reference_image"] = len(references) if given.reference_image is not None else 1
    lengths["subject_embeds"] = 1 if embeds is None else len(embeds)
    size = common_length(lengths)
    prompts, negatives, sources, targets = (broadcast(values, size) for values in lists.values())
    prompts, negatives = (host.maybe_convert_prompt(texts, host.tokenizer) for texts in (prompts, negatives))
    categories = [target or source for target, source in zip(targets, sources, strict=True)]
    repeats = {"strength": given.prompt_strength, "repetitions": _default(host, given.prompt_reps, "prompt_reps")}
    return {
        "sentences": [subject_prompt(p, c) for p, c in zip(prompts, categories, strict=True)],
        "prompts": [subject_prompt(p, c, **repeats) for p, c in zip(prompts, categories, strict=True)],
        "negative_prompts": negatives,
        "references": [] if embeds is not None else broadcast(references, size),
        "categories": sources,
        "subject_embeds": embeds,
    }


def _check_grid(host: PipelineHost, embeds: Tensor) -> None:
    queries = host.qformer.qformer.config.queries
    if host.model.place_width and embeds.shape[1] not in (0, queries):
        raise InputError(f"There are {embeds.shape[1]} subject tokens: this model places {queries} on a square grid.")


def _boxes(host: PipelineHost, given: Boxes | None, size: int) -> list[Box] | None:
    if given is None:
        return None
    if not host.model.place_width:
        raise InputError("This model has no placed tokens: leave box out, and say in the prompt where the subject is.")
    rows = list(given)
    one = bool(rows) and not isinstance(rows[0], Sequence | Tensor)
    boxes = [check_box(row) for row in ([rows] if one else rows)]  # type: ignore[arg-type]
    if len(boxes) not in (1, size):
        raise InputError(f"There are {len(boxes)} boxes for {size} prompts: give one, or one each.")
    return broadcast(boxes, size)


def _generators(given: OneOrMany[torch.Generator] | None, size: int) -> list[torch.Generator]:
    if given is None:
        return [torch.default_generator] * size
    generators = as_list(given)
    if len(generators) not in (1, size):
        raise InputError(f"There are {len(generators)} generators for {size} images: use one, or one each.")
    return broadcast(generators, size)


def _latents(
    host: PipelineHost, given: CallArguments, generators: list[torch.Generator], height: int, width: int
) -> Tensor:
    """Return initial noise (B, C, H / 8, W / 8) on the device of the networks."""
    latents = host.model.latents
    like = torch.empty(0, device=host._execution_device)  # float32: a seed means the same noise in each precision
    shape = (latents.channels, height // latents.factor, width // latents.factor)
    if given.latents is None:
        scale: float = _default(host, given.noise_scale, "noise_scale")
        return scale * initial_noise(shape, generators, like)
    if given.latents.shape != (len(generators), *shape):
        wanted = (len(generators), *shape)
        raise InputError(f"The latents are {tuple(given.latents.shape)}: these images need {wanted}.")
    return given.latents.to(like)


def _warn_of_unused_guidance(host: PipelineHost, given: CallArguments) -> None:
    negative = given.negative_prompt or given.neg_prompt
    if not host.preset.uses_cfg and (given.guidance_scale not in (None, 1) or negative):
        warnings.warn(
            "The preset's LoRA brings its own guidance: guidance_scale and negative_prompt have no effect.",
            stacklevel=5,
        )
