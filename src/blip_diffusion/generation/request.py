"""Generation requests: validated, self-contained objects for all interfaces. Imports no torch."""

import io
from dataclasses import dataclass, replace
from typing import Literal

from PIL import Image

from blip_diffusion import images
from blip_diffusion.annotators import annotate, subject_mask
from blip_diffusion.checkpoint.adapter_refs import EmbeddingRef, LoraRef
from blip_diffusion.config import check_types
from blip_diffusion.errors import InputError
from blip_diffusion.framing import check_box
from blip_diffusion.generation.edit_request import EditInput
from blip_diffusion.generation.limits import check_control_end, check_letters, check_limits
from blip_diffusion.generation.subject_inputs import SubjectInput, check_subjects
from blip_diffusion.generation.subject_refs import SubjectRef
from blip_diffusion.pipelines.presets import Dtype, Engine, get_preset

REFERENCE_SIDE, CONTROL_SIDE = 512, 1024
"""Longest allowed short side in pixels: larger images are scaled down."""


@dataclass(frozen=True)
class ControlInput:
    """A control map and the ControlNet that reads it.

    Args:
        kind: One of `annotators.KINDS`.
        image: The control map as PNG bytes, or the image from which it is made.
        scale: Conditioning scale; 1 is usual.
        controlnet: A folder, a file, or a hub id. Empty: the model's ControlNet for edges and ready-made maps, else the
            one in `control_kinds.CONTROLNETS`.
        is_map: Whether `image` is the map. `False`: `control_map` computes it, at the size of the generated images.
        end: Share of the steps after which it no longer acts, above 0, up to 1; diffusers' `control_guidance_end`.

    Raises:
        InputError: If `scale` is not finite, or `end` is out of range.
    """

    kind: str
    image: bytes
    scale: float = 1.0
    controlnet: str = ""
    is_map: bool = True
    end: float = 1.0

    def __post_init__(self) -> None:
        check_types(self, InputError)
        check_control_end(self.end)


@dataclass(frozen=True)
class GenerationRequest:
    """Everything that determines the generated images. It is stored in each PNG file.

    Args:
        prompts: One scene each, not empty.
        reference: The reference image as PNG bytes. With `subjects` it is only shown in the grid. Empty: no subject
            tokens, only the words of `category`, with LoRAs or embeddings.
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
        box: Position of the subject: left, top, right, bottom in [0, 1] of the image. `None`: where the prompt's
            words put it.
        more_subjects: Further subjects, each in its box or mask, or all blended into one.
        region_mask: PNG bytes of a mask, white at the first of several subjects; in place of `box`.
        region_mode: How boxes and masks of several subjects act: "attention" or "multidiffusion".
        blend: Weights of a mixture of all subjects, the first one's first. They are divided by their sum.
        blend_mode: "linear" or "spherical".
        blend_row: Number of mixtures from the first to the second subject, 2 to 32, in place of `blend`.
        subject_scale: How strongly the subject acts in the U-Net's down, mid and up blocks, each in [0, 2].
        dtype: Precision of all weights.
        preset: "exact", "fast", "turbo", or empty for none.
        engine: Backend that runs the networks: "torch", "compiled" or "openvino".
        edit: The photo that is edited; its prompts may be empty. `None`: images are generated.
        prompt_weighting: Whether words of prompts have weights: "(beach)1.5".
        safety_checker: Whether flagged images become black.
        watermark: Whether images get an invisible watermark.
        upscaler: A model that enlarges the images: a folder or a hub id. Empty: they keep their size.

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
    more_subjects: tuple[SubjectInput, ...] = ()
    region_mask: bytes = b""
    region_mode: Literal["attention", "multidiffusion"] = "attention"
    blend: tuple[float, ...] = ()
    blend_mode: Literal["linear", "spherical"] = "linear"
    blend_row: int = 0
    subject_scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    dtype: Dtype = "float32"
    preset: str = ""
    engine: Engine = "torch"
    edit: EditInput | None = None
    prompt_weighting: bool = False
    safety_checker: bool = False
    watermark: bool = False
    upscaler: str = ""

    def __post_init__(self) -> None:
        check_types(self, InputError)
        if self.preset:
            get_preset(self.preset)
        check_limits(
            prompts=self.prompts if self.edit is None else [text or "edit" for text in self.prompts],
            num_images=self.num_images,
            steps=self.steps,
            seed=self.seed,
            guidance_scale=self.guidance_scale,
        )
        check_letters(
            negative_prompt=self.negative_prompt, category=self.category, target_category=self.target_category
        )
        if not self.category.strip() or not self.target_category.strip():
            raise InputError("The category is empty: name the subject, for example dog.")
        if self.box is not None:
            check_box(self.box)
        check_subjects(self)
        if self.upscaler and (self.subjects or self.more_subjects or self.edit is not None):
            raise InputError("--upscale enlarges images of one --reference, without --subject and edits: leave it out.")
        if any(not 0 <= scale <= 2 for scale in self.subject_scale):
            raise InputError(f"--subject-scale is {self.subject_scale}: use numbers from 0 to 2.")

    def variants(self) -> list["GenerationRequest"]:
        """Return the requests of a row of mixtures, from the first subject to the second; itself where it is none.

        The category is that of the heavier subject, and at equal weights the first one's.
        """
        if not self.blend_row:
            return [self]
        shares = [step / (self.blend_row - 1) for step in range(self.blend_row)]
        names = self.target_category, self.more_subjects[0].target_category
        return [
            replace(self, blend=(1 - share, share), blend_row=0, target_category=names[share > 0.5]) for share in shares
        ]

    @property
    def batch_key(self) -> tuple[object, ...] | None:
        """The settings that requests of one batch have in common; `None` if this request can't share a batch."""
        alone = (self.subjects, self.controls, self.loras, self.embeddings, self.more_references, self.more_subjects)
        if any(alone) or not self.reference or self.edit is not None or self.region_mask or self.upscaler:
            return None
        shapes = (self.width, self.height, self.steps, self.guidance_scale)
        return (
            self.model,
            self.dtype,
            self.preset,
            self.engine,
            *shapes,
            self.negative_prompt,
            self.prompt_weighting,
            self.safety_checker,
            self.watermark,
            self.resize_mode,
            self.box,
            self.subject_scale,
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


def read_region_mask(source: images.Source) -> bytes:
    """Read the mask of a subject's region, white inside. Raises `InputError` for a file that is not an image."""
    return images.png_bytes(_at_most(images.open_image(source), CONTROL_SIDE))


def read_control(
    kind: str,
    source: images.Source,
    scale: float = 1.0,
    controlnet: str = "",
    *,
    end: float = 1.0,
    side: int | None = None,
    networks: bool = True,
) -> ControlInput:
    """Read an image file and compute its control map; for edges, keep the image, whose map `control_map` computes.

    Edges are computed by a process that has torch, and the image also shows the position of its subject.

    Args:
        kind: One of `annotators.KINDS`; without networks, one of `annotators.UploadKind`.
        source: The path of an image file, or an open file.
        scale: Conditioning scale.
        controlnet: See `ControlInput`.
        end: See `ControlInput`.
        side: Short side in pixels of the image to be generated, at which the map is computed: edges of a much larger
            photo are too many, and too thin, for a small image. `None`: the photo's own, at most 1024.
        networks: See `annotators.annotate`.

    Raises:
        InputError: If the kind is unknown, its extra is not installed, `end` is out of range, or the file is not an
            image, or no mask or map where one is needed.
    """
    side, is_map = min(side or CONTROL_SIDE, CONTROL_SIDE), kind != "canny"
    if kind == "mask":  # read first, since transparency is not kept
        made = _at_most(images.read_image(source, subject_mask), side)
    else:
        made = _at_most(images.open_image(source), side)
        made = annotate(made, kind, networks=networks) if is_map else made
    return ControlInput(kind, images.png_bytes(made), scale, controlnet, is_map, end)


def control_map(control: ControlInput) -> Image.Image:
    """Return the control map of a control, an RGB image."""
    image = images.open_image(io.BytesIO(control.image))
    return image if control.is_map else annotate(image, control.kind)


def with_small_controls(request: GenerationRequest, side: int) -> GenerationRequest:
    """Return a request whose control images that are no maps yet have a short side of at most `side` pixels."""
    controls = tuple(one if one.is_map else _small(one, side) for one in request.controls)
    return replace(request, controls=controls) if controls != request.controls else request


def _small(control: ControlInput, side: int) -> ControlInput:
    image = images.open_image(io.BytesIO(control.image))
    return control if min(image.size) <= side else replace(control, image=images.png_bytes(_at_most(image, side)))


def _at_most(image: Image.Image, side: int) -> Image.Image:
    """Scale down until the short side is at most `side` pixels."""
    scale = min(1.0, side / min(image.size))
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
