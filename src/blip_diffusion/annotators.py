"""Control maps of images. Canny edges are computed by this library, the others by `controlnet_aux`'s networks."""

from collections.abc import Callable

from PIL import Image

from blip_diffusion import images
from blip_diffusion.edges import HIGH, LOW, canny_edges
from blip_diffusion.errors import InputError, reason

NETWORKS = {
    "depth": "MidasDetector",
    "hed": "HEDdetector",
    "lineart": "LineartDetector",
    "normal": "NormalBaeDetector",
    "openpose": "OpenposeDetector",
    "softedge": "PidiNetDetector",
}
"""Annotators that are networks: their classes in `controlnet_aux`."""
WEIGHTS = "lllyasviel/Annotators"
"""Hub repository of their weights."""
KINDS = ("map", "canny", *NETWORKS)
"""`map` is an image that is already a control map."""


def annotate(image: Image.Image, kind: str) -> Image.Image:
    """Return the control map of an image. Raises `InputError` for an unknown or unavailable annotator."""
    image = images.as_rgb(image)
    if kind == "map":
        return image
    if kind == "canny":
        return canny(image)
    if kind in NETWORKS:
        return _detector(kind)(image).convert("RGB").resize(image.size, Image.Resampling.BICUBIC)
    raise InputError(f"There is no control {kind!r}: use {', '.join(KINDS[:-1])} or {KINDS[-1]}.")


def _detector(kind: str) -> Callable[[Image.Image], Image.Image]:
    try:
        import controlnet_aux  # type: ignore[import-not-found]
    except ImportError as error:
        raise InputError(
            f"The control {kind} needs controlnet_aux: pip install 'blip-diffusion[control]', or draw the map yourself "
            "and give it as map."
        ) from error
    try:
        detector: Callable[[Image.Image], Image.Image] = getattr(controlnet_aux, NETWORKS[kind]).from_pretrained(
            WEIGHTS
        )
    except Exception as error:  # its networks are fetched from the hub and built by several libraries
        raise InputError(
            f"The control {kind} can't be loaded from {WEIGHTS} ({reason(error)}): draw the map yourself and give it "
            "as map."
        ) from error
    return detector


def canny(image: Image.Image, low: float = LOW, high: float = HIGH) -> Image.Image:
    """Return edges (Canny 1986), white on black; see `canny_edges`."""
    edges = canny_edges(images.to_tensor([images.as_rgb(image)]), low, high)
    return images.to_pil(edges.expand(-1, 3, -1, -1))[0]
