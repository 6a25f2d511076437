"""Run the edit of a request on a pipeline."""

from dataclasses import dataclass
from typing import Any

from PIL import Image

from blip_diffusion.generation.edit_request import EditInput
from blip_diffusion.pipelines.attention_alignment import AttentionControl


@dataclass(frozen=True)
class Editor:
    """An edit with its photo and mask loaded.

    Args:
        edit: The settings.
        photo: The photo.
        mask: The mask, or the method that predicts it.
    """

    edit: EditInput
    photo: Image.Image
    mask: Any

    @classmethod
    def read(cls, edit: EditInput) -> "Editor":
        """Read photo and mask. Raises `CheckpointError` if one is missing or has changed."""
        mask = edit.mask if edit.mask_file is None else edit.mask_file.open()
        return cls(edit, edit.photo.open(), mask)

    def __call__(self, pipe: Any, prompt: str, category: str, arguments: dict[str, Any]) -> Image.Image:
        """Edit the photo once; `arguments` are further arguments of the pipeline's call."""
        edit, given = self.edit, dict(arguments)
        for name in ("source_subject_category", "target_subject_category"):
            given.pop(name, None)
        given["control_image"] = given.pop("image", None)
        options = {"prompt": prompt, "strength": edit.strength, "feather": edit.feather, **given}
        if edit.kind == "inpaint":
            out = pipe.inpaint(self.photo, self.mask, category=category, resamplings=edit.resamplings, **options)
        else:
            control = AttentionControl(edit.keep_attention, shape="keep" if edit.keep_shape else "free")
            out = pipe.edit(
                self.photo,
                edit.source_category,
                category,
                mask=self.mask,
                inversion=edit.inversion,
                attention=control if edit.keep_attention else None,
                **options,
            )
        image: Image.Image = out.images[0]
        return image
