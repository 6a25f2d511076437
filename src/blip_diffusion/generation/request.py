"""What to generate: one validated, self-contained object, whichever interface made it. Imports no torch."""

from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Literal

from PIL import Image

from blip_diffusion import images
from blip_diffusion.errors import InputError
from blip_diffusion.framing import check_box
from blip_diffusion.generation.adapter_refs import EmbeddingRef, LoraRef
from blip_diffusion.generation.limits import check_limits
from blip_diffusion.generation.subject_refs import SubjectRef
from blip_diffusion.pipelines.presets import Dtype, Engine, get_preset

REFERENCE_SIDE, CONTROL_SIDE = 512, 1024
"""Longest allowed short side in pixels: larger images are scaled down."""

CONTROLNETS = {
    **{kind: f"lllyasviel/sd-controlnet-{kind}" for kind in ("canny", "depth", "hed", "openpose")},
    "normal": "lllyasviel/control_v11p_sd15_normalbae",  # sd-controlnet-normal reads MiDaS normals, not NormalBae's
}
"""ControlNets of Stable Diffusion 1.5 for the maps that `annotators` makes, by kind."""


@dataclass(frozen=True)
class ControlInput:
    """A control map and the ControlNet that reads it.

    Args:
        kind: One of `annotators.KINDS`.
        image: The control map as PNG bytes.
        scale: Conditioning scale; 1 is usual.
        controlnet: A folder, a file, or a hub id. Empty: the model's ControlNet for edges and ready-made maps, else the
            one in `CONTROLNETS`.

    Raises:
        InputError: If `scale` is not finite.
    """

    kind: str
    image: bytes
    scale: float = 1.0
    controlnet: str = ""

    def __post_init__(self) -> None:
        if not isfinite(self.scale):
            raise InputError(f"The scale of --control {self.kind} is {self.scale}: use a number, 1 is usual.")


@dataclass(frozen=True)
class GenerationRequest:
    """Everything that determines the generated images. It is stored in each PNG file.

    Args:
        prompts: One scene each, not empty.
        reference: The reference image as PNG bytes. With `subjects` it is only shown in the grid. Empty: no subject
            but the words of `category`, which LoRAs or embeddings explain.
        category: What the subject is, for example "dog".
        target_category: What to generate it as; usually equal to `category`.
        model: "mini", a folder, or a hub id.
        num_images: Images per prompt, 1 to 1000.
        seed: Seed of the first image of each prompt; incremented for each next one.
        steps: Sampling steps, 1 to 1000. `None`: the model's default.
        guidance_scale: Weight of classifier-free guidance, 0 to 100; up to 1 switches it off. `None`: the model's
            default.
        negative_prompt: What should not appear.
        width: In pixels. `None`: the model's default.
        height: In pixels. `None`: the model's default.
        controls: Control maps with their ControlNets.
        subjects: Tuned subjects; they replace the reference.
        more_references: Further images of the subject as PNG bytes; the mean of all tokens is used.
        loras: LoRA files with their weights.
        embeddings: Files of textual inversions, whose words prompts and categories may hold.
        resize_mode: How the reference becomes square: "crop", "squash", "pad" or "subject"; by default the model's.
        box: Where the subject stands: left, top, right, bottom in [0, 1] of the image. `None`: where the prompt's
            words put it.
        dtype: Precision of all weights.
        preset: "exact", "fast", "turbo", or empty for none.
        engine: Backend that runs the networks: "torch", "compiled" or "openvino".

    Raises:
        InputError: If a value is empty or out of range, or the preset is unknown.

    Example:
        >>> reference = read_reference(Path("examples/dog.png"))
        >>> request = GenerationRequest(("on the beach",), reference, "dog", "dog", num_images=4)
        >>> run(request, Path("out"))
    """

    prompts: tuple[str, ...]
    reference: bytes
    category: str
    target_category: str
    model: str = "mini"
    num_images: int = 1
    seed: int = 0
    steps: int | None = None
    guidance_scale: float | None = None
    negative_prompt: str = ""
    width: int | None = None
    height: int | None = None
    controls: tuple[ControlInput, ...] = ()
    subjects: tuple[SubjectRef, ...] = ()
    more_references: tuple[bytes, ...] = ()
    loras: tuple[LoraRef, ...] = ()
    embeddings: tuple[EmbeddingRef, ...] = ()
    resize_mode: Literal["crop", "squash", "pad", "subject"] | None = None
    box: tuple[float, float, float, float] | None = None
    dtype: Dtype = "float32"
    preset: str = ""
    engine: Engine = "torch"

    def __post_init__(self) -> None:
        if self.preset:
            get_preset(self.preset)
        check_limits(
            prompts=self.prompts,
            num_images=self.num_images,
            steps=self.steps,
            seed=self.seed,
            guidance_scale=self.guidance_scale,
        )
        if not self.category.strip() or not self.target_category.strip():
            raise InputError("The category is empty: name what the subject is, for example dog.")
        if self.box is not None:
            check_box(self.box)

    @property
    def batch_key(self) -> tuple[object, ...] | None:
        """What requests have in common that may be generated in one batch. `None`: this one has a batch of its own."""
        alone = (self.subjects, self.controls, self.loras, self.embeddings, self.more_references)
        if any(alone) or not self.reference:
            return None
        shapes = (self.width, self.height, self.steps, self.guidance_scale)
        return (
            self.model,
            self.dtype,
            self.preset,
            self.engine,
            *shapes,
            self.negative_prompt,
            self.resize_mode,
            self.box,
        )


def read_reference(source: images.Source) -> bytes:
    """Read a reference image for a request.

    Args:
        source: The path of an image file, or an open file.

    Returns:
        Upright RGB as PNG bytes, the short side at most 512 pixels.

    Raises:
        InputError: If the file is missing, damaged, or not an image.
    """
    return images.png_bytes(_at_most(images.open_image(source), REFERENCE_SIDE))


def read_control(kind: str, path: Path, scale: float = 1.0, controlnet: str = "") -> ControlInput:
    """Read an image file and compute its control map.

    Args:
        kind: One of `annotators.KINDS`.
        path: An image file.
        scale: Conditioning scale.
        controlnet: See `ControlInput`.

    Raises:
        InputError: If the kind is unknown, its extra is not installed, or the file is not an image.
    """
    from blip_diffusion.annotators import annotate  # imports torch

    source = _at_most(images.open_image(path), CONTROL_SIDE)
    return ControlInput(kind, images.png_bytes(annotate(source, kind)), scale, controlnet)


def _at_most(image: Image.Image, side: int) -> Image.Image:
    """Scale down until the short side is at most `side` pixels."""
    scale = min(1.0, side / min(image.size))
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
