"""A frozen language model conditioned on the Q-Former's queries (Li, Li, Savarese & Hoi 2023, section 3.2).

    queries (B, Q, D) ─► projection ─► prefix (B, Q, W) ─┬─► [prefix | text] ─► decoder-only: the text's next tokens
                                                         └─► [prefix | first words] ─► encoder-decoder: the last words

Letters: `B` batch, `Q` queries, `D` query width, `L` text tokens, `W` width of the language model.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IGNORED = -100
"""The label of tokens that the loss ignores, as in transformers."""


class LanguagePrefix(nn.Module):
    """A linear projection of the queries to a prefix of the text, and the frozen language model that reads it.

    Args:
        width: Query width D.
        language_model: A model of transformers' `AutoModelForCausalLM` or `AutoModelForSeq2SeqLM`.
    """

    def __init__(self, width: int, language_model: Any) -> None:
        super().__init__()
        self.projection = nn.Linear(width, int(language_model.config.hidden_size))
        self.language_model = language_model
        self.freeze()

    def freeze(self) -> None:
        """Freeze the language model and disable its dropout."""
        self.language_model.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "LanguagePrefix":
        super().train(mode)
        self.language_model.eval()
        return self

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether the language model is an encoder-decoder, such as T5."""
        return bool(self.language_model.config.is_encoder_decoder)

    def forward(
        self, queries: Tensor | None, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None
    ) -> Any:
        """Run the language model on `[prefix | text]`; gradients pass through it to the queries.

        Args:
            queries: (B, Q, D); `None` for the text without a prefix.
            input_ids: (B, L) token ids of the text; for an encoder-decoder those of the encoder.
            attention_mask: (B, L) 1 for tokens and 0 for padding.
            labels: (B, L) target ids, or `IGNORED`; for an encoder-decoder (B, any length), the ids of the decoder.

        Returns:
            transformers' output: `logits`, and `loss`, the mean cross-entropy of all targets, if labels are given. The
            logits of a decoder-only model include those of the prefix.
        """
        embeds, mask = self._embed(queries, input_ids, attention_mask)
        if labels is not None and queries is not None and not self.is_encoder_decoder:
            labels = F.pad(labels, (queries.shape[1], 0), value=IGNORED)
        return self.language_model(inputs_embeds=embeds, attention_mask=mask, labels=labels)

    @torch.no_grad()
    def generate(self, queries: Tensor | None, input_ids: Tensor, attention_mask: Tensor, **options: Any) -> Tensor:
        """Generate a continuation of the text, which must be padded on the left.

        Args:
            queries: (B, Q, D); `None` for the text without a prefix.
            input_ids: (B, L) the prompt with its first special token.
            attention_mask: (B, L) 1 for tokens and 0 for padding.
            **options: Arguments of transformers' `generate`, such as `num_beams`.

        Returns:
            Token ids (B, T) of the continuation, without the prompt.
        """
        embeds, mask = self._embed(queries, input_ids, attention_mask)
        if queries is not None and not self.is_encoder_decoder:
            embeds, mask = _padding_first(embeds, mask)
        ids: Tensor = self.language_model.generate(inputs_embeds=embeds, attention_mask=mask, **options)
        return ids

    def _embed(self, queries: Tensor | None, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        embeds: Tensor = self.language_model.get_input_embeddings()(input_ids)  # (B, L, W)
        if queries is None:
            return embeds, attention_mask
        prefix = self.projection(queries).to(embeds.dtype)  # (B, Q, W)
        return torch.cat([prefix, embeds], dim=1), F.pad(attention_mask, (queries.shape[1], 0), value=1)


def _padding_first(embeds: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Move padding to the left of each row: between prefix and text it would shift rotary positions."""
    order = mask.argsort(dim=1, stable=True)
    return embeds.gather(1, order[..., None].expand_as(embeds)), mask.gather(1, order)


@dataclass(frozen=True)
class LanguageModelConfig:
    """Shapes of a small language model with Llama's architecture (Touvron et al. 2023)."""

    vocabulary: int = 3072
    width: int = 192
    layers: int = 4
    heads: int = 4
    inner: int = 512
    positions: int = 128


def build_language_model(config: LanguageModelConfig, *, bos: int, eos: int, pad: int) -> Any:
    """Build a `LlamaForCausalLM` with random weights; `bos`, `eos` and `pad` are token ids."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocabulary,
            hidden_size=config.width,
            intermediate_size=config.inner,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            max_position_embeddings=config.positions,
            tie_word_embeddings=True,
            bos_token_id=bos,
            eos_token_id=eos,
            pad_token_id=pad,
        )
    )
