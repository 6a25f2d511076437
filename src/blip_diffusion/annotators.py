"""Control maps of images. Canny edges are computed by this library, the others by `controlnet_aux`'s networks."""

from collections.abc import Callable
from typing import Literal

from PIL import Image

from blip_diffusion import images
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
KINDS = ("map", "canny", "mask", *NETWORKS)
"""`map` is an image that is already a control map, `mask` the mask of a subject."""
GEOMETRY = {
    "depth": "a grey image, bright where it is near",
    "normal": "an image of unit vectors, as 3D programs render it",
}
"""Maps of geometry, which 3D programs render, and the training data have of 3D models; and what they look like."""
UploadKind = Literal["mask", "canny", "depth", "normal", "map"]
"""The kinds that the server and the page take: those without a network, and geometry as a ready-made map."""
MAX_GREY = 0.25
"""Largest share of a mask's pixels that may be neither dark nor bright."""
MIN_UNIT, MAX_TINT = 0.9, 4
"""Least share of a normal map's pixels of length 0.9 to 1.1, and largest difference of a depth map's channels."""


def annotate(image: Image.Image, kind: str, *, networks: bool = True) -> Image.Image:
    """Return the control map of an image. A depth map or a normal map is returned as it is.

    Args:
        image: The image.
        kind: One of `KINDS`; without networks, one of `UploadKind`.
        networks: Whether networks, which the hub provides, may compute depth and normals of other images.

    Raises:
        InputError: If the annotator is unknown or unavailable, or the image is no mask or map where one is needed.
    """
    if kind == "mask":
        return subject_mask(image)
    image = images.as_rgb(image)
    if kind == "map":
        return image
    if kind == "canny":
        return canny(image)
    if kind in GEOMETRY and _is_map(image, kind):
        return image
    if kind in GEOMETRY and not networks:
        raise InputError(f"The control image is no {kind} map: use {GEOMETRY[kind]}.")
    if kind in NETWORKS:
        return _detector(kind)(image).convert("RGB").resize(image.size, Image.Resampling.BICUBIC)
    raise InputError(f"There is no control {kind!r}: use {', '.join(KINDS[:-1])} or {KINDS[-1]}.")


def _is_map(image: Image.Image, kind: str) -> bool:
    """Return whether an RGB image already is a depth map, which is grey, or a normal map, of vectors of length 1."""
    import numpy as np

    pixels = np.asarray(image, np.float32)
    if kind == "depth":
        return bool(np.ptp(pixels, axis=2).max() <= MAX_TINT)
    lengths = np.linalg.norm(pixels / 127.5 - 1, axis=2)
    return bool((np.abs(lengths - 1) < 0.1).mean() >= MIN_UNIT)


def _detector(kind: str) -> Callable[[Image.Image], Image.Image]:
    try:
        import controlnet_aux  # type: ignore[import-not-found]
    except ImportError as error:
        raise InputError(
            f"The control {kind} needs controlnet_aux: pip install 'blip-diffusion[control]', or give a ready-made map"
            + ("." if kind in GEOMETRY else " as map.")
        ) from error
    try:
        detector: Callable[[Image.Image], Image.Image] = getattr(controlnet_aux, NETWORKS[kind]).from_pretrained(
            WEIGHTS
        )
    except Exception as error:  # its networks are fetched from the hub and built by several libraries
        raise InputError(
            f"The control {kind} can't be loaded from {WEIGHTS} ({reason(error)}): give a ready-made map"
            + ("." if kind in GEOMETRY else " as map.")
        ) from error
    return detector


def subject_mask(image: Image.Image) -> Image.Image:
    """Return the mask of a cut-out, its transparency, or an image that is a mask already: white at the subject.

    Raises:
        InputError: If the image is opaque and not black and white.
    """
    mask = images.alpha_of(image)
    if mask is None:
        mask = images.as_rgb(image).convert("L")
        counts = mask.histogram()
        if sum(counts[64:192]) > MAX_GREY * sum(counts):
            raise InputError(
                "The control image is no mask: use one that is black and white, white at the subject, or a cut-out "
                "with transparency."
            )
    if mask.getextrema()[1] < 128:  # type: ignore[operator]  # a pair for one channel
        raise InputError("The control image has no white pixel: draw the subject in white.")
    return mask.convert("RGB")


def canny(image: Image.Image, *thresholds: float) -> Image.Image:
    """Return edges (Canny 1986), white on black; `thresholds` are `low` and `high` of `canny_edges`."""
    from blip_diffusion.edges import canny_edges  # imports torch, and masks need none

    edges = canny_edges(images.to_tensor([images.as_rgb(image)]), *thresholds)
    return images.to_pil(edges.expand(-1, 3, -1, -1))[0]
