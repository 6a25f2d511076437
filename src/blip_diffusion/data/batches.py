"""The format of training batches. Letters: `B` batch, `S` image size, `C` size of the object crop."""

from collections.abc import Callable, Sequence
from typing import Literal, NotRequired, TypedDict

import torch
from torch import Tensor


class SubjectBatch(TypedDict):
    """Prompted context generation (Li et al. 2023, section 3.2): a reference, a prompt, and the target image.

    Every image is float32 in [0, 1]. The full sentence `caption` describes `target`; `prompt` is the same sentence
    without its subject, so that `a {category} {prompt}` is the full prompt.
    """

    reference: Tensor  # (B, 3, S, S) the subject on another background
    reference_caption: list[str]  # "a teapot on a plain blue background"
    object_crop: Tensor  # (B, 4, C, C) the reference without its background: RGB times alpha, alpha
    category: list[str]  # "teapot"
    prompt: list[str]  # "on the beach"
    caption: list[str]  # "a teapot on the beach"
    target: Tensor  # (B, 3, S, S) the subject in the scene of the prompt
    target_alpha: Tensor  # (B, 1, S, S) mask of the subject in the target
    frames: Tensor  # (B, K, 4) the reference's square in the target, for each copy (`framing`)
    identity: Tensor  # (B,) int64, equal for two images of one subject
    target_depth: NotRequired[Tensor]  # (B, 1, S, S) inverse depth: 1 at the subject's nearest point, 0 behind it
    target_normals: NotRequired[
        Tensor
    ]  # (B, 3, S, S) unit vectors: x right, y up, z to the viewer; (0, 0, 1) behind it


DescribedImage = Literal["reference", "target"]
"""Which image of a pair. A reference's caption names category and background; a target's describes the whole image."""


def described(batch: SubjectBatch, image: DescribedImage) -> tuple[Tensor, list[str]]:
    """Return the references or the targets of a batch, (B, 3, S, S), and the sentences that describe them."""
    if image == "reference":
        return batch["reference"], batch["reference_caption"]
    return batch["target"], batch["caption"]


def with_category_captions(
    captions: Sequence[str], categories: Sequence[str], share: float, rng: torch.Generator
) -> list[str]:
    """Replace a random share of captions by "a {category}"; a caption without a category is kept."""
    chosen = (torch.rand(len(captions), generator=rng, device=rng.device) < share).tolist()
    triples = zip(captions, categories, chosen, strict=True)
    return [f"a {category}" if short and category else caption for caption, category, short in triples]


Batches = Callable[[int], SubjectBatch]
"""An index to its batch, as a pure function: so a resumed run equals an uninterrupted one."""
