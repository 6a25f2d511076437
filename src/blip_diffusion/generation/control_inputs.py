"""The controls of a request: networks, control maps, and the box of the subject that a control image shows."""

import io
from functools import partial
from typing import Any

from blip_diffusion import images
from blip_diffusion.annotators import GEOMETRY, KINDS
from blip_diffusion.checkpoint.single_component import load_controlnet
from blip_diffusion.framing import Box, box_before_plain_border, box_of_mask
from blip_diffusion.generation.control_kinds import BUNDLED_KINDS, CONTROLNETS, check_served
from blip_diffusion.generation.request import ControlInput, GenerationRequest, control_map
from blip_diffusion.references import find_subject

SD15_WIDTH = 768
"""Width of the text states of Stable Diffusion 1.5, whose ControlNets fit a model of its shapes."""


def short_side(pipe: Any, request: GenerationRequest) -> int:
    """Return the short side in pixels of the images that a request generates."""
    default = pipe.model.image_size
    return min(request.width or default, request.height or default)


def box_of_controls(pipe: Any, request: GenerationRequest) -> Box | None:
    """Return the subject's box in the first control image that shows it.

    These are masks, photos whose edges are used, and depth or normals of a subject before a plain background. `None`
    without such an image, or for a model whose subject tokens have no positions. Edits use the box in the edited photo.
    """
    if not pipe.model.place_width:
        return None
    photos = request.edit is None
    shown = [one for one in request.controls if one.kind == "mask" or (photos and _shows_subject(one))]
    return next((box for one in shown if (box := _box_of_control(pipe, one)) is not None), None)


def _shows_subject(control: ControlInput) -> bool:
    return not control.is_map or control.kind in GEOMETRY


def _box_of_control(pipe: Any, control: ControlInput) -> Box | None:
    if not control.is_map:
        return images.read_image(io.BytesIO(control.image), partial(find_subject, pipe.model))
    pixels = images.to_tensor([images.as_rgb(images.open_image(io.BytesIO(control.image)))])[0]
    return box_of_mask(pixels.mean(dim=0)) if control.kind == "mask" else box_before_plain_border(pixels)


def control_arguments(pipe: Any, request: GenerationRequest) -> dict[str, Any]:
    """Return the arguments of a call for its controls.

    The model's own adapters act on the conditional prediction only, where `guess_mode` is available: guidance then
    strengthens the control too.
    """
    controls = [control for control in request.controls if not _gives_only_the_box(control, pipe)]
    if not controls:
        return {}
    nets = [_load_controlnet(control, pipe) for control in controls]
    maps = [control_map(control) for control in controls]
    single = len(controls) == 1
    return {
        "image": maps[0] if single else maps,
        "controlnet": nets[0] if single else nets,
        "controlnet_conditioning_scale": [control.scale for control in controls],
        "control_guidance_end": [control.end for control in controls],
        "guess_mode": _allows_guess_mode(request) and all(net in pipe.t2i_adapters.values() for net in nets),
    }


def _allows_guess_mode(request: GenerationRequest) -> bool:
    attention = request.edit is not None and bool(request.edit.keep_attention)
    return not attention and request.region_mode == "attention"


def _gives_only_the_box(control: ControlInput, pipe: Any) -> bool:
    """Return whether a mask has no network of its own: it then acts by `box_of_controls` alone."""
    no_network = not control.controlnet and "mask" not in pipe.t2i_adapters
    return control.kind == "mask" and no_network and bool(pipe.model.place_width)


def control_kinds(pipe: Any) -> tuple[str, ...]:
    """Return the kinds of control that a model serves without a ControlNet of the request, in the order of `KINDS`."""
    kinds = {*pipe.t2i_adapters}
    if pipe.controlnet is not None:
        kinds.update(BUNDLED_KINDS)
    if pipe.model.place_width:
        kinds.add("mask")  # which gives the box
    if pipe.unet.config.cross_attention_dim == SD15_WIDTH:
        kinds.update(CONTROLNETS)
    return tuple(kind for kind in KINDS if kind in kinds)


def _load_controlnet(control: ControlInput, pipe: Any) -> Any:
    """Return the ControlNet or adapter of a control. A ControlNet is downloaded only for a model that it fits."""
    if not control.controlnet:
        check_served(control.kind, control_kinds(pipe))
        if pipe.controlnet is not None and control.kind in BUNDLED_KINDS:
            return pipe.controlnet
        if control.kind in pipe.t2i_adapters:
            return pipe.t2i_adapters[control.kind].to(pipe.device)
    return load_controlnet(control.controlnet or CONTROLNETS[control.kind], dtype=pipe.unet.dtype).to(pipe.device)
