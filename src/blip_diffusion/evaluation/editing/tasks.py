"""An edit to evaluate, and how a pipeline runs it under a condition."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from blip_diffusion.errors import InputError
from blip_diffusion.evaluation.generators.model import ImageGenerator, autoencoder_reconstruction
from blip_diffusion.evaluation.instances import Instance
from blip_diffusion.images import open_image, to_pil
from blip_diffusion.pipelines.attention_alignment import AttentionControl
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline

BOUNDS = ("copy", "truth")
"""Kinds of lower and upper bound, which run no edit."""


@dataclass(frozen=True)
class EditTask:
    """One edit.

    Args:
        instance: The new subject in its scene. Without an image of it, it is described by its category alone.
        source_category: Category of the photo's subject.
        photo: (3, S, S) in [0, 1].
        background: (1, S, S), 1 where the edit should not change the photo.
        given: (1, S, S), a mask such as a user draws.
        text: The whole prompt of the edited image.
        truth: The target image (3, S, S) in [0, 1], if it is known.
        subject: (1, S, S), 1 at the new subject in the target image.
    """

    instance: Instance
    source_category: str
    photo: Tensor
    background: Tensor
    given: Tensor
    text: str
    truth: Tensor | None = None
    subject: Tensor | None = None

    @property
    def prompt(self) -> str:
        """The scene, without the subject."""
        return self.instance.prompt.after

    @property
    def reference(self) -> Image.Image | None:
        """The first image of the new subject, if it has one."""
        images = self.instance.subject.images
        return open_image(images[0]) if images else None


@dataclass(frozen=True)
class EditCondition:
    """How a photo is edited: `kind` is "edit", "inpaint", "generate", "copy" or "truth"."""

    kind: str = "edit"
    mask: str = "difference"
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def controls_attention(self) -> bool:
        """Whether it keeps attention maps, which needs the engine torch."""
        return self.options.get("attention") is not None


def _conditions() -> dict[str, EditCondition]:
    """Return all conditions by name: lower and upper bounds, and inversion x mask x attention."""
    conditions = {
        "copy": EditCondition("copy"),
        "generate": EditCondition("generate"),
        "truth": EditCondition("truth"),
        "inpaint-1": EditCondition("inpaint", "given", {"resamplings": 1}),
        "inpaint-2": EditCondition("inpaint", "given", {"resamplings": 2}),
        "inpaint-4": EditCondition("inpaint", "given", {"resamplings": 4}),
    }
    for mask in ("none", "difference", "subject", "given"):
        for inversion in ("direct", "ddpm", "ddim", "none"):
            conditions[f"{inversion}/{mask}"] = EditCondition("edit", mask, {"inversion": inversion})
            control = {"inversion": inversion, "attention": AttentionControl()}
            conditions[f"{inversion}/{mask}/attention"] = EditCondition("edit", mask, control)
        conditions[f"direct/{mask}/words"] = EditCondition(
            "edit", mask, {"inversion": "direct", "describe_source": False}
        )
    return conditions


CONDITIONS = _conditions()


def check_conditions(names: Sequence[str]) -> None:
    """Raise `InputError` for an unknown condition."""
    for name in names:
        if name not in CONDITIONS:
            raise InputError(f"There is no condition {name}: use some of {', '.join(CONDITIONS)}.")


def edit_generator(
    pipe: BlipDiffusionPipeline, tasks: Sequence[EditTask], condition: EditCondition, **settings: Any
) -> ImageGenerator:
    """Return the image generator of a condition; `settings` are arguments of every call."""
    by_file = {task.instance.file: task for task in tasks}
    reconstruct = autoencoder_reconstruction(pipe.model)

    def generate(task: EditTask) -> Image.Image:
        if condition.kind == "copy":
            return to_pil(task.photo[None])[0]
        if condition.kind == "truth":
            assert task.truth is not None
            return to_pil(reconstruct(task.truth[None]))[0]
        return run_edit(pipe, task, condition, **settings)

    return lambda instances: [generate(by_file[instance.file]) for instance in instances]


def run_edit(pipe: BlipDiffusionPipeline, task: EditTask, condition: EditCondition, **settings: Any) -> Image.Image:
    """Return the edited image of one task."""
    instance, reference = task.instance, task.reference
    category = instance.subject.category
    settings["generator"] = torch.Generator().manual_seed(instance.seed)
    photo, given = to_pil(task.photo[None])[0], to_pil(task.given[None].expand(-1, 3, -1, -1))[0].convert("L")
    result: Any
    if condition.kind == "generate":
        settings.pop("strength", None)
        if reference is None:
            settings["subject_embeds"] = torch.zeros(1, 0, int(pipe.text_encoder.config.hidden_size))
        result = pipe(task.prompt, reference, category, category, **settings)
    elif condition.kind == "inpaint":
        options = {**condition.options, **settings, "prompt": task.prompt}
        result = pipe.inpaint(photo, given, reference, category, **options)
    else:
        mask: Any = given if condition.mask == "given" else condition.mask
        options = {**condition.options, **settings, "prompt": task.prompt, "mask": mask}
        result = pipe.edit(photo, task.source_category, category, reference, **options)
    image: Image.Image = result.images[0]
    return image
