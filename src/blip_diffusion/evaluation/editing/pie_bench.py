"""Edits of PIE-Bench (Ju et al. 2024), as tasks without a target image."""

from collections.abc import Sequence

from blip_diffusion.data.benchmarks.dreambench import BenchPrompt, BenchSubject
from blip_diffusion.data.benchmarks.pie_bench import PieEdit
from blip_diffusion.errors import InputError
from blip_diffusion.evaluation.editing.tasks import EditTask
from blip_diffusion.evaluation.instances import Instance
from blip_diffusion.images import fit_square, to_tensor

DEFAULT = (
    "copy", "generate", "direct/none", "none/difference", "direct/difference", "ddpm/difference", "direct/given",
)  # fmt: skip
"""Conditions by default."""


def build_tasks(edits: Sequence[PieEdit], count: int | None, *, size: int) -> list[EditTask]:
    """Return the first edits as tasks, or all; photos and masks are resized to the model's images.

    Raises:
        InputError: If there are fewer edits.
    """
    if count is not None and count > len(edits):
        raise InputError(f"--edits is {count}: {len(edits)} edits of this benchmark replace a subject.")
    return [_task(edit, size) for edit in edits[:count]]


def _task(edit: PieEdit, size: int) -> EditTask:
    photo, mask = (fit_square(image.convert("RGB"), size) for image in edit.open())
    given = (to_tensor([mask])[0, :1] > 0.5).float()
    subject = BenchSubject(edit.key, edit.target_category, live=False, images=())
    instance = Instance(subject, 0, BenchPrompt("", edit.scene), 0)
    pixels = to_tensor([photo])[0]
    return EditTask(instance, edit.source_category, pixels, 1 - given, given, edit.target_prompt)
