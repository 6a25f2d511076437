"""What a training pair shows: the distribution of pairs, and one pair decided in words and numbers."""

from dataclasses import dataclass

from blip_diffusion.data.synthetic.backgrounds import Background
from blip_diffusion.data.synthetic.prompt_templates import PromptSpec
from blip_diffusion.errors import ConfigError


@dataclass(frozen=True)
class SyntheticConfig:
    """What the images are like. Shares are of all samples; what they leave over is plain recontextualisation."""

    size: int = 128  # side of an image
    object_crop_size: int = 32  # side of the object crop
    split: str = "train"  # of identities and of scenes
    procedural: float = 0.4  # how many targets stand in drawn places rather than photographs
    reference_plain: float = 0.5  # how many references stand before one colour rather than in another scene
    same_view: float = 0.5  # how often reference and target are one image of the subject though there are others
    azimuth: float = 45.0  # degrees: how far apart the two views of a solid usually are; never more than 90
    kind_temperature: float = 0.5  # 1: every identity alike; 0: every kind alike
    outlines: float = 0.5  # how much a line drawing counts beside any other kind of image
    layout: float = 1.0  # 0: a target's place, size and light are what the words say; 1: within their ranges, any
    light: float = 1.0  # 0: light on a subject is the scene's; 1: within its range, any
    reference_fill: tuple[float, float] = (0.76, 0.97)  # longest side of the subject, in sides of the reference
    reference_drift: float = 0.03  # largest distance of its centre from the reference's, in the same unit
    anywhere: float = 0.0  # share of the targets without a property whose subject has any size, anywhere
    hue_rotation: float = 0.0  # share: the subject's hues rotated, in reference and target alike
    mirror: float = 0.0  # share: the whole pair seen in a mirror, where no word has a left or a right
    warp: float = 0.0  # largest displacement of an elastic deformation of the target, in sides of the image; 0: none
    rotation: float = 8.0  # largest rotation of a reference, in degrees; half of them stay upright
    colours: float = 0.06  # share: the subject painted in a named colour
    counts: float = 0.05  # share: two or three of them
    sizes: float = 0.05  # share: small, big
    positions: float = 0.06  # share: at the left ...; half as many again have a size as well
    accessories: float = 0.04  # share: wearing a hat, next to an apple; none where the world has no such thing
    styles: float = 0.06  # share: as pixel art ...

    def __post_init__(self) -> None:
        for name, step in (("size", 16), ("object_crop_size", 4)):
            if (value := getattr(self, name)) < step or value % step:
                raise ConfigError(f"data.synthetic.{name} is {value}: use a multiple of {step}.")
        if not 0 <= self.layout <= 1:
            raise ConfigError(f"data.synthetic.layout is {self.layout}: use 0 to 1.")
        if not 0 <= self.warp <= 0.25:
            raise ConfigError(f"data.synthetic.warp is {self.warp}: use 0 to 0.25.")
        if not self.azimuth > 0:
            raise ConfigError(f"data.synthetic.azimuth is {self.azimuth}: use some degrees, 45 is usual.")


@dataclass(frozen=True)
class PairSpec:
    """One pair to compose. Cut-outs and scenes are rows of the sampler's world, of any split."""

    reference: int
    target: int
    request: PromptSpec
    background: Background
    reference_background: Background
    prompt: str = ""  # empty: the first paraphrase of `request`
    accessory: int = -1  # the cut-out of the request's accessory; -1: any that fits
    colour_matrix: tuple[float, ...] | None = None  # nine numbers that multiply the subject's RGB
    anywhere: bool = False  # the subject has any size and stands anywhere, which no word says
