"""The subject-aware text encoder: CLIP's, with subject tokens inserted among the words (Li et al. 2023, figure 2).

The only file that uses transformers' internals; `tests/parity` compares it with the published code.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel
from transformers.masking_utils import create_causal_mask


class SubjectTextEncoder(CLIPTextModel):
    """CLIP's text model. Weights, names and files are unchanged, so that LoRAs and embeddings for CLIP load."""

    config: CLIPTextConfig

    def forward(
        self,
        input_ids: Tensor | None = None,
        subject_tokens: Tensor | Sequence[Tensor] | None = None,
        insert_at: int | Sequence[int] = 2,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return CLIP's output, or, with subject tokens, the last hidden state (B, L + Q, D).

        `subject_tokens` (B, Q, D) are inserted before word `insert_at` among the token embeddings: they take positions,
        and the words after them move back by Q. `L + Q` must not exceed the model's positions. Several subjects are a
        sequence of such tensors; their positions increase, counted in words. `attention_mask` (B, L + Q) is 0 for
        positions that are not attended to.
        """
        if subject_tokens is None:
            return super().forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        if input_ids is None:
            raise ValueError("subject tokens are inserted among words: input_ids is missing")
        words = self.embeddings.token_embedding(input_ids)  # (B, L, D)
        blocks = [subject_tokens] if isinstance(subject_tokens, Tensor) else list(subject_tokens)
        places = [insert_at] if isinstance(insert_at, int) else list(insert_at)
        return self.encode_embedded(_inserted(words, blocks, places), attention_mask)

    def encode_embedded(self, embedded: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Encode word embeddings and subject tokens (B, L, D), in order of position, to hidden states (B, L, D)."""
        hidden = self.embeddings(inputs_embeds=embedded)
        mask = create_causal_mask(
            config=self.config, inputs_embeds=hidden, attention_mask=attention_mask, past_key_values=None
        )
        states = self.encoder(inputs_embeds=hidden, attention_mask=mask, is_causal=True).last_hidden_state
        normed: Tensor = self.final_layer_norm(states)
        return normed


def _inserted(words: Tensor, blocks: Sequence[Tensor], places: Sequence[int]) -> Tensor:
    """Insert each block (B, Q, D) before the word (B, L, D) of its place, in the order of the places."""
    pieces = [words[:, : places[0]]]
    for block, (place, following) in zip(blocks, pairwise([*places, words.shape[1]]), strict=True):
        pieces += [block.to(words.dtype), words[:, place:following]]
    return torch.cat(pieces, dim=1)
