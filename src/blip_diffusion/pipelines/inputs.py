"""The prepare step: normalise and check the arguments of a call, and return one frozen object."""

import inspect
import itertools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, get_args

import torch
from PIL import Image
from torch import Tensor

from blip_diffusion.argument_checks import choice, flag, number, whole_number
from blip_diffusion.diffusion.controlnet import Control
from blip_diffusion.diffusion.sampler import initial_noise
from blip_diffusion.diffusion.scheduler_checks import check_scheduler
from blip_diffusion.errors import InputError, quoted
from blip_diffusion.framing import Box, check_box
from blip_diffusion.images import ResizeMode
from blip_diffusion.pipelines.broadcast import OneOrMany, as_list, broadcast
from blip_diffusion.pipelines.checks import check_generators, check_tensor, check_unsupported
from blip_diffusion.pipelines.composition import Composition, RegionMode, SubjectRegion, composition_of
from blip_diffusion.pipelines.control import RESAMPLE, ControlRequest, Images, Numbers, Resample, control_request
from blip_diffusion.pipelines.host import PipelineHost
from blip_diffusion.pipelines.prompt_inputs import PromptInputs, prompt_inputs
from blip_diffusion.pipelines.step_callback import StepCallback, callback_tensors
from blip_diffusion.pipelines.subject_scale import Scale, SubjectScale
from blip_diffusion.protocols import Scheduler

MAX_SIDE = 2048
MAX_STEPS = 1000
"""For a scheduler without a limit."""
MAX_IMAGES = 10_000
"""Images of a prompt in one call."""
Boxes = Sequence[float] | Sequence[Sequence[float]]
"""A box (left, top, right, bottom), or one for each prompt."""
OUTPUT_TYPES = ("pil", "np", "pt", "latent")


@dataclass(frozen=True)
class CallArguments:
    """The arguments of `BlipDiffusionPipeline.__call__` but for `return_dict`; see there."""

    prompt: OneOrMany[str] | None
    reference_image: OneOrMany[OneOrMany[Image.Image]] | None
    source_subject_category: OneOrMany[str]
    target_subject_category: OneOrMany[str]
    negative_prompt: OneOrMany[str] | None
    height: int | None
    width: int | None
    num_inference_steps: int | None
    timesteps: Sequence[int] | None
    sigmas: Sequence[float] | None
    guidance_scale: float | None
    guidance_rescale: float | None
    noise_scale: float | None
    num_images_per_prompt: int
    eta: float | None
    generator: OneOrMany[torch.Generator] | None
    latents: Tensor | None
    prompt_strength: float
    prompt_reps: int | None
    prompt_weighting: bool
    resize_mode: ResizeMode | None
    box: "Boxes | None"
    subjects: Sequence[SubjectRegion] | None
    region_mode: RegionMode
    subject_scale: Scale | None
    subject_embeds: Tensor | None
    prompt_embeds: Tensor | None
    negative_prompt_embeds: Tensor | None
    cross_attention_kwargs: Mapping[str, Any] | None
    clip_skip: int | None
    output_type: str
    callback_on_step_end: StepCallback | None
    callback_on_step_end_tensor_inputs: Sequence[str]
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

    @classmethod
    def of_call(cls, call: Any, **given: Any) -> "CallArguments":
        """Return a call's defaults, and what is given in their place."""
        parameters = inspect.signature(call).parameters
        return cls.select({name: parameter.default for name, parameter in parameters.items()} | given)


@dataclass(frozen=True)
class PipelineInputs:
    """Checked inputs of N prompts, each with `num_images_per_prompt` images: a batch of B images.

    Args:
        texts: Inputs of the text encoder.
        resize_mode: How references become square; `None`: the model's mode.
        boxes: N boxes of the subjects; `None`: where the words of the prompts put them.
        composition: The subjects of a call with several.
        subject_scale: The weight of the subject in each block.
        num_images_per_prompt: Images of each prompt.
        hides_subjects: Whether loaded subjects are inactive, because there is a reference.
        guided: Whether classifier-free guidance runs.
        controls: ControlNets with their maps (B, 3, H, W).
        guess_mode: Whether ControlNets run without the prompt.
        generators: One generator for each of B images.
        latents: Initial noise (B, C, H / 8, W / 8).
        steps: Sampling steps.
        timesteps: Timesteps in place of the scheduler's.
        sigmas: Noise levels in place of the scheduler's.
        guidance_scale: Weight of guidance.
        guidance_rescale: Share of the rescaling after guidance.
        eta: Noise that DDIM adds at each step.
        output_type: One of OUTPUT_TYPES.
        callback: The user's step callback.
        callback_tensors: The tensors that it requests, of CALLBACK_TENSORS.
        condition: Mask and masked-image latents (1 or B, C + 1, h, w) for a U-Net that reads them; by default the mask
            of the whole image.
    """

    texts: PromptInputs
    resize_mode: ResizeMode | None
    boxes: list[Box] | None
    composition: Composition | None
    subject_scale: SubjectScale
    num_images_per_prompt: int
    hides_subjects: bool
    guided: bool
    controls: list[Control]
    guess_mode: bool
    generators: list[torch.Generator]
    latents: Tensor
    steps: int
    timesteps: list[int] | None
    sigmas: list[float] | None
    guidance_scale: float
    guidance_rescale: float
    eta: float | None
    output_type: str
    callback: StepCallback | None = None
    callback_tensors: Sequence[str] = ()
    condition: Tensor | None = None


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
    check_scheduler(host.scheduler)
    _check_types(given)
    height, width = _size(host, given)
    steps = _steps(host, given)
    copies = whole_number("num_images_per_prompt", given.num_images_per_prompt, 1, MAX_IMAGES)
    control = _control(host, given)
    latents_size = height // host.model.latents.factor, width // host.model.latents.factor
    composition = composition_of(host, given, *latents_size)
    texts = prompt_inputs(host, given) if composition is None else composition.sentence
    n = len(texts)
    generators = _generators(given.generator, n * copies)
    scale = number("guidance_scale", _default(host, given.guidance_scale, "guidance_scale"))
    _warn_of_unused_guidance(host, given)
    latents = _latents(host, given, generators, height, width)
    return PipelineInputs(
        texts=texts,
        resize_mode=given.resize_mode,
        boxes=_boxes(host, given.box, n),
        composition=composition,
        subject_scale=_subject_scale(host, given, composition),
        num_images_per_prompt=copies,
        hides_subjects=(given.reference_image is not None or composition is not None)
        and bool(host.adapters.registry.mixture),
        guided=scale > 1 and host.preset.uses_cfg,
        controls=control.controls(n, copies, height, width) if control else [],
        guess_mode=control is not None and control.guess_mode,
        generators=generators,
        latents=latents,
        steps=steps,
        timesteps=_schedule("timesteps", given.timesteps),
        sigmas=_schedule("sigmas", given.sigmas),
        guidance_scale=scale,
        guidance_rescale=number("guidance_rescale", _default(host, given.guidance_rescale, "guidance_rescale"), 0, 1),
        eta=None if given.eta is None else number("eta", given.eta, 0, 1),
        output_type=given.output_type,
        callback=given.callback_on_step_end,
        callback_tensors=callback_tensors(given.callback_on_step_end, given.callback_on_step_end_tensor_inputs),
        condition=host.model.whole_condition(latents) if host.model.reads_mask else None,
    )


def _check_types(given: CallArguments) -> None:
    """Raise `InputError` for arguments of a wrong type that nothing else would notice, or only later."""
    check_unsupported(given.cross_attention_kwargs, given.clip_skip)
    flag("prompt_weighting", given.prompt_weighting)
    flag("guess_mode", given.guess_mode)
    choice("control_resample", given.control_resample, tuple(RESAMPLE))
    if given.resize_mode is not None:
        choice("resize_mode", given.resize_mode, get_args(ResizeMode))
    for value in as_list(given.controlnet_conditioning_scale):
        number("controlnet_conditioning_scale", value)
    for name in ("control_guidance_start", "control_guidance_end"):
        for value in as_list(getattr(given, name)):
            number(name, value, 0, 1)
    for name in ("latents", "subject_embeds", "prompt_embeds", "negative_prompt_embeds"):
        if getattr(given, name) is not None:
            check_tensor(name, getattr(given, name))


def _default(host: PipelineHost, value: Any, name: str) -> Any:
    """Return a value, or the checkpoint's default for `None`."""
    return host.config[name] if value is None else value


def _size(host: PipelineHost, given: CallArguments) -> tuple[int, int]:
    """Return height and width in pixels."""
    factor = host.model.latents.factor
    default = host.model.image_size
    step = factor * 2 ** (len(host.unet.config.block_out_channels) - 1)
    for name, side in (("height", given.height), ("width", given.width)):
        if side is not None and (whole_number(name, side) % step or not step <= side <= MAX_SIDE):
            raise InputError(f"The size {side} can't be used: give a multiple of {step} from {step} to {MAX_SIDE}.")
    height, width = given.height or default, given.width or default
    if host.watermark is not None and given.output_type != "latent":
        host.watermark.check_size(height, width)
    return height, width


def _steps(host: PipelineHost, given: CallArguments) -> int:
    """Return the sampling steps, after checking them."""
    choice("output_type", given.output_type, OUTPUT_TYPES)
    chosen = [name for name in ("num_inference_steps", "timesteps", "sigmas") if getattr(given, name) is not None]
    if len(chosen) > 1:
        raise InputError(f"{' and '.join(chosen)} exclude each other: give one of them.")
    if given.timesteps is not None or given.sigmas is not None:
        return len(_schedule("timesteps", given.timesteps) or _schedule("sigmas", given.sigmas))
    default = host.preset.steps_of(host.config["num_inference_steps"])
    steps = default if given.num_inference_steps is None else given.num_inference_steps
    lowest = 4 if host.scheduler.config.get("skip_prk_steps") is False else 1  # PNDM's Runge-Kutta steps
    return whole_number("num_inference_steps", steps, lowest, _max_steps(host.scheduler))


def _schedule(name: str, values: Any) -> Any:
    """Return a user's timesteps or noise levels, which must decrease, as a list."""
    if values is None:
        return None
    given = values.tolist() if hasattr(values, "tolist") else values
    rows = list(given) if isinstance(given, list | tuple) else []
    levels = [whole_number(name, row, 0) if name == "timesteps" else number(name, row, 0) for row in rows]
    if not levels or any(later >= earlier for earlier, later in itertools.pairwise(levels)):
        raise InputError(f"{name} is {quoted(values)}: use a list of decreasing numbers.")
    return levels


def _max_steps(scheduler: Scheduler) -> int:
    """Return the most steps: those of the distillation for a consistency model, else those of training."""
    limits = (scheduler.config.get(name) for name in ("original_inference_steps", "num_train_timesteps"))
    return min((int(limit) for limit in limits if limit), default=MAX_STEPS)


def _control(host: PipelineHost, given: CallArguments) -> ControlRequest | None:
    if given.controlnet is not None and given.image is None and given.condtioning_image is None:
        raise InputError("controlnet is given without image: give the control image, or leave controlnet out.")
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
        request.check(host.unet, host.model.latents.factor)
    return request


def _boxes(host: PipelineHost, given: Boxes | None, size: int) -> list[Box] | None:
    if given is None:
        return None
    if not host.model.place_width:
        raise InputError("This model has no placed tokens: leave box out, and describe the position in the prompt.")
    rows = list(given)
    one = bool(rows) and not isinstance(rows[0], Sequence | Tensor)
    boxes = [check_box(row) for row in ([rows] if one else rows)]  # type: ignore[arg-type]
    if len(boxes) not in (1, size):
        raise InputError(f"There are {len(boxes)} boxes for {size} prompts: give one, or one each.")
    return broadcast(boxes, size)


def _subject_scale(host: PipelineHost, given: CallArguments, composition: Composition | None) -> SubjectScale:
    """Return the scale of the subject. Raises `InputError` if the engine can't apply it or regions."""
    scale = SubjectScale.of(host._subject_scale if given.subject_scale is None else given.subject_scale, host.unet)
    masks = composition is not None and composition.visibility is not None and not composition.averages_predictions
    if scale.changes and given.prompt_embeds is not None:
        raise InputError("subject_scale has no effect on prompt_embeds: give prompt and subject, or leave it out.")
    if host.preset.engine != "torch" and (masks or scale.changes):
        what = "Regions with region_mode attention" if masks else "subject_scale"
        raise InputError(f"{what} can't run on the engine {host.preset.engine}: use the engine torch.")
    return scale


def _generators(given: OneOrMany[torch.Generator] | None, size: int) -> list[torch.Generator]:
    if given is None:
        return [torch.default_generator] * size
    check_generators(given)
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
        scale = number("noise_scale", _default(host, given.noise_scale, "noise_scale"), 0, 100)
        return scale * initial_noise(shape, generators, like)
    if given.latents.shape != (len(generators), *shape):
        expected = (len(generators), *shape)
        raise InputError(f"The latents are {tuple(given.latents.shape)}: these images need {expected}.")
    return given.latents.to(like)


def _warn_of_unused_guidance(host: PipelineHost, given: CallArguments) -> None:
    negative = given.negative_prompt or given.neg_prompt
    if not host.preset.uses_cfg and (given.guidance_scale not in (None, 1) or negative):
        warnings.warn(
            "The preset's LoRA has guidance distilled into it: guidance_scale and negative_prompt have no effect.",
            stacklevel=7,
        )
