"""Structure control: check and convert a call's ControlNets, images and numbers to the denoiser's controls."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from diffusers import ControlNetModel, MultiControlNetModel, T2IAdapter
from PIL import Image
from torch import Tensor, nn

from blip_diffusion import images
from blip_diffusion.argument_checks import number
from blip_diffusion.checkpoint.control_fit import check_control_fit
from blip_diffusion.diffusion.controlnet import Control
from blip_diffusion.errors import InputError
from blip_diffusion.nn_utils import uncompiled
from blip_diffusion.pipelines.control_arrays import as_tensor, per_net
from blip_diffusion.protocols import UNet

Images: TypeAlias = Image.Image | Tensor | Sequence[Image.Image]
"""One image for all prompts, or one for each; a tensor is (B, 3, H, W) in [0, 1]."""
Numbers: TypeAlias = float | Sequence[float]
Resample = Literal["lanczos", "bicubic"]
"""How a control image is resized: `lanczos` as in the original, `bicubic` as in diffusers' port."""
RESAMPLE = {"lanczos": Image.Resampling.LANCZOS, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True)
class ControlRequest:
    """ControlNets or T2I-Adapters and, for each, its image, its scale, and the steps in which it is active."""

    nets: list[Any]
    images: list[Images]
    scales: list[float]
    starts: list[float]
    ends: list[float]
    guess: bool = False
    resample: Resample = "lanczos"

    def check(self, unet: UNet, factor: int) -> None:
        """Raise `InputError` if nets, images, numbers and U-Net do not fit together; latents are `factor` smaller."""
        if len(self.nets) != len(self.images):
            raise InputError(f"There are {len(self.nets)} ControlNets for {len(self.images)} images: give one each.")
        for start, end in zip(self.starts, self.ends, strict=True):
            if not 0 <= start < end <= 1:
                raise InputError(f"A ControlNet can't be active from {start} to {end}: use fractions from 0 to 1.")
        for net in self.nets:
            check_control_fit(net, unet, factor)

    @property
    def guess_mode(self) -> bool:
        """Whether the nets run without the prompt; those that pool their conditions were trained that way."""
        return self.guess or bool(getattr(self.nets[0].config, "global_pool_conditions", False))

    def controls(self, size: int, copies: int, height: int, width: int) -> list[Control]:
        """Return the controls of `size` prompts with `copies` images each."""
        return [
            Control(net, _pixels(image, size, height, width, self.resample).repeat_interleave(copies, dim=0), *numbers)
            for net, image, *numbers in zip(self.nets, self.images, self.scales, self.starts, self.ends, strict=True)
        ]


def control_request(
    nets: Any, image: Any, scale: Numbers, start: Numbers, end: Numbers, *, guess_mode: bool, resample: Resample
) -> ControlRequest | None:
    """Normalise the control arguments of a call; a single number is used for all nets. `None` without an image."""
    if image is None:
        return None
    if nets is None:
        raise InputError("A control image needs a ControlNet: give controlnet=, or load a model that has one.")
    nets = as_nets(nets)
    net_images = per_net(image, len(nets))
    scales = _numbers("controlnet_conditioning_scale", scale, len(nets))
    starts = _numbers("control_guidance_start", start, len(nets))
    ends = _numbers("control_guidance_end", end, len(nets))
    return ControlRequest(nets, net_images, scales, starts, ends, guess_mode, resample)


def as_nets(given: Any) -> list[Any]:
    """Return one net, or a list of them, as a list. Raises `InputError` for anything else."""
    nets = list(given.nets) if isinstance(given, MultiControlNetModel) else given
    nets = list(nets) if isinstance(nets, list | tuple) else [nets]
    for net in nets:
        if not isinstance(net, nn.Module) or not isinstance(uncompiled(net), ControlNetModel | T2IAdapter):
            raise InputError(
                f"controlnet is a {type(net).__name__}: use a ControlNetModel or T2IAdapter of diffusers, or a list of "
                "them; load_controlnet reads a folder, a file or a hub id."
            )
    if not nets:
        raise InputError("controlnet is an empty list: give a ControlNet, or leave it out.")
    return nets


def _numbers(name: str, value: Numbers, size: int) -> list[float]:
    values = [number(name, v) for v in value] if isinstance(value, list | tuple) else [number(name, value)] * size
    if len(values) != size:
        raise InputError(f"There are {len(values)} numbers in {name} for {size} ControlNets: give one, or one each.")
    return values


def _pixels(given: Images, size: int, height: int, width: int, resample: Resample) -> Tensor:
    """Return control maps (B, 3, H, W) in [0, 1]."""
    given = as_tensor(given)
    if isinstance(given, Tensor):
        pixels = given
        if pixels.shape[1:] != (3, height, width):
            raise InputError(f"The control tensor is {tuple(pixels.shape)}: use (B, 3, {height}, {width}).")
    else:
        pixels = images.to_tensor([_resized(image, height, width, resample) for image in _as_images(given)])
    if len(pixels) not in (1, size):
        raise InputError(f"There are {len(pixels)} control images for {size} prompts: give one, or one each.")
    return pixels.expand(size, -1, -1, -1)


def _as_images(given: Image.Image | Sequence[Image.Image]) -> list[Image.Image]:
    listed = [given] if isinstance(given, Image.Image) else list(given)
    if not listed or not all(isinstance(image, Image.Image) for image in listed):
        raise InputError("A control image is a PIL image, a list of them, or a tensor (B, 3, H, W) in [0, 1].")
    return listed


def _resized(image: Image.Image, height: int, width: int, resample: Resample) -> Image.Image:
    image = images.as_rgb(image)
    return image if image.size == (width, height) else image.resize((width, height), RESAMPLE[resample])
