"""The distribution of training pairs, and the specification of one pair in words and numbers."""

from dataclasses import dataclass

from blip_diffusion.data.synthetic.backgrounds import Background
from blip_diffusion.data.synthetic.prompt_templates import PromptSpec
from blip_diffusion.errors import ConfigError

MAX_SIDE = 2048
"""Largest side of a composed image in pixels."""


@dataclass(frozen=True)
class SyntheticConfig:
    """Distribution of the images. Shares are of all samples; the rest has a new scene and no other change."""

    size: int = 128  # side of an image
    object_crop_size: int = 32  # side of the object crop
    split: str = "train"  # of identities and of scenes
    procedural: float = 0.4  # share of targets on procedural backgrounds instead of photographs
    no_scene: float = 0.0  # share of targets on a plain colour, mostly white, whose prompt names no scene
    reference_plain: float = 0.5  # share of references on a plain colour instead of another scene
    same_view: float = 0.5  # share of pairs of one image of the subject, if it has several
    azimuth: float = 45.0  # degrees: usual angle between the two views of a 3D model; at most 90
    kind_temperature: float = 0.5  # 1: identities are equally likely; 0: kinds are
    outlines: float = 0.5  # weight of line drawings, relative to other kinds
    layout: float = 1.0  # 0: position and size of a target are the prompt's defaults; 1: random in their ranges
    light: float = 1.0  # 0: light on a subject is the scene's; 1: random in its range
    reference_fill: tuple[float, float] = (0.76, 0.97)  # longest side of the subject, in sides of the reference
    reference_drift: float = 0.03  # largest distance of its centre from the reference's, in the same unit
    anywhere: float = 0.0  # share of targets without a property whose subject has a random size and position
    hue_rotation: float = 0.0  # share: the subject's hues rotated, equally in reference and target
    mirror: float = 0.0  # share: the whole pair mirrored, unless the prompt has a left or right
    warp: float = 0.0  # largest displacement of an elastic deformation of the target, in sides of the image; 0: none
    rotation: float = 8.0  # largest rotation of a reference, in degrees; half of them stay upright
    colours: float = 0.06  # share: the subject painted in a named colour
    counts: float = 0.05  # share: two or three of them
    sizes: float = 0.05  # share: small, big
    positions: float = 0.06  # share: at the left ...; a third of them with a size
    accessories: float = 0.04  # share: wearing a hat, next to an apple, if the library has such cut-outs
    styles: float = 0.06  # share: as pixel art ...
    geometry: bool = False  # only subjects that are 3D models, with depth and normals of their targets

    def __post_init__(self) -> None:
        for name, step in (("size", 16), ("object_crop_size", 4)):
            if not step <= (value := getattr(self, name)) <= MAX_SIDE or value % step:
                raise ConfigError(f"data.synthetic.{name} is {value}: use a multiple of {step}, at most {MAX_SIDE}.")
        if not 0 <= self.layout <= 1:
            raise ConfigError(f"data.synthetic.layout is {self.layout}: use 0 to 1.")
        if not 0 <= self.warp <= 0.25:
            raise ConfigError(f"data.synthetic.warp is {self.warp}: use 0 to 0.25.")
        if not 0 <= self.kind_temperature <= 10:
            raise ConfigError(f"data.synthetic.kind_temperature is {self.kind_temperature}: use 0 to 10.")
        if not self.azimuth > 0:
            raise ConfigError(f"data.synthetic.azimuth is {self.azimuth}: use some degrees, 45 is usual.")


@dataclass(frozen=True)
class PairSpec:
    """One pair to render. Cut-outs and scenes are rows of the sampler's asset library, of any split."""

    reference: int
    target: int
    request: PromptSpec
    background: Background
    reference_background: Background
    prompt: str = ""  # empty: the default paraphrase of `request`
    accessory: int = -1  # the cut-out of the request's accessory; -1: a random one
    colour_matrix: tuple[float, ...] | None = None  # nine numbers that multiply the subject's RGB
    anywhere: bool = False  # the subject has a random size and position, which the prompt doesn't mention
