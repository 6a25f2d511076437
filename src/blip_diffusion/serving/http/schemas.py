"""Bodies of requests and responses, with OpenAI's field names, or else those of `GenerationRequest`."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from blip_diffusion.annotators import UploadKind
from blip_diffusion.serving.jobs import Job

MAX_IMAGES, MAX_STEPS = 10, 100
PRESETS = {"low": "turbo", "medium": "fast", "high": "exact", "hd": "exact", "standard": "", "auto": ""}
"""Presets by OpenAI's `quality`."""

DATA_URL = "The reference image as a data URL: data:image/png;base64,…"
CONTROL_URL = "The image as a data URL: data:image/png;base64,…"
MAX_MORE_SUBJECTS, MAX_CONTROLS = 3, 2

Fraction = Annotated[float, Field(allow_inf_nan=False)]


class SubjectShare(BaseModel):
    """A stored subject and its weight in a mixture."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(description="SHA-256 of the subject file, as /v1/subjects lists it.")
    weight: float = Field(1.0, allow_inf_nan=False)


class ControlBody(BaseModel):
    """An image whose structure is kept."""

    model_config = ConfigDict(extra="forbid")

    kind: UploadKind = Field(
        description="canny: the edges of the image are made. mask: the subject's mask, which gives its box. "
        "depth, normal: the image is a depth map or a normal map. map: it is a control map of another kind."
    )
    image: str = Field(description=CONTROL_URL)
    scale: float = Field(1.0, ge=0, le=2, allow_inf_nan=False)
    end: float = Field(1.0, gt=0, le=1, description="Share of the steps after which it no longer acts.")


class ImageOptions(BaseModel):
    """Common fields of `images/generations`, `images/edits` and `jobs`."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(max_length=2000, description="The scene, without the subject: on the beach.")
    model: str | None = Field(None, max_length=200)
    n: int = Field(1, ge=1, le=MAX_IMAGES)
    size: str = Field("auto", pattern=r"^(auto|[0-9]{2,4}x[0-9]{2,4})$")
    quality: Literal["auto", "low", "medium", "high", "standard", "hd"] = "auto"
    category: str | None = Field(None, max_length=100, description="What the reference shows: dog.")
    target_category: str | None = Field(None, max_length=100, description="What to generate it as.")
    subject: str | list[SubjectShare] | None = Field(None, description="A stored subject, or a mixture.")
    seed: int = Field(0, ge=0, lt=2**53)
    steps: int | None = Field(None, ge=1, le=MAX_STEPS)
    guidance_scale: float | None = Field(None, ge=0, le=100)
    negative_prompt: str = Field("", max_length=2000)
    resize_mode: Literal["crop", "squash", "pad", "subject"] | None = None
    box: tuple[Fraction, Fraction, Fraction, Fraction] | None = None
    controls: list[ControlBody] = Field([], max_length=MAX_CONTROLS, description="Images whose structure is kept.")
    preset: Literal["", "exact", "fast", "turbo"] | None = Field(None, description="Instead of quality.")

    @property
    def chosen_preset(self) -> str:
        """The preset, or the one of `quality`."""
        return PRESETS[self.quality] if self.preset is None else self.preset

    @property
    def sides(self) -> tuple[int | None, int | None]:
        """Width and height; `None` for the model's."""
        if self.size == "auto":
            return None, None
        width, height = self.size.split("x")
        return int(width), int(height)


class SubjectBody(BaseModel):
    """A further subject of an image, with the box in which it stands."""

    model_config = ConfigDict(extra="forbid")

    reference: str = Field(description=DATA_URL)
    category: str = Field(min_length=1, max_length=100)
    target_category: str | None = Field(None, max_length=100)
    box: tuple[Fraction, Fraction, Fraction, Fraction] | None = None


class References(BaseModel):
    """References in a JSON body: that of the subject, and further subjects."""

    reference: str | None = Field(None, description=DATA_URL)
    more_subjects: list[SubjectBody] = Field([], max_length=MAX_MORE_SUBJECTS)
    region_mode: Literal["attention", "multidiffusion"] = "attention"


class EditOptions(BaseModel):
    """How a photo is edited; see `EditInput`."""

    source_category: str | None = Field(None, max_length=100, description="The subject to replace: dog.")
    mask: str | None = Field(None, description="auto (default), subject, none; or an image of the photo's size.")
    inversion: Literal["direct", "ddpm", "ddim", "none"] = "direct"
    strength: float = Field(1.0, gt=0, le=1)
    keep_attention: float = Field(0.0, ge=0, le=1)
    keep_shape: bool = False
    resamplings: int = Field(2, ge=1, le=20)
    feather: int = Field(3, ge=0, le=64)


class ImageBody(ImageOptions):
    """Further fields of the images routes: the response's format. The last four are accepted and ignored."""

    response_format: Literal["b64_json", "url"] = "b64_json"
    output_format: Literal["png", "jpeg", "webp"] = "png"
    output_compression: int = Field(90, ge=0, le=100, description="Quality of JPEG and WebP.")
    stream: bool | None = False
    partial_images: int | None = Field(0, ge=0, le=3)
    user: str | None = None
    background: str | None = None
    moderation: str | None = None
    style: str | None = None


class GenerationBody(ImageBody, References):
    """Body of `POST /v1/images/generations`."""


class EditBody(ImageBody, EditOptions):
    """Fields of `POST /v1/images/edits`, beside its files."""

    prompt: str = Field("", max_length=2000, description="The scene, without the subject. May be empty for an edit.")


class JobBody(ImageOptions, EditOptions, References):
    """Body of `POST /v1/jobs`."""

    kind: Literal["generate", "edit", "inpaint"] = "generate"
    prompt: str = Field("", max_length=2000, description="The scene, without the subject. May be empty for an edit.")
    photo: str | None = Field(None, description="The photo to edit, as a data URL: data:image/png;base64,…")
    previews: int = Field(3, ge=0, le=3)


def job_document(job: Job, position: int = 0) -> dict[str, Any]:
    """Return a job as JSON values, without its reference."""
    document: dict[str, Any] = {
        "id": job.id,
        "object": "job",
        "kind": "generate" if job.request is None or job.request.edit is None else job.request.edit.kind,
        "state": job.state,
        "created": job.created,
        "started": job.started or None,
        "finished": job.finished or None,
        "images": [{"id": image, "url": f"/v1/images/{image}.png"} for image in job.images],
    }
    if job.state == "queued":
        document["position"] = position
    if job.state == "failed":
        document["problem"] = {"detail": job.problem, "code": job.cause}
    if job.request is not None:
        names = ("prompts", "category", "target_category", "model", "num_images", "seed", "steps", "preset")
        document["request"] = {name: getattr(job.request, name) for name in names}
    return document
