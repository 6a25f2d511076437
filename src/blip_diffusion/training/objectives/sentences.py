"""Train a small language model on captions; the language stage can freeze it in place of a larger one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from blip_diffusion.checkpoint.language import save_language
from blip_diffusion.data.batches import SubjectBatch
from blip_diffusion.errors import ConfigError
from blip_diffusion.modules.language import IGNORED
from blip_diffusion.prompts import SpecialIds, Words, caption_words
from blip_diffusion.protocols import Tokenizer
from blip_diffusion.training.objective import Losses, Objective, ParameterGroup, StepContext

MAX_CONTEXT = 64
MAX_NOISE = 10
MAX_VISIBLE = 1.5
"""The visible share of a context is uniform in [0, 1.5], cut at 1: a third of the rows has a whole context."""


@dataclass(frozen=True)
class SentencesConfig:
    """Caption length, context and learning rate."""

    max_caption_tokens: int = 32  # longer captions are truncated
    context_tokens: int = 0
    """At most this many of a caption's tokens stand before [BOS], in random order and repeated, so that the model is
    trained to continue from a context, as the language stage's prefix is one; 0: no context."""
    context_noise: float = 0.0
    """The largest standard deviation of the Gaussian noise on the context's embeddings, in units of their standard
    deviation; each caption has its own, uniform from 0. A projected query is never exactly the embedding of a word."""
    lr_scale: float = 1.0  # factor of the learning rate

    def __post_init__(self) -> None:
        if self.max_caption_tokens < 2:
            raise ConfigError(f"sentences.max_caption_tokens is {self.max_caption_tokens}: use 2 or more.")
        if not 0 <= self.context_tokens <= MAX_CONTEXT:
            raise ConfigError(f"sentences.context_tokens is {self.context_tokens}: use 0 to {MAX_CONTEXT}.")
        if not 0 <= self.context_noise <= MAX_NOISE:
            raise ConfigError(f"sentences.context_noise is {self.context_noise}: use 0 to {MAX_NOISE}.")
        if self.context_noise and not self.context_tokens:
            raise ConfigError("sentences.context_noise needs sentences.context_tokens: there is no context without.")


class Sentences(Objective):
    """Train a causal language model on captions alone: the mean cross-entropy of the next token, in nats.

    Args:
        language_model: A decoder-only model of transformers.
        tokenizer: Its tokenizer.
        config: The settings.
    """

    def __init__(self, language_model: Any, tokenizer: Tokenizer, config: SentencesConfig) -> None:
        super().__init__()
        self.language_model = language_model
        self.tokenizer = tokenizer
        self.config = config

    def forward(self, batch: SubjectBatch, context: StepContext) -> Losses:
        """Return the cross-entropy of the captions and, with a context, the accuracy of the tokens that it shows."""
        special = SpecialIds.of(self.language_model.config)
        words, labels = caption_words(self.tokenizer, batch["caption"], special, limit=self.config.max_caption_tokens)
        if count := self.config.context_tokens:
            words = with_context(words, special, count, context.rng)
            labels = F.pad(labels, (count, 0), value=IGNORED)
        words, labels = words.to(self.language_model.device), labels.to(self.language_model.device)
        embeds = self.language_model.get_input_embeddings()(words.input_ids)
        if self.config.context_noise:
            embeds = with_noise(embeds, count, self.config.context_noise, context.rng)
        output = self.language_model(inputs_embeds=embeds, attention_mask=words.attention_mask, labels=labels)
        losses = {"loss": output.loss}
        if count:
            losses["context_accuracy"] = context_accuracy(output.logits.detach(), labels, words, count)
        return losses

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return all parameters of the language model."""
        return [ParameterGroup("language_model", list(self.language_model.parameters()), self.config.lr_scale)]

    def export(self, folder: Path) -> None:
        """Write `language/`, without a projection."""
        save_language(self.language_model, self.tokenizer, folder / "language")


def context_accuracy(logits: Tensor, labels: Tensor, words: Words, count: int) -> Tensor:
    """Return the share of correct predictions among the tokens that the context shows.

    A language model with a low accuracy can't use a prefix: it has to be trained longer. With `context_noise`, part of
    the context can't be recognised, so the accuracy stays below 1.

    Args:
        logits: (B, C + L, V) of the language model.
        labels: (B, C + L) target ids, or `IGNORED`.
        words: Contexts of C tokens, each followed by its caption (B, C + L).
        count: Number of tokens C.

    Returns:
        A scalar in [0, 1].
    """
    shown = words.input_ids[:, :count].masked_fill(words.attention_mask[:, :count] == 0, -1)
    targets = labels[:, 1:]
    in_context = (targets[..., None] == shown[:, None]).any(dim=-1)
    correct = logits[:, :-1].argmax(dim=-1) == targets
    return (correct & in_context).sum() / in_context.sum().clamp(min=1)


def with_context(words: Words, special: SpecialIds, count: int, rng: torch.Generator) -> Words:
    """Put random tokens of each caption before it.

    Args:
        words: B captions (B, L), `[BOS] {caption} [EOS]`, padded on the right.
        special: Ids of the special tokens.
        count: Number of tokens C.
        rng: Chooses the tokens, and how many of a row the mask leaves visible.

    Returns:
        (B, C + L): tokens of the caption, chosen with replacement, then the caption.
    """
    first = int(special.bos is not None)
    lengths = (words.attention_mask.sum(1, keepdim=True) - first - 1).clamp(min=1)
    draws = torch.rand(2, len(lengths), count, generator=rng, device=rng.device).to(lengths.device)
    visible_share = torch.rand(len(lengths), 1, generator=rng, device=rng.device).to(lengths.device)
    ids = words.input_ids.gather(1, first + (draws[0] * lengths).long())
    visible = (draws[1] < MAX_VISIBLE * visible_share).to(words.attention_mask.dtype)
    return Words(torch.cat([ids, words.input_ids], 1), torch.cat([visible, words.attention_mask], 1))


def with_noise(embeds: Tensor, count: int, largest: float, rng: torch.Generator) -> Tensor:
    """Add Gaussian noise to the embeddings of a context.

    Args:
        embeds: (B, C + L, W) embeddings of a context of C tokens and a caption.
        count: Number of tokens C.
        largest: Largest standard deviation, in units of that of the context's embeddings; each row's is uniform from 0.
        rng: Chooses the standard deviations and the noise.

    Returns:
        (B, C + L, W): the embeddings, those of the caption unchanged.
    """
    shape = (len(embeds), count, embeds.shape[-1])
    scale = torch.rand(len(embeds), 1, 1, generator=rng, device=rng.device) * largest
    noise = torch.randn(shape, generator=rng, device=rng.device) * scale
    noise = noise.to(embeds) * embeds[:, :count].detach().std()
    return embeds + F.pad(noise, (0, 0, 0, embeds.shape[1] - count))
