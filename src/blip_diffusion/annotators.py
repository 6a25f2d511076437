"""From an image to what a ControlNet looks at. Canny edges are ours; the others are `controlnet_aux`'s networks."""

from collections.abc import Callable

from PIL import Image

from blip_diffusion import images
from blip_diffusion.edges import HIGH, LOW, canny_edges
from blip_diffusion.errors import InputError, reason

LEARNED = {
    "depth": "MidasDetector",
    "hed": "HEDdetector",
    "lineart": "LineartDetector",
    "normal": "NormalBaeDetector",
    "openpose": "OpenposeDetector",
    "softedge": "PidiNetDetector",
}
"""Annotators that are networks: their classes in `controlnet_aux`."""
WEIGHTS = "lllyasviel/Annotators"
"""Where the hub has what they learned."""
KINDS = ("map", "canny", *LEARNED)
"""`map` takes an image that is a control map already."""


def annotate(image: Image.Image, kind: str) -> Image.Image:
    """The control map of an image. Raises `InputError` for an unknown kind, or one that needs what isn't here."""
    image = images.as_rgb(image)
    if kind == "map":
        return image
    if kind == "canny":
        return canny(image)
    if kind in LEARNED:
        return _learned(kind)(image).convert("RGB").resize(image.size, Image.Resampling.BICUBIC)
    raise InputError(f"There is no control {kind!r}: use {', '.join(KINDS[:-1])} or {KINDS[-1]}.")


def _learned(kind: str) -> Callable[[Image.Image], Image.Image]:
    try:
        import controlnet_aux  # type: ignore[import-not-found]
    except ImportError as error:
        raise InputError(
            f"The control {kind} needs controlnet_aux: pip install 'blip-diffusion[control]', or draw the map yourself "
            "and give it as map."
        ) from error
    try:
        detector: Callable[[Image.Image], Image.Image] = getattr(controlnet_aux, LEARNED[kind]).from_pretrained(WEIGHTS)
    except Exception as error:  # its networks are fetched from the hub and built by several libraries
        raise InputError(
            f"The control {kind} can't be had from {WEIGHTS} ({reason(error)}): draw the map yourself and give it as "
            "map."
        ) from error
    return detector


def canny(image: Image.Image, low: float = LOW, high: float = HIGH) -> Image.Image:
    """Edges (Canny 1986), white on black: see `canny_edges`."""
    edges = canny_edges(images.to_tensor([images.as_rgb(image)]), low, high)
    return images.to_pil(edges.expand(-1, 3, -1, -1))[0]
