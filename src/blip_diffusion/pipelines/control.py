"""Structure control: from what a user hands over, nets and pictures and numbers, to the denoiser's controls."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal, TypeAlias

from PIL import Image
from torch import Tensor

from blip_diffusion import images
from blip_diffusion.diffusion.controlnet import Control
from blip_diffusion.errors import InputError

Pictures: TypeAlias = Image.Image | Tensor | Sequence[Image.Image]
"""One for all prompts, or one each; a tensor is (B, 3, H, W) in [0, 1]."""
Numbers: TypeAlias = float | Sequence[float]
Resample = Literal["lanczos", "bicubic"]
"""How a control picture is brought to size: `lanczos` is the original's way, `bicubic` the diffusers port's."""
RESAMPLE = {"lanczos": Image.Resampling.LANCZOS, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True)
class ControlRequest:
    """Nets, and for each a picture, a scale and the shares of the steps between which it speaks."""

    nets: list[Any]
    pictures: list[Pictures]
    scales: list[float]
    starts: list[float]
    ends: list[float]
    guess: bool = False

    def check(self, unet: Any) -> None:
        """Raises `InputError` for what doesn't fit together."""
        if len(self.nets) != len(self.pictures):
            raise InputError(
                f"There are {len(self.nets)} ControlNets for {len(self.pictures)} pictures: give one each."
            )
        for scale, start, end in zip(self.scales, self.starts, self.ends, strict=True):
            if not isfinite(scale):
                raise InputError(f"controlnet_conditioning_scale is {scale}: use a number, 1 is usual.")
            if not 0 <= start < end <= 1:
                raise InputError(f"A ControlNet can't speak from {start} to {end}: use shares of the steps, 0 to 1.")
        for net in self.nets:
            _check_fit(net, unet)

    @property
    def guessing(self) -> bool:
        """Whether the nets must do without the prompt; those that pool their answer are trained so."""
        return self.guess or bool(self.nets[0].config.global_pool_conditions)

    def controls(self, size: int, copies: int, height: int, width: int, resample: Resample) -> list[Control]:
        """The controls of `size` prompts, `copies` pictures of each."""
        return [
            Control(net, _pixels(picture, size, height, width, resample).repeat_interleave(copies, dim=0), *numbers)
            for net, picture, *numbers in zip(
                self.nets, self.pictures, self.scales, self.starts, self.ends, strict=True
            )
        ]


def control_request(
    nets: Any, image: Any, scale: Numbers, start: Numbers, end: Numbers, *, guess: bool
) -> ControlRequest | None:
    """One of a thing serves all nets. `None` where nothing is to be controlled."""
    if image is None:
        return None
    if nets is None:
        raise InputError("A control picture needs a ControlNet: give controlnet=, or load a model that has one.")
    nets = list(getattr(nets, "nets", nets if isinstance(nets, list | tuple) else [nets]))
    pictures = list(image) if len(nets) > 1 and isinstance(image, list | tuple) else [image]
    scales = _spread("controlnet_conditioning_scale", scale, len(nets))
    starts = _spread("control_guidance_start", start, len(nets))
    ends = _spread("control_guidance_end", end, len(nets))
    return ControlRequest(nets, pictures, scales, starts, ends, guess)


def _spread(name: str, value: Numbers, size: int) -> list[float]:
    values = [float(v) for v in value] if isinstance(value, Sequence) else [float(value)] * size
    if len(values) != size:
        raise InputError(f"There are {len(values)} numbers in {name} for {size} ControlNets: give one, or one each.")
    return values


def _check_fit(net: Any, unet: Any) -> None:
    for name in ("cross_attention_dim", "in_channels", "block_out_channels"):
        theirs, ours = net.config[name], unet.config[name]
        theirs, ours = (tuple(x) if isinstance(x, list | tuple) else x for x in (theirs, ours))
        if theirs != ours:
            raise InputError(f"The ControlNet is for another U-Net: its {name} is {theirs}, this model's is {ours}.")


def _pixels(pictures: Pictures, size: int, height: int, width: int, resample: Resample) -> Tensor:
    """(B, 3, H, W) in [0, 1]."""
    if isinstance(pictures, Tensor):
        rows = pictures if pictures.ndim == 4 else pictures[None]
        if rows.shape[1:] != (3, height, width):
            raise InputError(
                f"The control tensor is {tuple(rows.shape)}: these pictures want (B, 3, {height}, {width})."
            )
    else:
        rows = images.to_tensor([_resized(p, height, width, resample) for p in _listed(pictures)])
    if len(rows) not in (1, size):
        raise InputError(f"There are {len(rows)} control pictures for {size} prompts: give one, or one each.")
    return rows.expand(size, -1, -1, -1)


def _listed(pictures: Image.Image | Sequence[Image.Image]) -> list[Image.Image]:
    listed = [pictures] if isinstance(pictures, Image.Image) else list(pictures)
    if not listed or not all(isinstance(picture, Image.Image) for picture in listed):
        raise InputError("A control picture is a PIL picture, a list of them, or a tensor (B, 3, H, W) in [0, 1].")
    return listed


def _resized(picture: Image.Image, height: int, width: int, resample: Resample) -> Image.Image:
    if resample not in RESAMPLE:
        raise InputError(f"There is no control_resample {resample!r}: use lanczos or bicubic.")
    picture = images.as_rgb(picture)
    return picture if picture.size == (width, height) else picture.resize((width, height), RESAMPLE[resample])
