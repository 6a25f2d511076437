"""Training pairs as rows of small integers, which worker processes return and the pool keeps on the device.

Letters: `B` pairs, `S` image size, `C` size of the object crop, `L` words of a prompt, `K` copies of a subject.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from blip_diffusion.data.batches import SubjectBatch
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.prompts import Words, subject_prompt
from blip_diffusion.protocols import Tokenizer

Rows = dict[str, Tensor]
"""Tensors by name, of equal length; images are bytes, ids are 32-bit."""

COPIES = 3
CATEGORY_TOKENS = 8


@dataclass(frozen=True)
class Packer:
    """Convert batches to rows: images to bytes, and words to ids."""

    tokenizer: Tokenizer
    qformer_tokenizer: Tokenizer
    prompt_tokens: int  # subject tokens not counted
    caption_tokens: int
    mask_size: int  # side of the mask that the subject finder predicts

    def __call__(self, batch: SubjectBatch) -> Rows:
        category = self._words(batch["category"], CATEGORY_TOKENS)
        caption = self._words(batch["reference_caption"], self.caption_tokens)
        prompts = [subject_prompt(p, c) for p, c in zip(batch["prompt"], batch["category"], strict=True)]
        frames = batch["frames"][:, :COPIES]
        return {
            "reference": to_bytes(batch["reference"]),
            "target": to_bytes(batch["target"]),
            "object_crop": to_bytes(batch["object_crop"]),
            "mask": to_bytes(F.interpolate(batch["target_alpha"], size=(self.mask_size,) * 2, mode="area")),
            "frames": F.pad(frames, (0, 0, 0, COPIES - frames.shape[1])).float(),
            "prompt": _ids(self.tokenizer, prompts, self.prompt_tokens).input_ids.int(),
            "category": category.input_ids.int(),
            "category_mask": category.attention_mask.to(torch.uint8),
            "caption": caption.input_ids.int(),
            "caption_mask": caption.attention_mask.to(torch.uint8),
            "identity": batch["identity"].int(),
        }

    def _words(self, texts: Sequence[str], length: int) -> Words:
        encoded = _ids(self.qformer_tokenizer, texts, length)
        return Words(encoded.input_ids, encoded.attention_mask)


def packer_of(model: BlipDiffusion, image_size: int, caption_tokens: int) -> Packer:
    """Return the packer of a model's tokenizers and shapes."""
    finder = model.subject_finder
    cells = image_size // 16
    return Packer(
        model.tokenizer,
        model.qformer_tokenizer,
        model.text_length - model.subject_encoder.qformer.config.queries,
        caption_tokens,
        cells * (finder.config.patch if finder is not None else 4),
    )


def _ids(tokenizer: Tokenizer, texts: Sequence[str], length: int) -> Any:
    return tokenizer(list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt")


def to_bytes(pixels: Tensor) -> Tensor:
    """Convert pixels in [0, 1] to bytes."""
    return (pixels.clamp(0, 1) * 255).round().to(torch.uint8)


def to_pixels(rows: Tensor) -> Tensor:
    """Convert bytes to pixels in [0, 1]."""
    return rows.float() / 255


def words_of(rows: Rows, name: str) -> Words:
    """Return the Q-Former's words of a column: `category` or `caption`."""
    return Words(rows[name].long(), rows[f"{name}_mask"].long())
